"""Label noise: training examples some of whose labels are random."""

from dataclasses import replace

import torch

from hauberk.core.random import ExampleRng
from hauberk.data.chunks import stored
from hauberk.data.dataset import IndexedDataset, TensorDataset
from hauberk.data.tables.rows import rows_behind


def with_random_labels(source: IndexedDataset, share: float, seed: int) -> TensorDataset:
    """Return the examples in memory with a share of their labels replaced by random ones, uniform over all classes."""
    x, y = stored(source, torch.arange(len(source)))
    classes = source.classes or int(y.max()) + 1
    # Draws of their own: by torch's generator with the same seed, those held out for validation would come first, too.
    order, label = ExampleRng(seed, torch.arange(len(y))).uniform(torch.empty(len(y), 2, dtype=torch.float64), 0).unbind(1)
    replaced = order.argsort()[: round(share * len(y))]
    drawn = (label[replaced] * classes).long()
    noisy, rows = y.index_copy(0, replaced, drawn.to(y)), rows_behind(source)
    if rows is not None:
        return replace(rows, x=x, y=noisy)
    return TensorDataset(x, noisy, source.classes, source.name, source.folder)
