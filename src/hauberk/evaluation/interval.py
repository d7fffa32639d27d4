"""Confidence intervals for shares."""

import math

Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share.

    ``(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``

    Args:
        successes: how many.
        n: out of how many, at least 1.
        z: quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        Lower and upper end, in [0, 1].
    """
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
