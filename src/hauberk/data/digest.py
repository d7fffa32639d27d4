"""What a result is bound to: digests of a data set's content."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hauberk.data.dataset import Arrays, Joined, Part, Source, in_memory

_AT_ONCE = 2**25  # bytes hashed together
_MOST_ITEMS = 10_000  # of a data set that is not in memory, whose every example costs a call


def data_digest(source: Source) -> str:
    """Return a digest of all inputs and labels, in order.

    Arrays are read piece by piece, also where they are mapped from a file, as they are stored: uint8 images and the same
    numbers as floats differ. Of a data set that is not in memory, 10,000 examples spread over it are read, or all of fewer.

    Args:
        source: N examples.

    Returns:
        16 hexadecimal digits.
    """
    whole = hashlib.sha256(str(len(source)).encode())
    inputs, targets = hashlib.sha256(), hashlib.sha256()
    kind = None
    for x, y in _pieces(source):
        kind = kind or f"{x.dtype} {tuple(x.shape[1:])}"
        inputs.update(_bytes(x))
        targets.update(_bytes(y.long()))
    for part in (str(kind).encode(), inputs.digest(), targets.digest()):
        whole.update(part)
    return whole.hexdigest()[:16]


def _pieces(source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(source, Joined):
        yield from _pieces(source.first)
        yield from _pieces(source.second)
        return
    if in_memory(source):
        width = max(_stored(source, torch.arange(1))[0].nbytes, 1)
        which = torch.arange(len(source))
    else:
        width = _AT_ONCE // 64
        which = torch.linspace(0, len(source) - 1, min(len(source), _MOST_ITEMS), dtype=torch.float64).long()
    for index in which.split(max(1, _AT_ONCE // width)):
        yield _stored(source, index)


def _stored(source: Source, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs as they are stored; consecutive ones as a view, which copies nothing."""
    if isinstance(source, Part):
        return _stored(source.whole, source.index[index])
    if not isinstance(source, Arrays):
        return source.fetch(index)
    first, last = int(index[0]), int(index[-1]) + 1
    if last - first == len(index) and bool((index == torch.arange(first, last)).all()):
        return source.x[first:last], source.y[first:last]
    return source.x[index], source.y[index]


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
