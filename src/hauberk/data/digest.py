"""A digest of all examples of a data set, which results are bound to."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from hauberk.data.chunks import MAX_ITEMS_READ, pieces
from hauberk.data.dataset import IndexedDataset


def data_digest(dataset: IndexedDataset) -> str:
    """Return a digest of all inputs, labels and probabilities, in order: what a result is bound to.

    Arrays are read piece by piece as they are stored, also where they are mapped from a file: uint8 images and the same
    numbers as floats differ. Of a data set that is not in memory, 10,000 examples spread over it are read, or all of fewer.
    """
    inputs, targets, kind = hashlib.sha256(), hashlib.sha256(), ""
    for index in torch.arange(len(dataset)).split(MAX_ITEMS_READ):
        soft, _ = dataset.soft_labels(index)
        if soft is None:
            break
        targets.update(_bytes(soft))
    for x, y in pieces(dataset):
        kind = kind or f"{x.dtype} {tuple(x.shape[1:])}"
        inputs.update(_bytes(x))
        targets.update(_bytes(y if y.is_floating_point() else y.long()))
    return hashlib.sha256(f"{len(dataset)}{kind}".encode() + inputs.digest() + targets.digest()).hexdigest()[:16]


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
