"""FeasibleSet: the sets of a threat model laid around one batch, and how to move in them."""

import math
from copy import copy
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.core.random import ExampleRng
from hauberk.threat.projections import onto_l1, onto_l2

Norm: TypeAlias = Literal["Linf", "L2", "L1"]

# An L1 step of steepest ascent moves one coordinate. On images that is slow: like SLIDE (Tramèr and Boneh 2019), it is
# spread over the best 1 % of the coordinates, which is one coordinate for up to 100 features.
L1_STEP_SHARE = 0.01


class FeasibleSet:
    """The sets ``S(x_i)`` of a batch: what :meth:`ThreatModel.around` returns.

    Args:
        x: clean inputs, (B, ...).
        norm: of the ball.
        radius: ε, a float or a tensor that broadcasts to one example, or one for each, (B, ...); 0 where a feature is frozen.
        low: lower bound of the box, likewise.
        high: upper bound of the box, likewise.
    """

    def __init__(self, x: Tensor, norm: Norm, radius: float | Tensor, low: float | Tensor, high: float | Tensor):
        self.x = x
        self.norm = norm
        self.radius = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
        self.low = torch.as_tensor(low, dtype=x.dtype, device=x.device)
        self.high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
        # In every norm no coordinate moves by more than its radius, so these bounds lose nothing; in L∞ they are the set.
        self.lower = torch.maximum(_toward(x, x - self.radius, self.radius), self.low)
        self.upper = torch.minimum(_toward(x, x + self.radius, self.radius), self.high)

    def rows(self, index: Tensor) -> "FeasibleSet":
        """Return the sets of some of the examples. index: (b,) int64."""
        part = copy(self)
        part.x, part.lower, part.upper = self.x[index], self.lower[index], self.upper[index]
        part.radius, part.low, part.high = (
            value[index] if value.ndim == self.x.ndim else value for value in (self.radius, self.low, self.high)
        )
        return part

    def put(self, places: Tensor, new: "FeasibleSet") -> "FeasibleSet":
        """Return these sets with those of some examples replaced. places: (b,) int64, new: sets of b examples."""
        whole = copy(self)
        whole.x, whole.lower, whole.upper = (
            old.index_copy(0, places, value)
            for old, value in ((self.x, new.x), (self.lower, new.lower), (self.upper, new.upper))
        )
        whole.radius, whole.low, whole.high = (
            old.index_copy(0, places, value) if old.ndim == self.x.ndim else old
            for old, value in ((self.radius, new.radius), (self.low, new.low), (self.high, new.high))
        )
        return whole

    def shrunk(self, share: Tensor) -> "FeasibleSet":
        """Return the sets with ε of each example times its share. share: (B,) in [0, 1]."""
        radius = self.radius * share.to(self.x.dtype).view(-1, *[1] * (self.x.ndim - 1))
        return FeasibleSet(self.x, self.norm, radius, self.low, self.high)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest points inside (in the scaled coordinates where ε is per feature). (B, ...) -> (B, ...)."""
        if self.norm == "Linf":
            return torch.minimum(torch.maximum(point, self.lower), self.upper)
        onto = onto_l2 if self.norm == "L2" else onto_l1
        moved = onto(self._scaled(point), self._scaled(self.lower), self._scaled(self.upper))
        change = moved.view_as(self.x) * self.radius
        inside = _toward(self.x, self.x + change, change.abs())
        return torch.minimum(torch.maximum(inside, self.lower), self.upper)

    def random(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw points uniformly in the ball, then project them into the box. Returns (B, ...)."""
        if self.norm == "Linf":
            return self.project(self.x + self.radius * (2 * rng.uniform(self.x, tag) - 1))
        # A direction uniform on the unit sphere of the norm, and a length with density ∝ r^(d-1).
        free = (self.radius > 0).expand_as(self.x).flatten(1)
        if self.norm == "L2":
            direction = rng.normal(self.x, tag).flatten(1) * free
            direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-30)
        else:
            sign = torch.where(rng.uniform(self.x, tag) < 0.5, -1.0, 1.0).to(self.x.dtype).flatten(1)
            direction = -(1 - rng.uniform(self.x, tag + 1)).log().flatten(1) * sign * free
            direction = direction / direction.abs().sum(1, keepdim=True).clamp_min(1e-30)
        dims = free.sum(1, keepdim=True).clamp_min(1)
        length = rng.uniform(self.x.new_empty(len(self.x), 1), tag + 2) ** (1 / dims)
        return self.project(self.x + (direction * length).to(self.x.dtype).view_as(self.x) * self.radius)

    def step(self, point: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
        """Take one projected step of steepest ascent.

        Args:
            point: where we are, inside, (B, ...).
            grad: gradient of what is to be maximised, (B, ...).
            size: step length in the units of the input: a float, or one per feature. In L2 and L1 with one ε per feature, a
                float is the length along the feature with the largest ε, and less along the others in proportion.

        Returns:
            ``Π(point + size · argmax_{‖d‖ ≤ 1} ⟨grad, d⟩)``, (B, ...). A zero gradient moves nothing.
        """
        if self.norm == "Linf":
            return self.project(point + size * grad.sign())
        slope = (grad * self.radius).flatten(1)  # the gradient in scaled coordinates, 0 where frozen
        peak = slope.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        slope = slope / peak  # so that squares of tiny gradients do not vanish
        if self.norm == "L2":
            direction = slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        else:
            direction = self._sparse(point, slope)
        if not isinstance(size, Tensor) and self.radius.ndim:  # a step of that size along the widest axis of the ball
            size = size * self.radius / self.radius.amax().clamp_min(1e-30)
        return self.project(point + size * direction.view_as(point))

    def audit(self, point: Tensor) -> Tensor:
        """By how much each point leaves the set, in the units of the input, computed in float64.

        Returns:
            (B,): the larger of the excess over the ball (``max_j |δ_j| - ε_j`` in L∞; ``(‖δ/ε‖_p - 1)·max ε`` in L2 and
            L1, where a change of a frozen feature counts in full) and the excess over the box; 0 inside; NaN or
            infinity if the point is not finite.
        """
        x, point = self.x.double().flatten(1), point.double().flatten(1)
        radius = self._rows(self.radius).double()
        change = (point - x).abs()
        if self.norm == "Linf":
            ball = (change - radius).amax(1)
        else:
            frozen = torch.where(radius > 0, 0.0, change).amax(1)
            scaled = torch.where(radius > 0, change / radius.clamp_min(1e-300), 0.0)
            length = scaled.norm(p=self._p, dim=1)
            ball = torch.maximum((length - 1) * radius.amax(1), frozen)
        below, above = self._rows(self.low).double() - point, point - self._rows(self.high).double()
        excess = torch.maximum(ball, torch.maximum(below, above).amax(1))
        return torch.where(excess > 0, excess, excess * 0)  # keeps NaN

    def contains(self, point: Tensor) -> Tensor:
        """Say which points are inside up to the rounding error of storing them. (B, ...) -> (B,) bool."""
        rounding = torch.finfo(self.x.dtype).eps * torch.maximum(self.x.abs(), point.abs()).double().flatten(1)
        if self.norm == "Linf":
            return self.audit(point) <= 2 * rounding.amax(1)
        radius = self._rows(self.radius).double()
        scaled = torch.where(radius > 0, rounding / radius.clamp_min(1e-300), 0.0).norm(p=self._p, dim=1)
        relative = 8 * torch.finfo(self.x.dtype).eps  # of computing the norm itself
        allowed: Tensor = (scaled + relative) * radius.amax(1) + 2 * rounding.amax(1)
        return self.audit(point) <= allowed

    @property
    def scale(self) -> Tensor:
        """What changes are divided by to be in units of ε: ε, or 1 where a feature is frozen."""
        return torch.where(self.radius > 0, self.radius, torch.ones_like(self.radius))

    @property
    def _p(self) -> int:
        return 1 if self.norm == "L1" else 2

    def _rows(self, value: Tensor) -> Tensor:
        return value.expand_as(self.x).flatten(1)

    def _scaled(self, point: Tensor) -> Tensor:
        """Return (B, D) offsets from x in units of ε; 0 where frozen."""
        return torch.where(self.radius > 0, (point - self.x) / self.scale, torch.zeros_like(point)).flatten(1)

    def _sparse(self, point: Tensor, slope: Tensor) -> Tensor:
        """Spread a unit L1 step over the steepest coordinates that the bounds still let move."""
        toward = torch.where(slope > 0, self.upper.flatten(1), self.lower.flatten(1))
        movable = slope.abs() * (toward != point.flatten(1))
        count = math.ceil(L1_STEP_SHARE * slope.shape[1])
        best = movable.topk(count, dim=1)
        moved = (best.values > 0).to(slope.dtype)
        share = moved / moved.sum(1, keepdim=True).clamp_min(1)
        return torch.zeros_like(slope).scatter(1, best.indices, share) * slope.sign()


def _toward(x: Tensor, point: Tensor, reach: Tensor) -> Tensor:
    """Where rounding has carried ``point`` further from ``x`` than ``reach``, go back to the next float."""
    return torch.where((point - x).abs() > reach, torch.nextafter(point, x), point)
