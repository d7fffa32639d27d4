"""How robust any classifier can be at best: examples of different classes that an adversary can make the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError
from hauberk.data.dataset import as_dataset
from hauberk.threat import ThreatModel

_PAIRS_AT_ONCE = 2**14


@dataclass(frozen=True)
class ClassOverlap:
    """Examples that can be made the same as one of another class.

    Attributes:
        n: examples that were looked at.
        meeting: how many of them can be changed into something that one of another class can be changed into, too.
        at_most: no classifier whatever has a robust accuracy above this on them, in [0, 1].
    """

    n: int
    meeting: int
    at_most: float

    def __str__(self) -> str:
        if not self.meeting:
            return f"no two of {self.n:,} examples of different classes can be made the same"
        return (
            f"no classifier can be right under attack for more than {100 * self.at_most:.1f} % of {self.n:,} examples: "
            f"{self.meeting:,} of them can be made the same as one of another class"
        )


@checked
def class_overlap(data: Any, threat: ThreatModel, *, n: int = 2000) -> ClassOverlap:
    """Bound the robust accuracy that any classifier can have on data, before one is trained.

    Where an adversary can change an example of one class and one of another class into the same input, a classifier is wrong on
    it for one of the two, so at most one of them can be robust. M pairs without a common example leave at most ``1 - M / n``;
    the largest number of such pairs is a maximum matching (Bhagoji et al. 2019; exact for two classes, of several the best of
    each class against all others). Whether two meet is tried at one point, that nearest to halfway: for L∞ this is exact, for
    other norms some pairs that meet may be missed, and the bound is true but larger.

    Args:
        data: whatever :func:`hauberk.evaluate` takes, with labels that are classes.
        threat: what the adversary may do.
        n: how many examples to look at, the first ones; every two of different classes are compared.

    Returns:
        ClassOverlap.

    Raises:
        UserError: if n is not positive, or the threat model does not fit the data.
    """
    if n < 1:
        raise UserError(f"n must be positive, got {n}")
    dataset = as_dataset(data)
    x, y = dataset.fetch(torch.arange(min(n, len(dataset))))
    y = y.cpu()
    pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64), *_meeting(x.to("cpu", torch.float64), y, threat)])
    matched = max((_matching(pairs, y == k) for k in y.unique().tolist()), default=0) if len(pairs) else 0
    return ClassOverlap(len(y), len(pairs.unique()), 1 - matched / len(y))


def _meeting(x: Tensor, y: Tensor, threat: ThreatModel) -> Iterator[Tensor]:
    """Find the pairs of different classes that can be made the same, (M, 2) at a time."""
    region = threat.around(x)
    flat = x.flatten(1)
    lower, upper = (torch.as_tensor(bound).expand_as(x).flatten(1) for bound in (region.lower, region.upper))
    for i in range(len(x) - 1):
        later = torch.arange(i + 1, len(x))
        later = later[y[later] != y[i]]
        # Most pairs are apart in one of the first features already.
        for some in torch.arange(flat.shape[1]).split(64):
            apart = (lower[later][:, some] > upper[i, some]) | (upper[later][:, some] < lower[i, some])
            later = later[~apart.any(1)]
        for part in later.split(_PAIRS_AT_ONCE):
            low, high = torch.maximum(lower[part], lower[i]), torch.minimum(upper[part], upper[i])
            point = ((flat[part] + flat[i]) / 2).clamp(low, high).view(len(part), *x.shape[1:])
            both = threat.contains(point, x[part]) & threat.contains(point, x[i].expand_as(point))
            yield torch.stack([torch.full_like(part[both], i), part[both]], 1)


def _matching(pairs: Tensor, of_class: Tensor) -> int:
    """Return how many pairs without a common example there are, between the examples of one class and all others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching  # slow to import, seldom needed

    pairs = pairs[of_class[pairs[:, 0]] != of_class[pairs[:, 1]]]
    first = torch.where(of_class[pairs[:, 0]], pairs[:, 0], pairs[:, 1])
    other = pairs.sum(1) - first
    size = len(of_class)
    graph = coo_matrix((torch.ones(len(pairs)).numpy(), (first.numpy(), other.numpy())), shape=(size, size)).tocsr()
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
