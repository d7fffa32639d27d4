"""The bounds that certify tries, by name: each takes what is undecided, and bounds the margins of all other classes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hauberk.certification.bounds.crown import crown_bounds, interval_bound, lower_bound
from hauberk.certification.bounds.graph import Bounds, Graph
from hauberk.certification.bounds.optimised import optimised_bound
from hauberk.certification.bounds.region import Region
from hauberk.certification.branch_and_bound import branch
from hauberk.threat import FeasibleSet

_ALPHAS_AT_ONCE = 2**22  # numbers of slopes that are optimised together; autograd keeps some twenty times as many


@dataclass
class Undecided:
    """Some examples of a batch, and what is known of them.

    Attributes:
        graph: of the model.
        region: their sets.
        others: the other classes, those with the largest logits first, (B, C - 1) int64.
        y: labels, (B,).
        intervals: bounds of all values by intervals.
        model: the model itself.
        sets: their sets as attacks see them.
        branches: how many parts each of the other classes may be cut into.
        bounds: by CROWN, once they have been asked for.
    """

    graph: Graph
    region: Region
    others: Tensor
    y: Tensor
    intervals: Bounds
    model: nn.Module
    sets: FeasibleSet
    branches: int
    bounds: Bounds | None = None

    def index_select(self, index: Tensor) -> "Undecided":
        """Return some of them. index: (b,) int64."""
        bounds = None if self.bounds is None else self.bounds.index_select(index)
        region, intervals = self.region.index_select(index), self.intervals.index_select(index)
        sets, others, y = self.sets.index_select(index), self.others[index], self.y[index]
        return Undecided(self.graph, region, others, y, intervals, self.model, sets, self.branches, bounds)

    def breaks(self, points: Tensor) -> bool:
        """Whether the model misclassifies one of the points of the set of a single example nearest to these, (P, ...)."""
        if not len(points):
            return False
        inside = self.sets.index_select(torch.zeros(len(points), dtype=torch.int64, device=points.device))
        logits = self.model(inside.project(points.to(self.sets.x.dtype)))
        return bool((logits.argmax(1) != self.y).any())

    def by_crown(self) -> Bounds:
        """Bounds of all values by CROWN."""
        if self.bounds is None:
            self.bounds = crown_bounds(self.graph, self.region)
        return self.bounds

    def margins(self, others: Tensor) -> Tensor:
        """Coefficients (B, S, C) of ``z_y - z_k`` for classes k, (B, S)."""
        classes = self.graph.nodes[self.graph.output].shape[0]
        eye = torch.eye(classes, dtype=torch.float64, device=others.device)
        return eye[self.y][:, None] - eye[others]


def _by_intervals(some: Undecided, steps: int) -> Tensor:
    return interval_bound(some.graph, some.intervals, some.margins(some.others))


def _by_crown_ibp(some: Undecided, steps: int) -> Tensor:
    return _lower_bounds(some, some.intervals)


def _by_crown(some: Undecided, steps: int) -> Tensor:
    return _lower_bounds(some, some.by_crown())


def _by_alpha_crown(some: Undecided, steps: int) -> Tensor:
    """Only what is open is optimised: first the class that CROWN says the least of, and the others where that succeeds."""
    found = _lower_bounds(some, some.by_crown())
    worst = found.argmin(1, keepdim=True)
    found.scatter_(1, worst, _optimised(some, worst, found.gather(1, worst), steps))
    rows = ((found.gather(1, worst).squeeze(1) > 0) & (found <= 0).any(1)).nonzero().squeeze(1)
    if len(rows):
        rest, open_ = some.index_select(rows), found[rows] <= 0
        most = int(open_.sum(1).max())
        which = open_.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
        better = _optimised(rest, which, found[rows].gather(1, which), steps)
        found[rows] = found[rows].scatter(1, which, better)
    return found


def _optimised(some: Undecided, which: Tensor, found: Tensor, steps: int) -> Tensor:
    """Bounds for some of the other classes, by their places (B, S) in ``others``; no less than what was ``found``, (B, S)."""
    numbers = which.shape[1] * sum(node.size for node in some.graph.nodes)
    parts = []
    for rows in torch.arange(len(which), device=which.device).split(max(_ALPHAS_AT_ONCE // numbers, 1)):
        part = some.index_select(rows)
        c = part.margins(part.others.gather(1, which[rows]))
        parts.append(optimised_bound(part.graph, part.by_crown(), part.region, c, steps))
    return torch.maximum(torch.cat(parts), found)


def _lower_bounds(some: Undecided, bounds: Bounds) -> Tensor:
    """CROWN's bounds for all other classes, (B, C - 1), some classes at a time."""
    graph = some.graph
    chunk = max(2**23 // (len(some.y) * graph.largest), 1)
    return torch.cat(
        [lower_bound(graph, bounds, some.region, graph.output, some.margins(part)) for part in some.others.split(chunk, 1)], 1
    )


def _by_branching(some: Undecided, steps: int) -> Tensor:
    """One example after the other, of each the classes that least is known of first, up to one that stays open."""
    found = _by_alpha_crown(some, steps)
    for row in range(len(found)):
        one = some.index_select(torch.tensor([row], device=found.device))
        for place in found[row].argsort(stable=True).tolist():
            if found[row, place] <= 0:
                c = one.margins(one.others[:, place : place + 1])
                bound = branch(one.graph, one.by_crown(), one.region, c, some.branches, one.breaks)
                found[row, place] = max(float(found[row, place]), bound)
            if found[row, place] <= 0:
                break
    return found


METHODS: dict[str, Callable[[Undecided, int], Tensor]] = {
    "ibp": _by_intervals, "crown-ibp": _by_crown_ibp, "crown": _by_crown, "alpha-crown": _by_alpha_crown,
    "branch-and-bound": _by_branching,
}  # fmt: skip
