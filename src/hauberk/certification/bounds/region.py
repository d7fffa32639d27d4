"""The inputs that a certificate speaks of, and the least value of a linear function on them."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from hauberk.certification.bounds.graph import Interval
from hauberk.certification.bounds.rounding import allowance
from hauberk.core.errors import UserError
from hauberk.threat import FeasibleSet, Norm, ThreatModel


def check_threat(threat: ThreatModel) -> None:
    """Refuse, by a UserError, threat models with a norm that no linear function is bounded on."""
    if type(threat.norm).lowest_linear is Norm.lowest_linear:
        raise UserError(f"there are no certificates for the norm {threat.norm.name}; those for L∞, L2 and L1 are there")


class Region:
    """The sets of a threat model around a batch, in float64, with all points that :meth:`FeasibleSet.contains` lets pass.

    A point in floats may be outside of a set by the rounding of storing it, and is counted as inside then; so each set is taken
    together with all points that differ from one of it by ``slack`` at most in every coordinate.

    Args:
        region: what ``threat.around(x)`` returns.
    """

    def __init__(self, region: FeasibleSet):
        x = region.x
        self.norm, self.slack = region.norm, _slack(region)
        radius = region.radius.double().expand_as(x)
        self.x, self.scale = x.double(), torch.where(radius > 0, radius, 1.0)
        self._set(*_box(region))

    def _set(self, lower: Tensor, upper: Tensor) -> None:
        """Take over a box, (B, ...) each, and what follows from it."""
        self.lower, self.upper = lower, upper
        self.down, self.up = (self.lower - self.x) / self.scale, (self.upper - self.x) / self.scale
        reach = torch.maximum(self.lower.abs(), self.upper.abs()) + 2 * self.x.abs() + self.scale
        self.loss = self.slack + allowance(torch.float64, 0, self.x[0].numel()) * reach

    def within(self, lower: Tensor, upper: Tensor) -> "Region":
        """Return the parts of the sets in a smaller box, (B, ...) each."""
        part = copy(self)
        part._set(lower, upper)
        return part

    def index_select(self, index: Tensor) -> "Region":
        """Return the sets of some of the examples. index: (b,) int64."""
        part = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(part, name, value[index])
        return part

    @property
    def interval(self) -> Interval:
        """Bounds of each coordinate, (B, ...) each."""
        return self.lower - self.slack, self.upper + self.slack

    def lowest(self, a: Tensor) -> Tensor:
        """Bound linear functions from below. a: coefficients (B, S, ...) -> (B, S)."""
        return self.lowest_of(a, [value[:, None] for value in self.parts], 2)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What :meth:`lowest_of` needs of each input, (B, ...) each."""
        return self.x, self.scale, self.down, self.up, self.loss

    def lowest_of(self, a: Tensor, parts: Sequence[Tensor], dims: int = 1) -> Tensor:
        """Bound linear functions of some of the inputs from below; all others have coefficients of 0.

        Args:
            a: coefficients, of any shape.
            parts: those of these inputs, which broadcast with them.
            dims: how many dimensions at the front are not of one example.
        """
        x, scale, down, up, loss = parts
        slope, low, high = ((a * scale).flatten(dims), *(end.flatten(dims) for end in (down, up)))
        least = self.norm.lowest_linear(slope, low, high)
        total: Tensor = (a * x - a.abs() * loss).flatten(dims).sum(-1) + least
        return total


def _box(region: FeasibleSet) -> Interval:
    """Bounds of each coordinate, (B, ...) each; the clean input, which may be outside of its box by rounding, is between."""
    x, lower, upper = region.x.double(), region.lower.double(), region.upper.double()
    return torch.minimum(torch.minimum(lower, upper), x), torch.maximum(torch.maximum(lower, upper), x)


def _slack(region: FeasibleSet) -> Tensor:
    """By how much a point that counts as inside may differ from one of the set, in each coordinate; as the inputs, (B, ...).

    Such a point is brought back by moving each coordinate by its rounding towards the clean input, then by shrinking the change
    by ``1 + 8 eps``, and to the next float at a bound that was itself rounded inwards: by four roundings of the number and
    eight of the change together, of which there are some more here. A frozen one is brought back from where the box has it.
    """
    x, eps = region.x.double(), torch.finfo(region.x.dtype).eps
    lower, upper = _box(region)
    reach = torch.maximum(torch.maximum(lower.abs(), upper.abs()), region.magnitude.double())
    radius = region.radius.double().expand_as(x)
    return torch.where(radius > 0, eps * (5 * reach + 10 * torch.minimum(radius, 2 * reach)), upper - lower)
