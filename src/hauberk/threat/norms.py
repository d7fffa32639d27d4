"""Norms as objects: all that a threat model or an attack asks of one.

Changes are rows, (B, D), in units of ε where it says so. Another norm is another instance; ``ThreatModel(norm=...)`` takes it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.random import ExampleRng
from hauberk.threat.projections import hyperplane_l1, hyperplane_l2, hyperplane_linf, project_l1_box, project_l2_box

# An L1 step of steepest ascent moves one coordinate. On images that is slow: like SLIDE (Tramèr and Boneh 2019), it is
# spread over the best 1 % of the coordinates, which is one coordinate for up to 100 features.
L1_STEP_FRACTION = 0.01
_DUAL_STEPS = 8  # of Newton; three to five are enough
_LARGEST_GROWTH = 1e30  # of a multiplier's square in one of them


class Norm:
    """An L_p norm; subclass it for another.

    Attributes:
        name: as it is written in cards and on the command line.
        p: its order.
        is_box: whether the ball is a box, so that bounds of single coordinates describe it (L∞ only); then nobody asks for
            ``project`` and ``steepest``.
        feasible_set: class of the sets that a threat model lays around inputs; None for the usual one.
    """

    name: str
    p: float
    is_box: bool = False
    feasible_set: type | None = None

    @property
    def dual(self) -> "Norm":
        """The norm with ``1/p + 1/q = 1``."""
        return next(norm for norm in NORMS.values() if 1 / self.p + 1 / norm.p == 1)

    def length(self, change: Tensor) -> Tensor:
        """Length along the last dimension. (..., D) -> (...)."""
        length: Tensor = change.norm(p=self.p, dim=-1)
        return length

    def project(self, change: Tensor, low: Tensor, high: Tensor, /) -> Tensor:
        """Nearest points (in L2 distance) of the unit ball cut with the box ``low ≤ 0 ≤ high``. All (B, D)."""
        raise NotImplementedError

    def within(self, change: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Nearest points of the ball of a ``radius`` (B, 1), above 0, cut with the box. Others (B, D), in the radius' units."""
        return radius * self.project(change / radius, low / radius, high / radius)

    def steepest(self, slope: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Direction of length 1 along which a function with this slope rises most; points and bounds (B, D) likewise."""
        raise NotImplementedError

    def sample(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        """Draw changes uniformly in the unit ball, (B, ...) as ``like``; 0 where ``free`` (B, D) is False."""
        raise NotImplementedError

    def sample_far(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        """Draw changes as AutoAttack starts: one coordinate at 1 (L∞), otherwise on the unit sphere of L2."""
        raise NotImplementedError

    def onto_hyperplane(self, normal: Tensor, gap: Tensor, below: Tensor, above: Tensor, /) -> Tensor:
        """Shortest d with ``normal·d = gap`` and ``-below ≤ d ≤ above``; the nearest corner where there is none. (B, D)."""
        raise NotImplementedError

    def lowest_linear(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """A lower bound of ``min slope·d`` over the unit ball cut with the box ``low ≤ d ≤ high``, as near as it can be had.

        What certificates are made with; not all norms have it. (..., D) each -> (...).
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


class _Linf(Norm):
    name, p, is_box = "Linf", math.inf, True
    onto_hyperplane = staticmethod(hyperplane_linf)

    def length(self, change: Tensor) -> Tensor:
        return change.abs().amax(-1)

    def within(self, change: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(change, torch.maximum(low, -radius)), torch.minimum(high, radius))

    def lowest_linear(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The least value, which a corner of the box has: its bounds lie in the ball already."""
        return torch.minimum(slope * low, slope * high).sum(-1)

    def sample(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        return 2 * rng.uniform(like, tag) - 1

    def sample_far(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        draws = (2 * rng.uniform(like, tag) - 1).flatten(1)
        return (draws / self.length(draws)[:, None].clamp_min(1e-12)).view_as(like)


class _Smooth(Norm):
    """L2 and L1: a point of the ball is a direction and a length."""

    def _direction(self, rng: ExampleRng, like: Tensor, tag: int | Tensor) -> Tensor:
        """Draws whose direction is uniform on the sphere of the norm, (B, D)."""
        raise NotImplementedError

    def sample(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        direction = self._direction(rng, like, tag) * free
        direction = direction / self.length(direction)[:, None].clamp_min(1e-30)
        dims = free.sum(1, keepdim=True).clamp_min(1)
        length = rng.uniform(like.new_empty(len(like), 1), tag + 2) ** (1 / dims)  # of density ∝ r^(d-1)
        return (direction * length).to(like.dtype).view_as(like)

    def sample_far(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        return F.normalize(rng.normal(like, tag).flatten(1) * free, dim=1).view_as(like)


class _L2(_Smooth):
    name, p = "L2", 2.0
    project = staticmethod(project_l2_box)
    onto_hyperplane = staticmethod(hyperplane_l2)

    def steepest(self, slope: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return F.normalize(slope, dim=1)

    def lowest_linear(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The value of the dual ``g(λ) = -λ/2 + Σ min_{low ≤ d_j ≤ high} (slope_j d_j + λ d_j²/2)``, a bound for every λ > 0.

        It starts at ``λ = ‖slope‖``, the best one without the box, where it is no worse than the dual norm's bound. Newton on
        the length of the minimiser ``clip(-slope/λ)``, as in ``project_l2_box``, goes down to the best λ, and the value up.
        """
        tiny = torch.finfo(slope.dtype).tiny
        with torch.no_grad():
            level = self.length(slope.detach())[..., None].clamp_min(tiny)
            for _ in range(_DUAL_STEPS):
                free = slope / -level
                d = free.clamp(low, high)
                square = torch.linalg.vecdot(d, d)[..., None]
                moving = torch.linalg.vecdot(d, d * (d == free))[..., None]
                growth = 1 + (1 - square).clamp_min_(0) / moving.clamp_min_(tiny)
                level = (level / growth.clamp_max(_LARGEST_GROWTH).sqrt_()).clamp_min_(tiny)
                # The value is flat at the best λ: an error of 1e-5 in λ costs 1e-10.
                if slope.device.type == "cpu" and bool((growth < 1 + 1e-5).all()):
                    break
        d = (slope / -level).clamp(low, high)
        value: Tensor = torch.linalg.vecdot(slope.expand_as(d), d) + level[..., 0] / 2 * (torch.linalg.vecdot(d, d) - 1)
        return value

    def _direction(self, rng: ExampleRng, like: Tensor, tag: int | Tensor) -> Tensor:
        return rng.normal(like, tag).flatten(1)


class _L1(_Smooth):
    name, p = "L1", 1.0
    project = staticmethod(project_l1_box)
    onto_hyperplane = staticmethod(hyperplane_l1)

    def length(self, change: Tensor) -> Tensor:
        return change.abs().sum(-1)

    def lowest_linear(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The value of the dual ``g(λ) = -λ - Σ room_j max(gain_j - λ, 0)`` at the best λ, the least gain that still fits.

        Gains are what a unit of each coordinate is worth and rooms how far it may go: the best coordinates are used up first.
        A coordinate whose bounds are both on one side of 0 goes to the nearer one in any case.
        """
        base = torch.zeros_like(slope).clamp(low, high)
        low, high = (low - base).clamp_max(0), (high - base).clamp_min(0)
        room = torch.where(slope > 0, -low, high)
        gain = slope.abs()
        sorted_gain, order = gain.detach().sort(-1, descending=True)
        used = room.expand_as(gain).gather(-1, order).cumsum(-1)
        last = (used < 1).sum(-1, keepdim=True)  # all before it fit entirely
        padded = torch.cat([sorted_gain, torch.zeros_like(sorted_gain[..., :1])], -1)
        level = padded.gather(-1, last)
        return (slope * base).sum(-1) - level[..., 0] - (room * (gain - level).clamp_min(0)).sum(-1)

    def steepest(self, slope: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Spread a unit step over the steepest coordinates that the bounds still let move."""
        movable = slope.abs() * (torch.where(slope > 0, high, low) != point)
        best = movable.topk(math.ceil(L1_STEP_FRACTION * slope.shape[1]), dim=1)
        moved = (best.values > 0).to(slope.dtype)
        part = moved / moved.sum(1, keepdim=True).clamp_min(1)
        return torch.zeros_like(slope).scatter(1, best.indices, part) * slope.sign()

    def _direction(self, rng: ExampleRng, like: Tensor, tag: int | Tensor) -> Tensor:
        sign = torch.where(rng.uniform(like, tag) < 0.5, -1.0, 1.0).to(like.dtype).flatten(1)
        return -(1 - rng.uniform(like, tag + 1)).log().flatten(1) * sign


NORMS: dict[str, Norm] = {norm.name: norm for norm in (_Linf(), _L2(), _L1())}
