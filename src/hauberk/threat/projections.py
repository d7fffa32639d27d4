"""Exact projections on rows: onto a unit ball cut with a box that contains 0, and onto a hyperplane within a box (FAB).

The ball's work on ``v`` (B, D) and bounds ``lo ≤ 0 ≤ hi`` of the same shape. The hyperplane's solve ``min ‖d‖_p : w·d = gap,
-below ≤ d ≤ above`` for normals ``w`` (B, D), gaps (B,) and how far each coordinate may go down and up (B, D), at least 0;
where there is no solution they return the nearest corner, (B, D).

Each problem has one multiplier per row, in which it is monotone and piecewise simple. Newton finds it to the rounding of the
dtype, in two to five steps on images. A row that has arrived stays, so that it does not matter how long the others take. A GPU,
which the host does not wait for, takes a fixed number of steps.

Elements are never chosen by a mask: where a mask has no order, ``torch.where`` takes ten times as long as arithmetic on a CPU.
"""

import torch
from torch import Tensor

_NEWTON = 20  # steps at most for a concave function, where few are needed; and on a GPU
_BRACKETED = 150  # otherwise; from the sixth on, every other halves the number of floats that come into question
_ROUNDING = 4  # times eps, of a sum
_LARGEST_GROWTH = 1e30  # of a square in one step: up to here no sum can overflow
_OPEN = 1e15  # in place of an infinite bound
_CLOSE = 0.3  # times the root of the numbers' rounding: 1e-4 in float32, 4e-9 in float64


def project_l2_box(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₂ ≤ 1, lo ≤ u ≤ hi`` for each row.

    The KKT conditions give ``u = clip(t·v, lo, hi)`` with the largest t ≤ 1 that keeps ``‖u‖ ≤ 1``. As ``‖u‖²`` is concave and
    piecewise linear in t², Newton on t² comes to that t from below; its first step, from t = 1, goes below.
    """
    size, bound = _size_and_bound(v, lo, hi)
    eps, tiny = torch.finfo(size.dtype).eps, torch.finfo(size.dtype).tiny
    least = (size.amax(1, keepdim=True).clamp_min(tiny) * size.shape[1] ** 0.5).reciprocal()  # where ‖t·v‖ ≤ 1
    t, done = torch.ones_like(least), torch.zeros_like(least, dtype=torch.bool)
    for step in range(_NEWTON):
        u = torch.minimum(size * t, bound)
        squared = torch.linalg.vecdot(u, u)[:, None]
        done = done | ((1 - squared).abs() <= 2 * _ROUNDING * eps) if step else squared <= 1
        if step == _NEWTON - 1 or _stop(done):
            break
        moving = torch.linalg.vecdot(u, (bound - u).sign_().mul_(u))[:, None]
        growth = (1 + (1 - squared) / moving.clamp_min(tiny)).clamp_(0, _LARGEST_GROWTH)
        t = torch.where(done, t, torch.maximum(t * growth.sqrt_(), least))
    kept: Tensor = u / squared.sqrt().clamp_min(1) * v.sign()
    return kept.to(v.dtype)


def project_l1_box(v: Tensor, lo: Tensor, hi: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₁ ≤ radius, lo ≤ u ≤ hi`` for each row; radius: of all, or (B, 1).

    ``|u_j| = clip(|v_j| - λ, 0, b_j)`` with the least λ ≥ 0 that keeps the sum within the radius. The sum falls in λ and is
    piecewise linear, but neither convex nor concave: Newton within a bracket.
    """
    size, bound = _size_and_bound(v, lo, hi)
    eps, bits = torch.finfo(size.dtype).eps, torch.int64 if size.dtype == torch.float64 else torch.int32
    high = size.amax(1, keepdim=True)
    low = level = torch.zeros_like(high)
    done = torch.zeros_like(high, dtype=torch.bool)
    steps = _BRACKETED if v.device.type == "cpu" else _NEWTON
    for step in range(steps):
        u = torch.minimum((size - level).clamp_min_(0), bound)
        excess = u.sum(1, keepdim=True) - radius
        moving = (bound - u).mul_(u).sign_().sum(1, keepdim=True)
        done = done | (excess.abs() <= _ROUNDING * eps * (radius + moving * level)) if step else excess <= 0
        if step == steps - 1 or _stop(done):
            break
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        newton, between = level + excess / moving, high.view(bits) - low.view(bits)
        middle, done = (low.view(bits) + between // 2).view(low.dtype), done | (between <= 1)
        trusted = (newton > low) & (newton < high) if step < 6 or step % 2 else torch.zeros_like(done)
        level = torch.where(done, level, torch.where(trusted, newton, middle))
    kept: Tensor = u / (1 + excess / radius).clamp_min(1) * v.sign()
    return kept.to(v.dtype)


def _stop(done: Tensor) -> bool:
    """Whether all rows have arrived, as far as the host knows without waiting."""
    return done.device.type == "cpu" and bool(done.all())


def _size_and_bound(v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the signs away: |v| and how far each coordinate may go in the direction of v; in float32 or float64."""
    v, lo, hi = (a.to(torch.promote_types(a.dtype, torch.float32)) for a in (v, lo, hi))
    sign = v.sign()
    return v.abs(), torch.maximum(sign * hi.clamp_max(_OPEN), sign * lo.clamp_min(-_OPEN))


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
        done = done | (lack <= _CLOSE * limits.eps**0.5 * need)
        if _stop(done):
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
