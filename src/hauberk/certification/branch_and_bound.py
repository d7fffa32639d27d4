"""Complete verification of small networks: what a bound leaves open is cut in two, and each part is bounded by itself.

Bunel et al. 2020 (branch and bound), Wang et al. 2021 (β-CROWN). A part is a box of inputs, where few features can change, or a
choice of signs of ReLUs. The work is limited by a number of parts, not by time, so that verdicts repeat.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.certification.bounds.activations import LeakyReLU
from hauberk.certification.bounds.crown import crown_bounds, interval_bound, lower_bound
from hauberk.certification.bounds.graph import Bounds, Graph, Interval, propagate
from hauberk.certification.bounds.optimised import optimised_bound
from hauberk.certification.bounds.region import Region

_FEW_FEATURES = 24  # that can change; with more, ReLUs are cut
_AT_ONCE = 64  # parts
_STEPS = 15  # of slopes and multipliers for each part


@dataclass
class _Parts:
    """Parts of one set that are still open.

    Attributes:
        bound: of each part, (P,).
        lower: lower end of its box, (P, ...).
        upper: upper end, likewise.
        splits: for the number of a ReLU, the signs that its inputs are held to, (P, ...) int8; 0 for none.
        choice: what to cut next: a number of a feature, or of a neuron among those of all ReLUs, (P,).
    """

    bound: Tensor
    lower: Tensor
    upper: Tensor
    splits: dict[int, Tensor]
    choice: Tensor

    def index_select(self, index: Tensor) -> "_Parts":
        """Return some of them. index: (p,) int64."""
        splits = {number: split[index] for number, split in self.splits.items()}
        return _Parts(self.bound[index], self.lower[index], self.upper[index], splits, self.choice[index])

    def joined(self, other: "_Parts") -> "_Parts":
        """Return these and others."""
        splits = {number: torch.cat([split, other.splits[number]]) for number, split in self.splits.items()}
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("bound", "lower", "upper"))
        bound, lower, upper = (torch.cat(pair) for pair in pairs)
        return _Parts(bound, lower, upper, splits, torch.cat([self.choice, other.choice]))


def branch(graph: Graph, bounds: Bounds, region: Region, c: Tensor, parts: int, breaks: Callable[[Tensor], bool]) -> float:
    """Bound one linear function of the output from below on one set, by cutting the set in up to so many parts.

    Args:
        graph: of the network.
        bounds: of all its values, for that set.
        region: the set, a batch of 1.
        c: coefficients, (1, 1, C).
        parts: how many parts may be bounded.
        breaks: a function of some points near the set, (P, ...), that says whether the nearest ones within it show that the
            function is not positive there; the search then ends.

    Returns:
        The bound, the least of all parts; it is positive only if the function is so on the whole set.
    """
    relus = {i: node for i, node in enumerate(graph.nodes) if isinstance(node, LeakyReLU)}
    by_input = int((region.upper > region.lower).sum()) <= _FEW_FEATURES or not relus
    look = _look_at_boxes if by_input else _look_at_signs
    splits = {} if by_input else {i: c.new_zeros(1, *node.shape, dtype=torch.int8) for i, node in relus.items()}
    start = _Parts(c.new_full((1,), -torch.inf), region.lower, region.upper, splits, c.new_zeros(1, dtype=torch.int64))
    open_, points = look(graph, bounds, region, c, start)
    spent, least = 1, float("inf")  # the least bound of the parts that are closed
    while True:
        closed = open_.bound > 0
        least = float(min([least, *open_.bound[closed].tolist()]))
        open_ = open_.index_select((~closed).nonzero().squeeze(1))
        if not len(open_.bound):
            return least
        if spent + 2 > parts or bool((open_.choice < 0).any()) or breaks(points):
            return float(open_.bound.min())
        now, later = open_.bound.argsort(stable=True).tensor_split([min(_AT_ONCE, (parts - spent) // 2)])
        halves, points = look(graph, bounds, region, c, _halve(open_.index_select(now)))
        spent += len(halves.bound)
        open_ = open_.index_select(later).joined(halves)


def _halve(some: _Parts) -> _Parts:
    """Cut each part in two, first all first halves."""
    count = len(some.bound)
    both = some.joined(some)
    rows = torch.arange(count, device=some.bound.device)
    if not some.splits:
        lower, upper = both.lower.flatten(1).clone(), both.upper.flatten(1).clone()
        middle = (lower[rows, some.choice] + upper[rows, some.choice]) / 2
        upper[rows, some.choice], lower[rows + count, some.choice] = middle, middle
        both.lower, both.upper = lower.view_as(both.lower), upper.view_as(both.upper)
        return both
    begin = 0
    for number, split in both.splits.items():
        flat, size = split.flatten(1).clone(), split[0].numel()
        here = ((some.choice >= begin) & (some.choice < begin + size)).nonzero().squeeze(1)
        flat[here, some.choice[here] - begin], flat[here + count, some.choice[here] - begin] = 1, -1
        both.splits[number] = flat.view_as(split)
        begin += size
    return both


def _look_at_boxes(graph: Graph, bounds: Bounds, region: Region, c: Tensor, some: _Parts) -> tuple[_Parts, Tensor]:
    """Bound parts that are boxes, all values anew; each is to be cut where its linear bound varies most.

    Also returns the corner of each box where that bound is least.
    """
    rows = torch.zeros(len(some.bound), dtype=torch.int64, device=c.device)
    sets, c = region.index_select(rows).within(some.lower, some.upper), c[rows]
    seen: dict[int, Tensor] = {}
    inside = crown_bounds(graph, sets)
    by_crown = lower_bound(graph, inside, sets, graph.output, c, seen=seen)
    found = torch.maximum(by_crown, interval_bound(graph, inside, c))[:, 0]
    slope, width = seen[0][:, 0], some.upper - some.lower
    lost, wide = (slope.abs() * width).flatten(1), width.flatten(1)
    # A constant bound does not say where; and nothing is left to cut of a box that is nearly a point.
    choice = torch.where(lost.amax(1) > 0, (lost + 1e-3 * lost.amax(1, keepdim=True) * (wide > 0)).argmax(1), wide.argmax(1))
    size = torch.maximum(some.lower.abs(), some.upper.abs()).flatten(1).gather(1, choice[:, None]).squeeze(1)
    cut = wide.gather(1, choice[:, None]).squeeze(1) > 1e-7 * size.clamp_min(1e-7)
    points = torch.where(slope > 0, some.lower, some.upper)
    return _Parts(torch.maximum(found, some.bound), some.lower, some.upper, {}, torch.where(cut, choice, -1)), points


def _look_at_signs(graph: Graph, bounds: Bounds, region: Region, c: Tensor, some: _Parts) -> tuple[_Parts, Tensor]:
    """Bound parts that hold signs of ReLUs; each is to be cut at the ReLU whose relaxation loses most.

    Intervals are those of the whole set, and what follows from the signs. Also returns, for each part, the corner of the box
    where its linear bound is least.
    """
    rows = torch.zeros(len(some.bound), dtype=torch.int64, device=c.device)
    sets, root, c = region.index_select(rows), bounds.index_select(rows), c[rows]
    empty = torch.zeros_like(rows, dtype=torch.bool)
    before = {number: graph.nodes[number].inputs[0] for number in some.splits}

    def narrow(number: int, inner: Bounds) -> Interval:
        """Cut a value's interval with that of the whole set, and with what its sign is held to."""
        (low, high), (least, most) = inner.intervals[number], root.intervals[number]
        low, high = torch.maximum(low, least), torch.minimum(high, most)
        for relu, split in some.splits.items():
            if before[relu] == number:
                low = torch.where(split > 0, low.clamp_min(0), low)
                high = torch.where(split < 0, high.clamp_max(0), high)
        empty.logical_or_((low > high).flatten(1).any(1))  # no input has these signs
        return low, torch.maximum(low, high)

    inside = propagate(graph, sets.interval, narrow)
    seen: dict[int, Tensor] = {}
    found = optimised_bound(graph, inside, sets, c, _STEPS, some.splits, seen)[:, 0]
    scores = []
    for relu, split in some.splits.items():
        low, high = inside.intervals[before[relu]]
        gap = seen[relu][:, 0].abs() * -low * high / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        scores.append(torch.where((low < 0) & (high > 0) & (split == 0), gap, -1.0).flatten(1))
    best, choice = torch.cat(scores, 1).max(1)
    points = torch.where(seen[0][:, 0] > 0, sets.lower, sets.upper)
    bound = torch.where(empty, torch.inf, torch.maximum(found, some.bound))
    return _Parts(bound, some.lower, some.upper, some.splits, torch.where(best >= 0, choice, -1)), points
