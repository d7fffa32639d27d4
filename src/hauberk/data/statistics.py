"""Passes over a whole data set: checks, digests, statistics, and which examples a long tail keeps."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.data.dataset import ConcatDataset, IndexedDataset, Subset, TensorDataset, in_memory
from hauberk.threat import ThreatModel
from hauberk.threat.model import check_inputs

_CHUNK_NUMBERS = 2**20  # numbers looked at together
_CHUNK_BYTES = 2**25  # bytes hashed together
_MAX_ITEMS_HASHED = 10_000  # of a data set that is not in memory, whose every example costs a call
_ITEMS_CHECKED = 256  # likewise


def check_dataset(dataset: IndexedDataset, threat: ThreatModel) -> None:
    """Check all examples of arrays, or the first ones of any other data set, as :func:`hauberk.checks.check_inputs`."""
    for index in _chunks(dataset, len(dataset) if in_memory(dataset) else min(len(dataset), _ITEMS_CHECKED)):
        check_inputs(*dataset.fetch(index), threat, dataset.classes)


def channel_statistics(dataset: IndexedDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel (first dimension of an example), for a normalisation layer."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for index in _chunks(dataset, len(dataset)):
        values = dataset.fetch(index)[0].double().transpose(0, 1).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-8).tolist())


def long_tail(y: Tensor, ratio: float) -> Tensor:
    """Choose examples so that classes become ever rarer, exponentially (Cui et al. 2019).

    Class k of C keeps the fraction ``ratio^(-k / (C - 1))`` of its examples, its first ones, and one at least.

    Args:
        y: labels, (N,).
        ratio: how many times larger the fraction that the first class keeps is than that of the last one.

    Returns:
        Which examples, (M,) int64, in order.

    Raises:
        UserError: if the ratio is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"the ratio of the largest to the smallest class must be at least 1, got {ratio}")
    kept, last = [], max(int(y.max()), 1)
    for k in range(int(y.max()) + 1):
        members = (y == k).nonzero().squeeze(1)
        kept.append(members[: max(1, round(len(members) * ratio ** (-k / last)))])
    return torch.cat(kept).sort().values


def data_digest(dataset: IndexedDataset) -> str:
    """Return a digest of all inputs and labels, in order: what a result is bound to.

    Arrays are read piece by piece as they are stored, also where they are mapped from a file: uint8 images and the same
    numbers as floats differ. Of a data set that is not in memory, 10,000 examples spread over it are read, or all of fewer.
    """
    whole = hashlib.sha256(str(len(dataset)).encode())
    inputs, targets = hashlib.sha256(), hashlib.sha256()
    kind = None
    for x, y in _pieces(dataset):
        kind = kind or f"{x.dtype} {tuple(x.shape[1:])}"
        inputs.update(_bytes(x))
        targets.update(_bytes(y.long()))
    for part in (str(kind).encode(), inputs.digest(), targets.digest()):
        whole.update(part)
    return whole.hexdigest()[:16]


def _pieces(dataset: IndexedDataset) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _pieces(part)
        return
    if in_memory(dataset):
        size = max(_stored(dataset, torch.arange(1))[0].nbytes, 1)
        which = torch.arange(len(dataset))
    else:
        size = _CHUNK_BYTES // 64
        which = torch.linspace(0, len(dataset) - 1, min(len(dataset), _MAX_ITEMS_HASHED), dtype=torch.float64).long()
    for index in which.split(max(1, _CHUNK_BYTES // size)):
        yield _stored(dataset, index)


def _stored(dataset: IndexedDataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs as they are stored; consecutive ones as a view, which copies nothing."""
    if isinstance(dataset, Subset):
        return _stored(dataset.dataset, dataset.indices[index])
    if not isinstance(dataset, TensorDataset):
        return dataset.fetch(index)
    first, last = int(index[0]), int(index[-1]) + 1
    if last - first == len(index) and bool((index == torch.arange(first, last)).all()):
        return dataset.x[first:last], dataset.y[first:last]
    return dataset.x[index], dataset.y[index]


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _chunks(dataset: IndexedDataset, count: int) -> tuple[Tensor, ...]:
    """Return indices of the first ``count`` examples, in parts that are small however large an example is."""
    size = max(dataset.fetch(torch.arange(1))[0].numel(), 1)
    parts: tuple[Tensor, ...] = torch.arange(count).split(max(1, _CHUNK_NUMBERS // size))
    return parts
