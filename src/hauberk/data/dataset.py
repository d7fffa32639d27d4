"""Data sets whose examples are fetched by index, many at once."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from torch import Tensor, nn

from hauberk.core.arguments import check_argument, checked, shown
from hauberk.core.device import send
from hauberk.core.errors import UserError, in_one_line
from hauberk.threat.batch import OTHER_LABELS, check_own_labels


class IndexedDataset(torch_data.Dataset[tuple[Tensor, Tensor]], ABC):
    """Examples by index. A subclass of your own needs ``__len__`` and ``fetch``; a ``DataLoader`` takes it, too.

    Attributes:
        name: name of the data set.
        classes: number of classes, or None if it is not known.
        folder: where a named data set was read from; empty for others.
        labelled_by: folder or file of the network that gave the labels; empty where they are the data set's own.
        in_time_order: whether examples come in the order of time. Then the last ones are held out for validation, not random
            ones, which would say how well the past is known, not the future.
    """

    name = "data"
    classes: int | None = None
    folder = ""
    labelled_by = ""
    in_time_order = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,) int64 of the examples ``index`` (B,)."""

    def soft_labels(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return probabilities of the classes, (B, C), of the examples ``index``, and which of them have some, (B,).

        None for the first where no example of the data set has any, None for the second where all have.
        """
        return None, None

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*self.fetch(torch.as_tensor(indices)), strict=True))

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {self.classes} classes"
        return f"{type(self).__name__}({self.name!r}, {len(self)} examples{classes})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.fetch(torch.arange(1))[0].shape[1:])


@dataclass(eq=False, repr=False)
class TensorDataset(IndexedDataset):
    """Examples in memory, with ``classes``, ``name``, ``folder`` and ``labelled_by`` as in :class:`IndexedDataset`.

    Attributes:
        x: inputs, (N, ...): uint8, meaning [0, 1] in steps of 1/255, or floating.
        y: labels, (N,) int64; of a task with a criterion and a loss of its own, of any kind, (N, ...).
        probabilities: of the classes, (N, C), floating, to learn from in place of the labels, which are the most probable
            classes; or None.
    """

    x: Tensor
    y: Tensor
    classes: int | None = None
    name: str = "arrays"
    folder: str = ""
    probabilities: Tensor | None = None
    labelled_by: str = ""

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        x, y = self.gather(index)
        return as_floats(x), y

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs as they are stored, and labels."""
        index = send(index, self.x.device)
        return self.x[index], self.y[index]

    def soft_labels(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return ``probabilities`` of some examples."""
        if self.probabilities is None:
            return None, None
        return self.probabilities[send(index, self.probabilities.device)], None


class MapDataset(IndexedDataset):
    """Examples of a map-style data set: ``items[i]`` is a pair ``(x, y)``, asked for when it is needed."""

    def __init__(self, items: Any, of_classes: bool = True):
        self.items, self.name, self.of_classes = items, type(items).__name__, of_classes

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        pairs = []
        for i in index.tolist():
            try:
                pairs.append(self.items[i])
            except Exception as error:  # somebody's code may raise anything
                raise UserError(f"the data set fails at example {i}: {type(error).__name__}: {in_one_line(error)}") from error
        try:
            x = torch.stack([torch.as_tensor(np.asarray(pair[0])) for pair in pairs])
            if self.of_classes:
                y = torch.tensor([_whole(pair[1]) for pair in pairs])
            else:
                y = torch.stack([torch.as_tensor(np.asarray(pair[1])) for pair in pairs])
        except UserError:
            raise
        except Exception as error:
            kind, problem = "integer label" if self.of_classes else "label", in_one_line(error)
            raise UserError(f"the data set must give pairs of an array and an {kind}: {problem}") from error
        return as_floats(x), y


def _whole(label: Any) -> int:
    """Return a label as an integer, unless it would be cut to one."""
    number = int(label)
    if number != float(label):
        raise UserError(f"labels must be integers, got {float(label):g}; {OTHER_LABELS}")
    return number


class Subset(IndexedDataset):
    """The examples ``indices``, (N,) int64, of another data set."""

    @checked
    def __init__(self, dataset: IndexedDataset, indices: Tensor):
        if indices.ndim != 1 or indices.dtype != torch.int64:
            raise UserError(f"indices must be whole numbers of shape (N,), int64, got {shown(indices)}")
        if len(indices) and not (indices.min() >= -len(dataset) and indices.max() < len(dataset)):
            raise UserError(f"indices must be below {len(dataset)}, the number of examples, got {int(indices.max())}")
        self.dataset, self.indices = dataset, indices
        self.name, self.classes, self.folder = dataset.name, dataset.classes, dataset.folder
        self.in_time_order = dataset.in_time_order and bool((indices.diff() > 0).all())

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        return self.dataset.fetch(self.indices[index])

    def soft_labels(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return those of the other data set."""
        return self.dataset.soft_labels(self.indices[index])


class ConcatDataset(IndexedDataset):
    """Several data sets, one behind the other; name, number of classes and folder are those of the first."""

    @checked
    def __init__(self, datasets: Sequence[IndexedDataset]):
        if not datasets:
            raise UserError("there are no data sets to put together")
        self.datasets, first = list(datasets), datasets[0]
        self.name, self.classes, self.folder = first.name, first.classes, first.folder
        self.ends = torch.tensor([len(dataset) for dataset in datasets]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,), in the order of ``index``."""
        which = torch.bucketize(index.contiguous(), self.ends, right=True)
        places, parts = [], []
        for k in which.unique().tolist():
            places.append((which == k).nonzero().squeeze(1))
            parts.append(self.datasets[k].fetch(index[places[-1]] - (self.ends[k] - len(self.datasets[k]))))
        order = torch.cat(places).argsort()
        x, y = (torch.cat([part.to(column[0]) for part in column]) for column in zip(*parts, strict=True))
        order = send(order, x.device)
        return x[order], y[order]

    def soft_labels(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return those of the data sets that have some."""
        which = torch.bucketize(index.contiguous(), self.ends, right=True)
        whole, has = None, torch.zeros(len(index), dtype=torch.bool)
        for k, dataset in enumerate(self.datasets):
            place = (which == k).nonzero().squeeze(1)
            soft, known = dataset.soft_labels(index[place] - (self.ends[k] - len(dataset)))
            if soft is not None:
                whole = soft.new_zeros(len(index), soft.shape[1]) if whole is None else whole
                if soft.shape[1] != whole.shape[1]:
                    raise UserError(f"data sets have probabilities of {whole.shape[1]} and {soft.shape[1]} classes")
                whole[send(place, whole.device)] = soft
                has[place] = True if known is None else known.cpu()
        return whole, None if whole is None or bool(has.all()) else has


def as_dataset(data: Any, of_classes: bool = True) -> IndexedDataset:
    """Make an indexed data set of whatever the caller has.

    Args:
        data: one already; a pair (x, y) of tensors or NumPy arrays, uint8 inputs meaning steps of 1/255; a map-style torch
            ``Dataset``; or a ``DataLoader`` over all examples of one, of which only the data set is used, because order and
            batches are Hauberk's.
        of_classes: whether labels are numbers of classes; otherwise they may be any numbers, (N, ...).

    Raises:
        UserError: if it is none of these, or empty; and for a loader that draws a part of its data set, some examples more
            often than others, or changes them.
    """
    if isinstance(data, torch_data.DataLoader):
        data = _all_behind(data)
    dataset: IndexedDataset
    if isinstance(data, IndexedDataset):
        dataset = data
    elif isinstance(data, torch_data.TensorDataset) and len(data.tensors) == 2:
        dataset = _of_arrays(data.tensors[0], data.tensors[1], of_classes)
    elif isinstance(data, tuple | list) and len(data) == 2:
        dataset = _of_arrays(data[0], data[1], of_classes)
    elif _is_map_style(data):
        dataset = MapDataset(data, of_classes)
    else:
        raise UserError(f"data must be a pair (x, y) of arrays or a map-style Dataset, which has a length; not {shown(data)}")
    if len(dataset) == 0:
        raise UserError("the data set is empty")
    return dataset


def _all_behind(loader: "torch_data.DataLoader[Any]") -> Any:
    """Return the data set of a loader that gives each of its examples once in a pass, as it is."""
    data: Any = loader.dataset
    batches = loader.batch_sampler
    if isinstance(data, torch_data.IterableDataset) or not _is_map_style(data):
        return data  # which is refused as such
    plain_batches = batches is None or type(batches) is torch_data.BatchSampler
    sampler: Any = getattr(batches, "sampler", loader.sampler) if plain_batches else batches
    plain = type(sampler) in (torch_data.SequentialSampler, torch_data.RandomSampler)
    if not plain or getattr(sampler, "replacement", False) or len(sampler) != len(data):
        raise UserError(
            f"a loader's {type(sampler).__name__} may leave examples out or repeat some, and Hauberk draws batches by itself; "
            "pass the data set, or torch.utils.data.Subset(dataset, indices)"
        )
    if loader.collate_fn not in (torch_data.default_collate, torch_data.default_convert):
        raise UserError("a loader's collate_fn is not called; pass a data set whose examples are as it makes them")
    return data


def _is_map_style(data: Any) -> bool:
    """Whether examples can be asked for by number."""
    kind = type(data)  # a class is no data set, whatever its instances have
    has_both = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    return has_both and not isinstance(data, str | bytes | Mapping | Tensor | np.ndarray | nn.Module)


def in_memory(dataset: IndexedDataset) -> bool:
    """Whether all examples are arrays, which may be mapped from a file."""
    if isinstance(dataset, ConcatDataset):
        return all(map(in_memory, dataset.datasets))
    return isinstance(dataset, TensorDataset) or (isinstance(dataset, Subset) and in_memory(dataset.dataset))


def labels(dataset: IndexedDataset) -> Tensor:
    """Return all labels, (N,) int64. This costs a pass over data that are not in memory."""
    if isinstance(dataset, TensorDataset):
        return dataset.y
    if isinstance(dataset, Subset):
        return labels(dataset.dataset)[dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return torch.cat(list(map(labels, dataset.datasets)))
    return torch.cat([dataset.fetch(torch.tensor([i]))[1] for i in range(len(dataset))])


def as_floats(x: Tensor) -> Tensor:
    """Return inputs as floating numbers: bytes as steps of 1/255."""
    # By a tensor: a GPU would multiply by the reciprocal of a number, and round otherwise than a CPU.
    return x.float() / torch.full((), 255.0, device=x.device) if x.dtype == torch.uint8 else x


def _of_arrays(x: Any, y: Any, of_classes: bool = True) -> TensorDataset:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # such as a file mapped for reading; nobody writes
            inputs, targets = torch.as_tensor(x), torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"data must be a pair (x, y) of arrays: {in_one_line(error)}") from error
    check_argument("inputs", inputs, Tensor)
    check_argument("labels", targets, Tensor)
    shape = tuple(inputs.shape)
    if inputs.ndim < 2:
        raise UserError(f"inputs must have a batch dimension and features, got shape {shape}")
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        raise UserError(f"inputs have dtype {inputs.dtype}; give floats inside the box, or uint8 images")
    if not of_classes and len(inputs):
        return TensorDataset(inputs, check_own_labels(torch.zeros(len(inputs), dtype=torch.float64), targets))
    if targets.ndim != 1 or len(targets) != len(inputs):
        hint = f"; {OTHER_LABELS}" if targets.ndim == 2 and len(inputs) == len(targets) else ""
        raise UserError(f"inputs of shape {shape} need labels of shape ({len(inputs)},), got {tuple(targets.shape)}{hint}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise UserError(f"labels must be integers, got {targets.dtype}; {OTHER_LABELS}")
    return TensorDataset(inputs, targets.long())
