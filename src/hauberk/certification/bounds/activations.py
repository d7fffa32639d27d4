"""Nonlinear operations of networks, each between two lines: ReLU, leaky ReLU, sigmoid, tanh, max pooling, rounding to a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hauberk.certification.bounds.graph import Interval, Node
from hauberk.certification.bounds.rounding import ELEMENTARY, SAFETY, allowance, gamma, smallest, unit_roundoff
from hauberk.models import StraightThroughRound

_BISECTIONS = 60
Lines = tuple[Tensor, Tensor, Tensor, Tensor]
"""Slope and constant of a lower line, slope and constant of an upper line, each (B, ...)."""


@dataclass
class Activation(Node):
    """A function that does not fall, of each value by itself."""

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Two lines between which the function lies on [low, high]."""
        raise NotImplementedError

    def rounded(self) -> float:
        """How many roundings one value passes through."""
        return 0

    def error(self, *inputs: Interval) -> Tensor | None:
        if not (count := self.rounded()):
            return None
        size = torch.maximum(*(self.evaluate(end).abs() for end in inputs[0]))
        return SAFETY * gamma(int(count), unit_roundoff(self.dtype)) * size + smallest(self.dtype, 1)

    def interval(self, error: Tensor | None, *inputs: Interval) -> Interval:
        low, high = (self.evaluate(end) for end in inputs[0])
        if error is None:
            return low, high
        own = 64 * unit_roundoff(torch.float64)  # of our own exponential
        return low - error - own * low.abs(), high + error + own * high.abs()

    def relax(self, error: Tensor | None, *inputs: Interval) -> Any:
        low, high = inputs[0]
        below, start, above, end = self.lines(low, high)
        reach = torch.maximum(low.abs(), high.abs()) * torch.maximum(below.abs(), above.abs()).clamp_min(1)
        own = allowance(torch.float64, 0, self.size) * (reach + start.abs() + end.abs())
        own = own if error is None else own + error
        return below, start - own, above, end + own

    def backward(self, a: Tensor, relaxed: Any, alpha: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        below, start, above, end = (part[:, None] for part in relaxed)
        up, down = a.clamp(min=0), a.clamp(max=0)
        part = up * (below if alpha is None else alpha) + down * above
        constant = up.flatten(2) @ start.flatten(2).mT + down.flatten(2) @ end.flatten(2).mT
        return [part], constant.squeeze(2), a.new_zeros(a.shape[:2])


@dataclass
class LeakyReLU(Activation):
    """``max(x, s x)`` with a slope s in [0, 1]; 0 for ReLU.

    Where the sign of the input is open, the lower line goes through 0 with any slope in [s, 1]: by default with 1 if the
    positive side is the larger one, otherwise s (CROWN, Zhang et al. 2018). The upper line goes through both ends.
    """

    slope: float = 0.0

    def evaluate(self, *x: Tensor) -> Tensor:
        return torch.where(x[0] > 0, x[0], x[0] * self.slope) if self.slope else x[0].relu()

    def rounded(self) -> float:
        return 2 if self.slope else 0  # the slope is rounded to the dtype, too

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        s, zero = self.slope, torch.zeros_like(low)
        width = (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        open_ = (low < 0) & (high > 0)
        side = torch.where(low >= 0, 1.0, s).to(low.dtype)
        above = torch.where(open_, ((high - s * low) / width).clamp(s, 1), side)
        # Both ends must lie below the upper line as it is rounded.
        end = torch.maximum(high - above * high, (s - above) * low) + 4 * unit_roundoff(low.dtype) * (high.abs() + low.abs())
        below = torch.where(open_, torch.where(high > -low, 1.0, s).to(low.dtype), side)
        return below, zero, above, torch.where(open_, end, zero)

    def choice(self, low: Tensor, high: Tensor) -> Tensor:
        """Where the lower slope may be anything from s to 1. (B, ...) bool."""
        return (low < 0) & (high > 0)


@dataclass
class Sigmoidal(Activation):
    """Sigmoid or tanh: convex below 0, concave above.

    A line through both ends where that lies outside of the curve, otherwise a tangent: in the middle where the curve bends one
    way, or the one that meets the far end, found by bisection (CROWN, Zhang et al. 2018).
    """

    tanh: bool = False

    def evaluate(self, *x: Tensor) -> Tensor:
        return x[0].tanh() if self.tanh else x[0].sigmoid()

    def rounded(self) -> float:
        return ELEMENTARY

    def _slope(self, x: Tensor) -> Tensor:
        y = self.evaluate(x)
        return 1 - y * y if self.tanh else y * (1 - y)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        above, end = self._upper(low, high)
        # The curve is symmetric about (0, f(0)): its lower line is the upper one of the mirrored interval.
        below, start = self._upper(-high, -low)
        middle = 0.0 if self.tanh else 1.0  # 2 f(0)
        slack = 256 * unit_roundoff(low.dtype) * (1 + low.abs() + high.abs())
        return below, middle - start - slack, above, end + slack

    def _upper(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        f = self.evaluate
        at_low, at_high = f(low), f(high)
        width = high - low
        chord = torch.where(width > 1e-6, (at_high - at_low) / width.clamp_min(1e-6), self._slope(high))
        # The chord lies above a convex curve, and above one that still rises faster than it at the upper end.
        use_chord = ((high <= 0) | (self._slope(high) >= chord)) & (width > 1e-6)
        # Otherwise the tangent at d in [max(low, 0), high]; any d lies above that is right at the lower end.
        near, far = low.clamp_min(0), high.clamp_min(0)
        for _ in range(_BISECTIONS):
            d = (near + far) / 2
            right = f(d) + self._slope(d) * (low - d) >= at_low
            near, far = torch.where(right, near, d), torch.where(right, d, far)
        d = torch.where(low >= 0, (low + high) / 2, far)
        slope = torch.where(use_chord, chord, self._slope(d))
        slope = torch.where(width > 1e-6, slope, 0.0)
        # A narrow interval gets a constant.
        constant = torch.where(use_chord, torch.maximum(at_low - slope * low, at_high - slope * high), f(d) - slope * d)
        return slope, torch.where(width > 1e-6, constant, at_high)


@dataclass
class MaxPool(Node):
    """The largest value of each window.

    The lower line is the value whose own lower bound is the largest. The upper one is that value too, where no other can be
    larger, and the largest upper bound otherwise.

    Attributes:
        windows: (K, L) int64, for each of the L windows the positions in an image of its K values; the number of positions
            where the window reaches beyond.
        pooled: how many dimensions are pooled, the last ones.
    """

    windows: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    pooled: int = 2

    def _seen(self, x: Tensor, outside: float) -> Tensor:
        """Values in each window, (B, ..., K, L)."""
        flat = x.flatten(-self.pooled)
        flat = torch.cat([flat, torch.full_like(flat[..., :1], outside)], -1)
        return flat[..., self.windows]

    def evaluate(self, *x: Tensor) -> Tensor:
        return self._seen(x[0], -torch.inf).amax(-2).view(len(x[0]), *self.shape)

    def error(self, *inputs: Interval) -> Tensor | None:
        return None

    def interval(self, error: Tensor | None, *inputs: Interval) -> Interval:
        low, high = inputs[0]
        return self.evaluate(low), self.evaluate(high)

    def relax(self, error: Tensor | None, *inputs: Interval) -> Any:
        low, high = (self._seen(end, -torch.inf) for end in inputs[0])
        best, which = low.max(-2, keepdim=True)
        others = high.scatter(-2, which, -torch.inf).amax(-2, keepdim=True)
        surely = (best >= others).squeeze(-2)
        place = self.windows.expand(*which.shape[:-2], *self.windows.shape).gather(-2, which).squeeze(-2)
        top = torch.where(surely, 0.0, high.amax(-2))
        reach = torch.maximum(*(self._seen(end.abs(), 0.0) for end in inputs[0])).amax(-2)
        ends = allowance(torch.float64, 0, self.size) * reach
        return surely, place, top + ends, ends, inputs[0][0].shape[1:]

    def backward(self, a: Tensor, relaxed: Any, alpha: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        surely, place, top, ends, shape = relaxed
        flat = a.flatten(-self.pooled)  # (B, S, ..., L)
        up, down = flat.clamp(min=0), flat.clamp(max=0)
        size = torch.Size(shape[len(shape) - self.pooled :]).numel()
        into = flat.new_zeros(*flat.shape[:-1], size)
        moved = up + down * surely[:, None]
        into = into.scatter_add(-1, place[:, None].expand_as(flat), moved)
        count = a.shape[:2]
        constant = (down * top[:, None]).flatten(2).sum(2)
        return [into.view(*count, *shape)], constant, (flat.abs() * ends[:, None]).flatten(2).sum(2)


@dataclass
class Round(Node):
    """The nearest valid row of a table, as :class:`hauberk.models.StraightThroughRound` takes it.

    Whole values lie between the rounded bounds; of the columns of a category one is 1, of those that can be the largest.
    """

    integers: Sequence[int] = ()
    groups: Sequence[Sequence[int]] = ()

    def evaluate(self, *x: Tensor) -> Tensor:
        row: Tensor = StraightThroughRound(self.integers, self.groups)(x[0].detach())
        return row

    def error(self, *inputs: Interval) -> Tensor | None:
        return None

    def interval(self, error: Tensor | None, *inputs: Interval) -> Interval:
        low, high = (end.clone() for end in inputs[0])
        for end in (low, high):
            end[:, self.integers] = end[:, self.integers].round()
        for group in self.groups:
            least, most = low[:, group], high[:, group]
            possible = most >= least.amax(1, keepdim=True)
            alone = possible & (possible.sum(1, keepdim=True) == 1)
            low[:, group], high[:, group] = alone.to(low), possible.to(high)
        return low, high

    def relax(self, error: Tensor | None, *inputs: Interval) -> Any:
        low, high = self.interval(None, *inputs)
        return low, high

    def backward(self, a: Tensor, relaxed: Any, alpha: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        low, high = (end[:, None] for end in relaxed)
        part, constant = a.clone(), a.new_zeros(a.shape[:2])
        rounded = list(self.integers)
        own = a[..., rounded]
        ends = low[..., rounded], high[..., rounded]
        constant = constant + (own.clamp(min=0) * ends[0] + own.clamp(max=0) * ends[1]).sum(2)
        error = allowance(torch.float64, 0, self.size) * (own.abs() * torch.maximum(ends[0].abs(), ends[1].abs())).sum(2)
        for group in self.groups:
            columns = list(group)
            taken = torch.where(high[..., columns] > 0, a[..., columns], torch.inf)
            constant = constant + taken.amin(2)
            error = error + allowance(torch.float64, 0, self.size) * a[..., columns].abs().amax(2)
            rounded += columns
        part[..., rounded] = 0
        return [part], constant, error
