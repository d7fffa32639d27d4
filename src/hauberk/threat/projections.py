"""Exact projections on rows: onto a unit ball cut with a box that contains 0, and onto a hyperplane within a box (FAB).

The ball's work on ``v`` (B, D) and bounds ``lo ≤ 0 ≤ hi`` of the same shape. The hyperplane's solve ``min ‖d‖_p : w·d = gap,
-below ≤ d ≤ above`` for normals ``w`` (B, D), gaps (B,) and how far each coordinate may go down and up (B, D), at least 0;
where there is no solution they return the nearest corner, (B, D).

Each problem has one multiplier per row, in which it is monotone and piecewise simple. Newton finds it to the rounding of the
dtype, in two to five steps on images. On a CPU rows that have arrived are left out; a GPU, which the host does not wait for,
takes all rows through a fixed number of steps, in which they stay. Either way no row depends on how long the others take.

Elements are never chosen by a mask: where a mask has no order, ``torch.where`` takes ten times as long as arithmetic on a CPU.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hauberk.core.device import constant

_NEWTON = 20  # steps at most for a concave function, where few are needed; and on a GPU
_BRACKETED = 150  # otherwise; from the sixth on, every other halves the number of floats that come into question
_ROUNDING = 4  # times eps, of a sum
_LARGEST_GROWTH = 1e30  # of a square in one step: up to here no sum can overflow
_OPEN = 1e15  # in place of an infinite bound
_CLOSE = 0.3  # times the root of the numbers' rounding: 1e-4 in float32, 4e-9 in float64


def project_l2_box(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₂ ≤ 1, lo ≤ u ≤ hi`` for each row.

    The KKT conditions give ``u = clip(t·v, lo, hi)`` with the largest t ≤ 1 that keeps ``‖u‖ ≤ 1``. As ``‖u‖²`` is concave and
    piecewise linear in t², Newton on t² comes to that t from below; its first step, from above, goes below.
    """
    return _project(_onto_sphere, 2, v, lo, hi)


def project_l1_box(v: Tensor, lo: Tensor, hi: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    """Solve ``min ‖u - v‖ : ‖u‖₁ ≤ radius, lo ≤ u ≤ hi`` for each row; radius: of all, or (B, 1).

    ``|u_j| = clip(|v_j| - λ, 0, b_j)`` with the least λ ≥ 0 that keeps the sum within the radius. The sum falls in λ and is
    piecewise linear, but neither convex nor concave: Newton within a bracket.
    """
    return _project(_onto_simplex, 1, v, lo, hi, radius)


def _project(onto: Callable[..., Tensor], p: int, v: Tensor, lo: Tensor, hi: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    """Clip rows that lie in the ball then, and bring the others ``onto`` its surface; in float32 or float64."""
    dtype, (v, lo, hi) = v.dtype, (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (v, lo, hi))
    clipped = v.clamp(lo, hi)
    radius = constant(radius, v.dtype, v.device).expand(len(v), 1)
    length = torch.linalg.vector_norm(clipped, p, 1, keepdim=True)
    parts = v, lo, hi, radius, length
    if v.device.type != "cpu":
        return torch.where(length > radius, onto(*parts), clipped).to(dtype)
    rows = (length > radius).squeeze(1).nonzero().squeeze(1)
    if len(rows) == len(v):
        clipped = onto(*parts)
    elif len(rows):
        clipped.index_copy_(0, rows, onto(*(part.index_select(0, rows) for part in parts)))
    return clipped.to(dtype)


def _onto_sphere(v: Tensor, lo: Tensor, hi: Tensor, _: Tensor, length: Tensor) -> Tensor:
    eps, tiny = torch.finfo(v.dtype).eps, torch.finfo(v.dtype).tiny
    least = (v.abs().amax(1, keepdim=True).clamp_min(tiny) * v.shape[1] ** 0.5).reciprocal()  # where ‖t·v‖ ≤ 1

    def newton(step: int, t: Tensor, v: Tensor, lo: Tensor, hi: Tensor, least: Tensor) -> tuple[Tensor, list[Tensor]]:
        u = (v * t).clamp_(lo, hi)
        lack = 1 - torch.linalg.vecdot(u, u)[:, None]
        room = (hi - u).clamp_max_(u - lo)
        moving = torch.linalg.vecdot(u, room.sign_().mul_(u))[:, None]
        growth = (1 + lack / moving.clamp_min(tiny)).clamp_(0, _LARGEST_GROWTH).sqrt_()
        done = lack.abs() <= 2 * _ROUNDING * eps
        return done, [torch.where(done, t, torch.maximum(t * growth, least))]

    # The length of the clipped point, which is at least 1, shrinks no faster than t.
    t = _iterate(newton, [length.reciprocal()], (v, lo, hi, least), _NEWTON)
    u = (v * t).clamp_(lo, hi)
    return u.div_(torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min_(1))


def _onto_simplex(v: Tensor, lo: Tensor, hi: Tensor, radius: Tensor, _: Tensor) -> Tensor:
    sign = v.sign()  # folded away until the end
    size, bound = v.abs(), (hi.clamp_max(_OPEN) * sign).clamp_min_(lo.clamp_min(-_OPEN) * sign)
    eps, bits = torch.finfo(size.dtype).eps, torch.int64 if size.dtype == torch.float64 else torch.int32

    def newton(
        step: int, level: Tensor, low: Tensor, high: Tensor, size: Tensor, bound: Tensor, radius: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        u = (size - level).clamp_min_(0).clamp_max_(bound)
        excess = u.sum(1, keepdim=True) - radius
        moving = (bound - u).mul_(u).sign_().sum(1, keepdim=True)
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        between = high.view(bits) - low.view(bits)
        done = (excess.abs() <= _ROUNDING * eps * (radius + moving * level)) | (between <= 1)
        middle = (low.view(bits) + between // 2).view(low.dtype)
        new = level + excess / moving
        if step < 6 or step % 2:
            middle = torch.where((new > low) & (new < high), new, middle)
        return done, [torch.where(done, level, middle), low, high]

    high = size.amax(1, keepdim=True)
    start = [torch.zeros_like(high), torch.zeros_like(high), high]
    level = _iterate(newton, start, (size, bound, radius), _BRACKETED if v.device.type == "cpu" else _NEWTON)
    u = (size - level).clamp_min_(0).clamp_max_(bound)
    return u.div_((u.sum(1, keepdim=True) / radius).clamp_min_(1)).mul_(sign)


def _iterate(
    update: Callable[..., tuple[Tensor, list[Tensor]]], state: list[Tensor], given: Sequence[Tensor], steps: int
) -> Tensor:
    """Return the first of the numbers of each row, (B, 1), that ``update`` has brought to rest.

    It takes the step, these numbers and what is ``given`` of the rows, and returns which rows have arrived, and the next
    numbers; of a row that has arrived the first stays the same.
    """
    on_cpu = state[0].device.type == "cpu"
    found, rows = state[0].clone(), torch.arange(len(state[0]) if on_cpu else 0)
    for step in range(steps):
        done, state = update(step, *state, *given)
        if not on_cpu:
            continue
        found.index_copy_(0, rows, state[0])
        left = (~done).squeeze(1).nonzero().squeeze(1)
        if not len(left):
            break
        if 2 * len(left) < len(rows):
            rows, state, given = rows[left], *([one.index_select(0, left) for one in part] for part in (state, given))
    return found if on_cpu else state[0]


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
