"""Confidence intervals of proportions."""

import math
from typing import TypeAlias

import numpy as np

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError

Interval: TypeAlias = tuple[float, float]


@checked
def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval (1927), 95 %, for a proportion p: ``(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``.

    Args:
        successes: how many.
        n: out of how many, at least 1.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        UserError: for other counts.
    """
    if not 0 <= successes <= n or n < 1:
        raise UserError(f"successes must be 0 to n, and n at least 1, got {successes} and {n}")
    p, z = successes / n, 1.959963984540054
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clopper_pearson_lower(successes: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Clopper and Pearson's (1934) lower bounds of proportions, each above the truth with a probability of at most α.

    The bound p solves ``P(Binomial(n, p) ≥ successes) = α``; for 0 successes it is 0.

    Args:
        successes: how many, (m,), integers from 0 to n.
        n: out of how many, at least 1.
        alpha: α, in (0, 1), of one side.

    Returns:
        Bounds, (m,) float64.
    """
    from scipy.special import betaincinv  # slow to import, seldom needed

    some = np.maximum(successes, 1)
    return np.where(successes > 0, betaincinv(some, n - some + 1, alpha), 0.0)
