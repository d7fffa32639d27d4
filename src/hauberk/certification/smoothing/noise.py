"""Gaussian noise for randomised smoothing that is sound in floating point.

``x + σn`` computed in floats takes other values than ``x' + σn`` does, and a network could tell by them which input it was, so
that what was counted at x would say nothing of x' (Voráček and Hein 2023, Sound randomized smoothing in floating-point
arithmetics). So the noisy input is rounded to a grid that is much coarser than floats: a network behind such a rounding is a
function of the real number ``x + σn``, as the theorem wants it. What is left is how far the draws on the grid are from those of
true Gaussian noise, which :func:`sampling_error` bounds.
"""

import math

from torch import Tensor

from hauberk.core.random import ExampleRng

_STEPS = 7  # the grid has 2⁷ to 2⁸ steps in σ: noise changes by a thousandth of itself, error bounds stay small
_HALF_ULP = 2.0**-53  # rounding of one operation in float64, and the distance of the uniform draws


def grid_step(sigma: float) -> float:
    """The distance of the grid's points, a power of two."""
    return 2.0 ** (math.floor(math.log2(sigma)) - _STEPS)


def noisy_inputs(x: Tensor, sigma: float, rng: ExampleRng, draw: Tensor) -> Tensor:
    """Return x + σn on the grid, (R, ...) float64.

    Args:
        x: inputs, (R, ...).
        sigma: σ.
        rng: draws keyed by example, of R examples.
        draw: which draw of its example each is, (R,) int64.
    """
    exact, step = x.double(), grid_step(sigma)
    return (rng.normal(exact, draw).mul_(sigma).add_(exact) / step).round_().mul_(step)


def sampling_error(x: Tensor, sigma: float) -> Tensor:
    """Bound how far the draws are from Gaussian noise rounded to the grid, (B,) float64: a total variation distance.

    No probability of a class differs by more. A feature that lies on the grid has its value by where ``x + σn`` falls among the
    midpoints of the grid; each midpoint is off by the distance of the uniform draws, 2⁻⁵³, and by the rounding of the inverse
    distribution function (8 ulps are allowed for, 2.2 were measured), of the product and of the sum, times the density there.
    Summed over the midpoints, where density is, that is less than ``2⁻⁵³ (25 + |x| / σ)`` times the steps in σ, of which four
    times are taken. Draws are taken to be uniform and independent, as those of any generator are.

    Args:
        x: inputs, (B, ...).
        sigma: σ.
    """
    features, furthest = x[0].numel(), x.double().flatten(1).abs().amax(1)
    return features * 4 * _HALF_ULP * (sigma / grid_step(sigma)) * (25 + furthest / sigma)
