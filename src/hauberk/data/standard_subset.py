"""Parts of a data set: the first examples, and a standard part that is the same whatever order its files are in."""

from typing import Any

import torch

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError
from hauberk.core.random import content_ids
from hauberk.data.dataset import IndexedDataset, Subset, as_dataset

_AT_ONCE = 256  # examples


def first_examples(dataset: IndexedDataset, n: int) -> IndexedDataset:
    """Return the first n examples, or all where n is 0 or more than there are."""
    return Subset(dataset, torch.arange(min(n, len(dataset)))) if n else dataset


def first_of(dataset: IndexedDataset) -> int | None:
    """Return the n that :func:`first_examples` of a data set was made with: 0 for no part, None for another one."""
    if not isinstance(dataset, Subset):
        return 0
    whole = not isinstance(dataset.dataset, Subset)
    return len(dataset) if whole and torch.equal(dataset.indices, torch.arange(len(dataset))) else None


@checked
def standard_subset(data: Any, n: int) -> Subset:
    """Choose n examples, in equal shares of the classes, by what they are and not by where they are.

    Within a class examples are ordered by a hash of their content; taken is the first of each class, then the second of each,
    and so on, so that a smaller subset is the beginning of a larger one, and a class that has too few leaves room to others.
    Unlike "the first n", it depends neither on the order of the files nor on a generator. This costs a pass over the data.

    Args:
        data: whatever :func:`as_dataset` takes.
        n: how many examples.

    Returns:
        The examples, in that order: ``data_digest`` of it, which an evaluation notes, is the same on any copy of the data.

    Raises:
        UserError: if there are fewer than n examples, or n is below 1.
    """
    source = as_dataset(data)
    if not 1 <= n <= len(source):
        raise UserError(f"n must be 1 to {len(source)}, the number of examples, got {n}")
    seen = [(content_ids(x), y.cpu()) for x, y in map(source.fetch, torch.arange(len(source)).split(_AT_ONCE))]
    ids, y = (torch.cat(part) for part in zip(*seen, strict=True))
    order = ids.argsort(stable=True)
    order = order[y[order].argsort(stable=True)]  # by class, then by content
    members = y.bincount()
    rank = torch.arange(len(y)) - (members.cumsum(0) - members)[y[order]]
    return Subset(source, order[(rank * len(members) + y[order]).argsort()[:n]])
