"""L0: at most k features may change, each as far as the box lets it. Its ball has no inside and no dual norm."""

from typing import NoReturn

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.threat.feasible_set import FeasibleSet, expand_to
from hauberk.threat.norms import NORMS, Norm

_ROUNDING = 1e-3  # of k, where it is a part of another


class SparseSet(FeasibleSet):
    """The sets "at most k features differ from x, and all are in the box" of a batch.

    Changes are measured in widths of the box (in the units of the input where it has no bound), so ``radius`` is the width, and
    0 where a feature is frozen. What the box itself says of an input that is outside of it by rounding does not count.

    Args: as :class:`FeasibleSet`; ε is k, a number, or one for each example, (B, 1, ...).
    """

    def __init__(
        self, x: Tensor, norm: Norm, radius: float | Tensor, low: float | Tensor, high: float | Tensor, eps: float | Tensor
    ):
        super().__init__(x, norm, radius, low, high, eps)
        self.low, self.high = torch.minimum(self.low, x), torch.maximum(self.high, x)
        width = self.high - self.low
        free = (self.radius > 0) & (width > 0)
        self.radius = torch.where(free, torch.where(width.isfinite(), width, 1.0), 0.0).to(x.dtype)
        self.lower, self.upper = torch.where(free, self.low, x), torch.where(free, self.high, x)
        most = eps if isinstance(eps, Tensor) else torch.full((), eps, dtype=x.dtype, device=x.device)
        self.count = expand_to((most + _ROUNDING).floor().flatten().expand(len(x)), x).long()

    def with_radius_scaled(self, fraction: Tensor) -> FeasibleSet:
        """Return the sets with k of each example times its fraction, rounded down. (B,) in [0, 1]."""
        eps = expand_to(fraction.to(self.x.dtype), self.x) * self.eps
        return SparseSet(self.x, self.norm, self.radius, self.low, self.high, eps)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest points inside, in L2 distance of widths: the k changes that count most. (B, ...) -> (B, ...)."""
        low, high = ((bound - self.x).flatten(1) for bound in (self.lower, self.upper))
        change, scale = (point - self.x).flatten(1), self.scale.flatten(1)
        kept = largest(change / scale, low / scale, high / scale, self.count.flatten(1))
        return torch.where(kept.view_as(point), torch.clamp(point, self.lower, self.upper), self.x)

    def random(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw k features and, uniformly in the box, what they become (within 1 of x where there is no bound). (B, ...)."""
        low = torch.where(self.lower.isfinite(), self.lower, self.x - 1)
        high = torch.where(self.upper.isfinite(), self.upper, self.x + 1)
        drawn = low + (high - low) * rng.uniform(self.x, tag)
        first = rng.uniform(self.x, tag + 1).flatten(1).masked_fill(~self.free, -1)
        return torch.where(_best(first, self.count.flatten(1)).view_as(drawn), drawn, self.x).clamp(self.lower, self.upper)

    def random_far(self, rng: ExampleRng, tag: int | Tensor = 0) -> Tensor:
        """Draw as :meth:`random`."""
        return self.random(rng, tag)

    def step(self, point: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
        """Take one projected step along the gradient, as PGD in L0 (Croce and Hein 2019) does; shapes as there.

        The k steepest features move by ``size`` widths of the box together, all others in proportion to their slope: "eps/4"
        moves the k steepest by a quarter of the box on average. (The public code divides by the sum over all features, and
        its step sizes go with their number.)
        """
        slope = (grad * self.radius).flatten(1)
        top = _best(slope.abs(), self.count.flatten(1)) * slope.abs()
        total = top.sum(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return self.project(point + size * (slope / total).view_as(point) * self.radius)

    def constraint_violation(self, point: Tensor) -> Tensor:
        """How many features too many are changed, or by how much the box or a frozen one is left: the larger of both, (B,)."""
        moved = (point != self.x).flatten(1)
        outside = torch.maximum(self.lower.double() - point, point - self.upper.double()).flatten(1).amax(1)
        excess = torch.maximum((moved.sum(1) - self.count.flatten()).double(), outside)
        return torch.where(excess > 0, excess, excess * 0)  # keeps NaN

    def contains(self, point: Tensor) -> Tensor:
        """Say which points are inside; a bound is a number of the inputs' own dtype, so nothing is rounded. (B,) bool."""
        return self.constraint_violation(point) <= 0


class _L0(Norm):
    """How many features are not 0. No norm: it has no dual, and no direction of steepest ascent."""

    name, p = "L0", 0.0
    feasible_set = SparseSet

    @property
    def dual(self) -> Norm:
        return _undefined()

    def length(self, change: Tensor) -> Tensor:
        return (change != 0).sum(-1).to(change.dtype)

    def within(self, change: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        kept = largest(change, low, high, (radius + _ROUNDING).floor().long())
        return torch.where(kept, torch.clamp(change, low, high), 0.0)

    def project(self, change: Tensor, low: Tensor, high: Tensor, /) -> Tensor:
        return _undefined()

    def steepest(self, slope: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _undefined()

    def sample(self, rng: ExampleRng, like: Tensor, free: Tensor, tag: int | Tensor) -> Tensor:
        return _undefined()

    sample_far = sample

    def onto_hyperplane(self, normal: Tensor, gap: Tensor, below: Tensor, above: Tensor, /) -> Tensor:
        return _undefined()


def largest(change: Tensor, low: Tensor, high: Tensor, count: Tensor) -> Tensor:
    """Mark the changes to keep for the nearest point with at most so many: (B, D) each, count (B, 1) -> (B, D) bool.

    A change v that is kept becomes ``c = clip(v, low, high)``, which brings the squared distance down by ``c (2v - c)``.
    """
    clipped = torch.clamp(change, low, high)
    return _best(clipped * (2 * change - clipped), count)


def _best(score: Tensor, count: Tensor) -> Tensor:
    """Mark the so many highest scores of each row, of equal ones the first; scores up to 0 count for nothing. (B, D) bool."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    first = torch.arange(score.shape[1], device=score.device) < count
    return torch.zeros_like(first).scatter(1, order, first) & (score > 0)


def _undefined() -> NoReturn:
    raise UserError("L0 has no dual norm and no steepest direction; hb.attacks.PGD, FMN and SigmaZero are defined in L0")


L0_NORM: Norm = _L0()
NORMS[L0_NORM.name] = L0_NORM
