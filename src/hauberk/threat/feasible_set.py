"""FeasibleSet: the sets of a threat model laid around one batch, and how to move in them."""

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from hauberk.core.device import constant
from hauberk.core.random import ExampleRng
from hauberk.threat.norms import Norm
from hauberk.threat.one_hot import OneHotGroups


def expand_to(per_example: Tensor, like: Tensor) -> Tensor:
    """View one value per example, (B,), so that it broadcasts with ``like``, (B, ...)."""
    return per_example.view(-1, *[1] * (like.ndim - 1))


class FeasibleSet:
    """The sets ``S(x_i)`` of a batch: what :meth:`ThreatModel.around` returns.

    Args:
        x: clean inputs, (B, ...).
        norm: the norm of the ball.
        radius: ε, a float or a tensor that broadcasts to one example, or one for each, (B, ...); 0 where a feature is frozen.
        low: lower bound of the box, likewise.
        high: upper bound of the box, likewise.
        eps: ε as step sizes refer to it, frozen features or not.
        one_hot: groups of features of which exactly one is 1; None where there are none.
    """

    def __init__(
        self, x: Tensor, norm: Norm, radius: float | Tensor, low: float | Tensor, high: float | Tensor, eps: float | Tensor,
        one_hot: OneHotGroups | None = None,
    ):  # fmt: skip
        self.x = x
        self.norm = norm
        self.one_hot = one_hot
        self.eps = eps
        self.radius, self.low, self.high = (constant(value, x.dtype, x.device) for value in (radius, low, high))
        # In every norm no coordinate moves by more than its radius, so these bounds lose nothing; in L∞ they are the set.
        self.lower = torch.maximum(_clip_rounding(x, x - self.radius, self.radius), self.low)
        self.upper = torch.minimum(_clip_rounding(x, x + self.radius, self.radius), self.high)
        if not norm.is_box:  # the same as changes in units of ε, which every projection needs; 0 where frozen
            self.down, self.up = ((bound - x).div_(self.scale) for bound in (self.lower, self.upper))

    def index_select(self, index: Tensor) -> "FeasibleSet":
        """Return the sets of some of the examples. index: (b,) int64."""
        part = copy(self)
        for name, value in self._per_example():
            setattr(part, name, value[index])
        return part

    def index_copy(self, places: Tensor, new: "FeasibleSet") -> "FeasibleSet":
        """Return these sets with those of some examples replaced. places: (b,) int64, new: sets of b examples."""
        whole = copy(self)
        for name, value in self._per_example():
            setattr(whole, name, value.index_copy(0, places, getattr(new, name)))
        return whole

    def _per_example(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors (B, ...) by name; others, of one example or none, serve the whole batch."""
        dims = self.x.ndim
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Tensor) and value.ndim == dims)

    def with_radius_scaled(self, fraction: Tensor) -> "FeasibleSet":
        """Return the sets with ε of each example, and the steps that refer to it, times its fraction. (B,) in [0, 1]."""
        factor = expand_to(fraction.to(self.x.dtype), self.x)
        return FeasibleSet(self.x, self.norm, self.radius * factor, self.low, self.high, self.eps * factor, self.one_hot)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest points inside (in the scaled coordinates where ε is per feature). (B, ...) -> (B, ...)."""
        if self.norm.is_box:
            return point.clamp(self.lower, self.upper)
        moved = self.norm.project((point - self.x).div_(self.scale).flatten(1), self.down.flatten(1), self.up.flatten(1))
        return self.moved_by(moved).clamp_(self.lower, self.upper)

    def moved_by(self, change: Tensor) -> Tensor:
        """Return the points of the box at changes in units of ε, (B, D) -> (B, ...), rounded so that they go no further."""
        change = change.view_as(self.x) * self.radius
        return _clip_rounding(self.x, self.x + change, change.abs_()).clamp_(self.low, self.high)

    def random(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw points uniformly in the ball, then project them into the box. Returns (B, ...)."""
        return self.project(self.random_in_ball(rng, tag))

    def random_in_ball(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw points uniformly in the ball, inside the box or not. Returns (B, ...)."""
        return self.x + self.radius * self.norm.sample(rng, self.x, self.free, tag)

    def random_far(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw points with one coordinate at ε (L∞), or on the sphere, as AutoAttack starts. Returns (B, ...)."""
        return self.project(self.x + self.radius * self.norm.sample_far(rng, self.x, self.free, tag))

    def random_corner(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw points with every coordinate at one of its bounds, and of a one-hot group one value at its upper. (B, ...)."""
        draws = rng.uniform(self.x, tag)
        up = draws < 0.5
        if self.one_hot is not None:
            up = torch.where(self.one_hot.inside, self.one_hot.largest(draws), up.flatten(1)).view_as(up)
        return torch.where(up, self.upper, self.lower)

    def step(self, point: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
        """Take one projected step of steepest ascent.

        Args:
            point: where we are, inside, (B, ...).
            grad: gradient of what is to be maximised, (B, ...).
            size: step length in the units of the input: a float, or one per feature. In L2 and L1 with one ε per feature, a
                float is the length along the feature with the largest ε, and less along the others in proportion.

        Returns:
            ``Π(point + size · argmax_{‖d‖ ≤ 1} ⟨grad, d⟩)``, (B, ...). A zero gradient moves nothing. In L∞ the value of a
            one-hot group with the largest gradient rises, and the others fall.
        """
        if self.norm.is_box:
            direction = grad.sign() if self.one_hot is None else self.one_hot.steepest(grad)
            return self.project(_add_scaled(point, size, direction))
        slope = (grad * self.radius).flatten(1)  # the gradient in scaled coordinates, 0 where frozen
        peak = slope.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        slope = slope / peak  # so that squares of tiny gradients do not vanish
        direction = self.norm.steepest(slope, point.flatten(1), self.lower.flatten(1), self.upper.flatten(1))
        if not isinstance(size, Tensor) and self.radius.ndim:  # a step of that size along the widest axis of the ball
            own = tuple(range(1, point.ndim)) if self.radius.ndim == point.ndim else ()  # no row may see another
            widest = self.radius.amax(own, keepdim=True).clamp_min(torch.finfo(point.dtype).tiny)
            size = size * self.radius / widest
        return self.project(_add_scaled(point, size, direction.view_as(point)))

    def constraint_violation(self, point: Tensor) -> Tensor:
        """By how much each point leaves the set, in the units of the input, computed in float64.

        Returns:
            (B,): the larger of the excess over the ball (``max_j |δ_j| - ε_j`` in L∞; ``(‖δ/ε‖_p - 1)·max ε`` in L2 and
            L1, where a change of a frozen feature counts in full) and the excess over the box; 0 inside; NaN or
            infinity if the point is not finite.
        """
        x, point = self.x.double().flatten(1), point.double().flatten(1)
        radius = self._flat(self.radius).double()
        change = (point - x).abs()
        if self.norm.is_box:
            ball = (change - radius).amax(1)
        else:
            frozen = torch.where(radius > 0, 0.0, change).amax(1)
            ball = torch.maximum((self._length(change, radius) - 1) * radius.amax(1), frozen)
        below, above = self._flat(self.low).double() - point, point - self._flat(self.high).double()
        excess = torch.maximum(ball, torch.maximum(below, above).amax(1))
        return torch.where(excess > 0, excess, excess * 0)  # keeps NaN

    def contains(self, point: Tensor) -> Tensor:
        """Say which points are inside up to the rounding error of computing them, which each feature is granted for itself.

        A feature that is frozen has the clean value, or what the box makes of it where it lies outside by rounding.

        Returns:
            (B,) bool, for points (B, ...).
        """
        x, point = self.x.double().flatten(1), point.double().flatten(1)
        low, high, radius = (self._flat(value).double() for value in (self.low, self.high, self.radius))
        eps, change = torch.finfo(self.x.dtype).eps, (point - x).abs()
        rounding = 2 * eps * torch.maximum(torch.maximum(x.abs(), point.abs()), self._flat(self.magnitude).double())
        in_ball = self._length((change - rounding).clamp_min(0), radius) <= 1 + 8 * eps  # the last of computing the norm itself
        unmoved = (radius > 0) | (change <= (x - x.clamp(low, high)).abs())
        in_box = (torch.minimum(low, x) - rounding <= point) & (point <= torch.maximum(high, x) + rounding)
        return in_ball & (unmoved & in_box).all(1)

    @property
    def magnitude(self) -> Tensor:
        """How large the numbers of a feature can be, by its box: attacks of others may have computed with such, and rounded."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        return torch.where(size.isfinite(), size, torch.zeros_like(size))

    def clamp(self, point: Tensor) -> Tensor:
        """Bring points (B, ...) into the box, not into the ball."""
        return point.clamp(self.low, self.high)

    @property
    def scale(self) -> Tensor:
        """What changes are divided by to be in units of ε: ε, or 1 where a feature is frozen."""
        return torch.where(self.radius > 0, self.radius, torch.ones_like(self.radius))

    @property
    def free(self) -> Tensor:
        """Which coordinates can change at all, (B, D) bool."""
        return self._flat(self.radius > 0)

    def _flat(self, value: Tensor) -> Tensor:
        return value.expand_as(self.x).flatten(1)

    def _length(self, change: Tensor, radius: Tensor) -> Tensor:
        """Lengths (B,) of changes in units of ε, both (B, D) in float64; frozen features left out."""
        return self.norm.length(torch.where(radius > 0, change / radius.clamp_min(1e-300), 0.0))


def _add_scaled(point: Tensor, size: float | Tensor, direction: Tensor) -> Tensor:
    """``point + size * direction`` at one launch."""
    if isinstance(size, Tensor):
        return point.addcmul(size.to(point.dtype), direction)
    return point.add(direction, alpha=size)


def _clip_rounding(x: Tensor, point: Tensor, reach: Tensor) -> Tensor:
    """Where rounding has carried ``point`` further from ``x`` than ``reach``, go back to the next float."""
    back = x - point
    if back.device.type != "cpu":  # where a launch counts, and not what it does
        return torch.where(back.abs() > reach, torch.nextafter(point, x), point)
    # By arithmetic, because a mask without order costs torch.where twice as long.
    back.mul_(back.abs().sub_(reach).sign_().relu_()).add_(point)  # x where it is too far, otherwise the point itself
    return torch.nextafter(point, back)
