"""Nearest points of a hyperplane within a box, in each norm: what FAB moves by."""

import torch
from torch import Tensor

from hauberk.threat import Norm

_NEWTON = 20  # steps at most; the functions are concave and piecewise linear, so few are needed
_CLOSE = 0.3  # times the root of the numbers' rounding: 1e-4 in float32, 4e-9 in float64


def onto_hyperplane(norm: Norm, w: Tensor, gap: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Solve ``min ‖d‖_p : w·d = gap, -below ≤ d ≤ above`` for each row; the nearest corner where there is no solution.

    Args:
        norm: p.
        w: normals, (B, D).
        gap: (B,).
        below: how far each coordinate may go down, (B, D), at least 0.
        above: how far up, likewise.

    Returns:
        d, (B, D).
    """
    sign = (w * gap.sign()[:, None]).sign()
    # The side that the sign points to; on a CPU several times faster than torch.where with a mask of single elements.
    room = torch.maximum(sign * above, -sign * below)
    size, need = w.abs(), gap.abs()
    if norm == "L1":
        return _fill(size, need, room) * sign
    if norm == "L2":
        ends = (room / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(torch.finfo(size.dtype).max / 4)
        return torch.minimum(_level(size.square(), need, ends)[:, None] * size, room) * sign
    return torch.minimum(_level(size, need, room)[:, None], room) * sign


def _level(slopes: Tensor, need: Tensor, ends: Tensor) -> Tensor:
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


def _fill(size: Tensor, need: Tensor, room: Tensor) -> Tensor:
    """L1: use up the room of the steepest coordinates first."""
    steep, order = size.sort(dim=1, descending=True)
    most = steep * room.gather(1, order)  # what each could contribute
    used = torch.minimum(most, (need[:, None] - (most.cumsum(1) - most)).clamp_min(0))
    moved = used / steep.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.zeros_like(size).scatter(1, order, moved)
