"""Exact Euclidean projections onto a unit ball cut with a box that contains 0.

Both work on rows: ``v`` (B, D) and bounds ``lo ≤ 0 ≤ hi`` of the same shape. Both problems have one multiplier per row
and are piecewise simple in it between breakpoints, so sorting the breakpoints gives the solution with no iteration and
no host synchronisation. Sums run in float64, because many small terms meet few large ones.
"""

import torch
from torch import Tensor


def onto_l2(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₂ ≤ 1, lo ≤ u ≤ hi`` for each row.

    The KKT conditions give ``u = clip(t·v, lo, hi)`` with the largest t ≤ 1 that keeps ``‖u‖ ≤ 1``. Coordinate j reaches
    its bound b_j at ``t_j = b_j / |v_j|``; between two such t the squared norm is ``c + t²·r``.
    """
    size, bound = _size_and_bound(v, lo, hi)
    order = (bound / size.clamp_min(1e-300)).sort(dim=1)
    at = order.values
    size2, bound2 = (a.square().gather(1, order.indices) for a in (size, bound))
    saturated = bound2.cumsum(1)
    moving = size2.flip(1).cumsum(1).flip(1) - size2  # of the coordinates after this breakpoint
    inside = saturated + at.square() * moving <= 1
    last = inside.sum(1, keepdim=True)  # how many coordinates sit at their bounds in the solution
    used = torch.cat([torch.zeros_like(at[:, :1]), saturated], 1).gather(1, last)
    rest = torch.cat([size2.sum(1, keepdim=True), moving], 1).gather(1, last)
    t = ((1 - used).clamp_min(0) / rest.clamp_min(1e-300)).sqrt().clamp_max(1.0)
    solved = torch.minimum(torch.maximum(v.double() * t, lo.double()), hi.double())
    kept: Tensor = solved / solved.norm(dim=1, keepdim=True).clamp_min(1)  # rounding may have left the ball
    return kept.to(v.dtype)


def onto_l1(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₁ ≤ 1, lo ≤ u ≤ hi`` for each row.

    ``|u_j| = clip(|v_j| - λ, 0, b_j)`` with the least λ ≥ 0 that keeps the sum ≤ 1. Going down from a large λ, coordinate
    j starts to grow at ``λ = |v_j|`` and stops at ``λ = |v_j| - b_j``.
    """
    size, bound = _size_and_bound(v, lo, hi)
    ones = torch.ones_like(size)
    at, order = torch.cat([size, size - bound], 1).sort(dim=1, descending=True)
    growing = torch.cat([ones, -ones], 1).gather(1, order).cumsum(1)  # slope just below each breakpoint
    gain = torch.cat([torch.zeros_like(at[:, :1]), growing[:, :-1] * (at[:, :-1] - at[:, 1:])], 1)
    total = gain.cumsum(1)  # ‖u‖₁ at each breakpoint
    last = (total <= 1).sum(1, keepdim=True) - 1
    slope = growing.gather(1, last).clamp_min(1)  # 0 only beyond the last breakpoint, where the sum is constant
    threshold = at.gather(1, last) - (1 - total.gather(1, last)) / slope
    grown = torch.minimum((size - threshold.clamp_min(0)).clamp_min(0), bound)
    return (grown / grown.sum(1, keepdim=True).clamp_min(1) * v.sign()).to(v.dtype)


def _size_and_bound(v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the signs away: |v| and how far each coordinate may go in the direction of v."""
    return v.abs().double(), torch.where(v > 0, hi, -lo).double()
