"""Walking through data sets of any size in parts that fit into memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hauberk.data.dataset import ConcatDataset, IndexedDataset, Subset, TensorDataset, in_memory

_CHUNK_NUMBERS = 2**20  # numbers looked at together
_CHUNK_BYTES = 2**25  # bytes read together
MAX_ITEMS_READ = 10_000  # of a data set that is not in memory, whose every example costs a call


def pieces(dataset: IndexedDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through examples as they are stored: all in memory, otherwise 10,000 spread over them, or all of fewer."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from pieces(part)
        return
    if in_memory(dataset):
        size = max(stored(dataset, torch.arange(1))[0].nbytes, 1)
        which = torch.arange(len(dataset))
    else:
        size = _CHUNK_BYTES // 64
        which = torch.linspace(0, len(dataset) - 1, min(len(dataset), MAX_ITEMS_READ), dtype=torch.float64).long()
    for index in which.split(max(1, _CHUNK_BYTES // size)):
        yield stored(dataset, index)


def stored(dataset: IndexedDataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs as they are stored; consecutive ones as a view, which copies nothing."""
    if isinstance(dataset, Subset):
        return stored(dataset.dataset, dataset.indices[index])
    if not isinstance(dataset, TensorDataset):
        return dataset.fetch(index)
    first, last = int(index[0]), int(index[-1]) + 1
    if last - first == len(index) and bool((index == torch.arange(first, last)).all()):
        return dataset.x[first:last], dataset.y[first:last]
    return dataset.x[index], dataset.y[index]


def chunks(dataset: IndexedDataset, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Fetch the first ``count`` examples, in parts that are small however large an example is."""
    size = max(dataset.fetch(torch.arange(1))[0].numel(), 1)
    for index in torch.arange(count).split(max(1, _CHUNK_NUMBERS // size)):
        yield dataset.fetch(index)
