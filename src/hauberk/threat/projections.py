"""Exact projections on rows: onto a unit ball cut with a box that contains 0, and onto a hyperplane within a box (FAB).

The ball's work on ``v`` (B, D) and bounds ``lo ≤ 0 ≤ hi`` of the same shape. Both problems have one multiplier per row
and are piecewise simple in it between breakpoints, so sorting the breakpoints gives the solution with no iteration and
no host synchronisation. Sums run in float64, because many small terms meet few large ones.

The hyperplane's solve ``min ‖d‖_p : w·d = gap, -below ≤ d ≤ above`` for normals ``w`` (B, D), gaps (B,) and how far each
coordinate may go down and up (B, D), at least 0; where there is no solution they return the nearest corner, (B, D).
"""

import torch
from torch import Tensor

_NEWTON = 20  # steps at most; the functions are concave and piecewise linear, so few are needed
_CLOSE = 0.3  # times the root of the numbers' rounding: 1e-4 in float32, 4e-9 in float64


def project_l2_box(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
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


def project_l1_box(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
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


def hyperplane_linf(w: Tensor, gap: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Nearest points in L∞."""
    sign, room = _room(w, gap, below, above)
    return torch.minimum(_solve_lambda(w.abs(), gap.abs(), room)[:, None], room) * sign


def hyperplane_l2(w: Tensor, gap: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Nearest points in L2."""
    sign, room = _room(w, gap, below, above)
    size = w.abs()
    ends = (room / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(torch.finfo(size.dtype).max / 4)
    return torch.minimum(_solve_lambda(size.square(), gap.abs(), ends)[:, None] * size, room) * sign


def hyperplane_l1(w: Tensor, gap: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Nearest points in L1."""
    sign, room = _room(w, gap, below, above)
    return _fill_greedily(w.abs(), gap.abs(), room) * sign


def _room(w: Tensor, gap: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of each coordinate's change, and how far it may go that way."""
    sign = (w * gap.sign()[:, None]).sign()
    # On a CPU several times faster than torch.where with a mask of single elements.
    return sign, torch.maximum(sign * above, -sign * below)


def _solve_lambda(slopes: Tensor, need: Tensor, ends: Tensor) -> Tensor:
    """Find λ with ``Σ slopes_j min(λ, ends_j) = need``, (B,), by Newton from below."""
    limits = torch.finfo(slopes.dtype)
    level = need / slopes.sum(1).clamp_min(limits.tiny)
    done = torch.zeros_like(need, dtype=torch.bool)
    for _ in range(_NEWTON):
        reached = torch.minimum(ends, level[:, None])
        lack = need - torch.linalg.vecdot(slopes, reached)
        # A row that has arrived stays, so that it does not matter how long the others take.
        done = done | (lack <= _CLOSE * limits.eps**0.5 * need)
        if done.device.type == "cpu" and bool(done.all()):
            break
        slope = torch.linalg.vecdot(slopes, (ends - reached).sign_())  # of what still moves
        level = torch.where(done, level, (level + lack / slope.clamp_min(limits.tiny)).clamp_max(limits.max / 4))
    return level


def _fill_greedily(size: Tensor, need: Tensor, room: Tensor) -> Tensor:
    """Use up the room of the steepest coordinates first."""
    steep, order = size.sort(dim=1, descending=True)
    most = steep * room.gather(1, order)  # what each could contribute
    used = torch.minimum(most, (need[:, None] - (most.cumsum(1) - most)).clamp_min(0))
    moved = used / steep.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.zeros_like(size).scatter(1, order, moved)
