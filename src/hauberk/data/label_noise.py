"""Label noise: training examples some of whose labels are random."""

from dataclasses import replace

import torch

from hauberk.data.chunks import stored
from hauberk.data.dataset import IndexedDataset, TensorDataset
from hauberk.data.tables.rows import rows_behind


def with_random_labels(source: IndexedDataset, share: float, seed: int) -> TensorDataset:
    """Return the examples in memory with a share of their labels replaced by random ones, uniform over all classes."""
    x, y = stored(source, torch.arange(len(source)))
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    drawn = torch.randint(source.classes or int(y.max()) + 1, (len(replaced),), generator=generator)
    noisy, rows = y.index_copy(0, replaced, drawn.to(y)), rows_behind(source)
    if rows is not None:
        return replace(rows, x=x, y=noisy)
    return TensorDataset(x, noisy, source.classes, source.name, source.folder)
