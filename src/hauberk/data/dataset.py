"""Where examples come from: arrays in memory, or any map-style data set, behind one small interface."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hauberk.core.errors import UserError


class Source(Protocol):
    """Examples by index."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def classes(self) -> int | None:
        """How many classes there are, if known."""
        ...

    def __len__(self) -> int:
        """Count the examples."""
        ...

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,) int64 of the examples ``index`` (B,)."""
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Examples in memory.

    Attributes:
        x: inputs, (N, ...): uint8, meaning [0, 1] in steps of 1/255, or floating.
        y: labels, (N,) int64.
        classes: how many classes there are, if known.
        name: of the data set.
        folder: where it was read from, for a named data set.
    """

    x: Tensor
    y: Tensor
    classes: int | None = None
    name: str = "arrays"
    folder: str = ""

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        x = self.x[index]
        return (x.float() / 255 if x.dtype == torch.uint8 else x), self.y[index]


@dataclass(frozen=True, eq=False)
class Items:
    """Examples of a map-style data set, fetched one by one as they are needed.

    Attributes:
        items: gives ``(x, y)`` for each index.
        classes: how many classes there are, if known.
        name: of the data set.
    """

    items: Any
    classes: int | None = None
    name: str = "items"

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        pairs = [self.items[i] for i in index.tolist()]
        try:
            x = torch.stack([torch.as_tensor(np.asarray(pair[0])) for pair in pairs])
            y = torch.tensor([int(pair[1]) for pair in pairs])
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(f"the data set must give pairs of an array and an integer label: {error}") from error
        return (x.float() / 255 if x.dtype == torch.uint8 else x), y


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the examples of another source.

    Attributes:
        whole: the other source.
        index: which examples, (N,) int64.
    """

    whole: Source
    index: Tensor

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.whole.name

    @property
    def classes(self) -> int | None:
        """How many classes there are, if known."""
        return self.whole.classes

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        return self.whole.fetch(self.index[index])


@dataclass(frozen=True, eq=False)
class Joined:
    """Two sources, one behind the other.

    Attributes:
        first: whose name and classes it has.
        second: whose examples follow.
    """

    first: Source
    second: Source

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.first.name

    @property
    def classes(self) -> int | None:
        """How many classes there are, if known."""
        return self.first.classes

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,), in the order of ``index``."""
        behind = index >= len(self.first)
        x1, y1 = self.first.fetch(index[~behind])
        x2, y2 = self.second.fetch(index[behind] - len(self.first))
        place = torch.cat([(~behind).nonzero(), behind.nonzero()]).squeeze(1).argsort()
        return torch.cat([x1, x2.to(x1.dtype)])[place], torch.cat([y1, y2])[place]


def as_source(data: Any) -> Source:
    """Make a source of whatever the caller has.

    Args:
        data: a source; a pair (x, y) of tensors or NumPy arrays; a map-style torch ``Dataset``; or a ``DataLoader``, of which
            only the data set is used, because order and batches are Hauberk's business.

    Returns:
        The source; uint8 inputs are taken for images in steps of 1/255.

    Raises:
        UserError: if it is none of these, or empty.
    """
    source: Source
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Arrays | Items | Part | Joined):
        source = data
    elif isinstance(data, TensorDataset) and len(data.tensors) == 2:
        source = _arrays(*data.tensors)
    elif isinstance(data, tuple | list) and len(data) == 2:
        source = _arrays(*data)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        source = Items(data, name=type(data).__name__)
    elif isinstance(data, Dataset):
        raise UserError(f"{type(data).__name__} has no length; give a map-style data set or arrays")
    else:
        raise UserError(f"data must be a pair (x, y) of arrays or a map-style Dataset, not {type(data).__name__}")
    if len(source) == 0:
        raise UserError("the data set is empty")
    return source


def fetch_for(model: nn.Module, source: Source, index: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch the examples ``index`` (B,) of ``source`` for ``model``: on its device, in its floating dtype (at least float32).

    Data not held in memory is checked for NaN here, because nobody has looked at all of it before.

    Returns:
        Inputs (B, ...) and labels (B,).

    Raises:
        UserError: for NaN or infinite values in such data, and for items that are no pairs of an array and a label.
    """
    x, y = source.fetch(index)
    if not in_memory(source) and not bool(x.isfinite().all()):
        raise UserError(f"the data has NaN or infinite values, among examples {index.tolist()[:5]}...")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    return x.to(device=like.device, dtype=dtype, non_blocking=True), y.to(like.device, non_blocking=True)


def in_memory(source: Source) -> bool:
    """Whether all examples are arrays, which may be mapped from a file."""
    if isinstance(source, Joined):
        return in_memory(source.first) and in_memory(source.second)
    return isinstance(source, Arrays) or (isinstance(source, Part) and in_memory(source.whole))


def _arrays(x: Tensor | np.ndarray | Sequence[Any], y: Tensor | np.ndarray | Sequence[int]) -> Arrays:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # such as a file mapped for reading; nobody writes
            inputs, targets = torch.as_tensor(x), torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"data must be a pair (x, y) of arrays: {error}") from error
    if inputs.ndim < 2:
        raise UserError(f"inputs must have a batch dimension and features, got shape {tuple(inputs.shape)}")
    if targets.ndim != 1 or len(targets) != len(inputs):
        raise UserError(
            f"inputs of shape {tuple(inputs.shape)} need labels of shape ({len(inputs)},), got {tuple(targets.shape)}"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise UserError(f"labels must be integers, got {targets.dtype}")
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        raise UserError(f"inputs have dtype {inputs.dtype}; give floats inside the box, or uint8 images")
    return Arrays(inputs, targets.long())
