"""Data sets whose examples are fetched by index, many at once; their checks, digests and statistics."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from torch import Tensor, nn

from hauberk.core.arguments import check_argument, checked, shown
from hauberk.core.device import send
from hauberk.core.errors import UserError, in_one_line
from hauberk.threat import ThreatModel
from hauberk.threat.batch import OTHER_LABELS, check_inputs, check_labels, check_own_labels

_MEMORY_FRACTION = 0.25  # of a device's free memory that a data set may take at most
_CHUNK_NUMBERS = 2**20  # numbers looked at together
_CHUNK_BYTES = 2**25  # bytes hashed together
_MAX_ITEMS_HASHED = 10_000  # of a data set that is not in memory, whose every example costs a call
_ITEMS_CHECKED = 256  # likewise


class IndexedDataset(torch_data.Dataset[tuple[Tensor, Tensor]], ABC):
    """Examples by index. A subclass of your own needs ``__len__`` and ``fetch``; a ``DataLoader`` takes it, too.

    Attributes:
        name: name of the data set.
        classes: number of classes, or None if it is not known.
        folder: where a named data set was read from; empty for others.
        in_time_order: whether examples come in the order of time. Then the last ones are held out for validation, not random
            ones, which would say how well the past is known, not the future.
    """

    name = "data"
    classes: int | None = None
    folder = ""
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
    """Examples in memory, with ``classes``, ``name`` and ``folder`` as in :class:`IndexedDataset`.

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

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...), floating, and labels (B,)."""
        x, y = self.gather(index)
        return _as_floats(x), y

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
                y = torch.tensor([int(pair[1]) for pair in pairs])
            else:
                y = torch.stack([torch.as_tensor(np.asarray(pair[1])) for pair in pairs])
        except Exception as error:
            kind, problem = "integer label" if self.of_classes else "label", in_one_line(error)
            raise UserError(f"the data set must give pairs of an array and an {kind}: {problem}") from error
        return _as_floats(x), y


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
            ``Dataset``; or a ``DataLoader``, of which only the data set is used, because order and batches are Hauberk's.
        of_classes: whether labels are numbers of classes; otherwise they may be any numbers, (N, ...).

    Raises:
        UserError: if it is none of these, or empty.
    """
    if isinstance(data, torch_data.DataLoader):
        data = data.dataset
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


def _is_map_style(data: Any) -> bool:
    """Whether examples can be asked for by number."""
    kind = type(data)  # a class is no data set, whatever its instances have
    has_both = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    return has_both and not isinstance(data, str | bytes | Mapping | Tensor | np.ndarray | nn.Module)


def fetch_for(model: nn.Module, dataset: IndexedDataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch inputs and labels of the examples ``index`` (B,) of ``dataset``, on the device and in the dtype of ``model``.

    The dtype is at least float32. Data not in memory are checked for NaN, because nobody has looked at all of them before.

    Raises:
        UserError: for NaN or infinite values in such data, and for items that are no pairs of an array and a label.
    """
    if isinstance(dataset, Subset):  # so that whoever complains names the examples as the caller's data set has them
        return fetch_for(model, dataset.dataset, dataset.indices[index])
    # Bytes travel as they are, in a quarter of the time that floats take.
    x, y = dataset.gather(index) if type(dataset) is TensorDataset else dataset.fetch(index)
    if not in_memory(dataset) and not bool(x.isfinite().all()):
        raise UserError(f"the data has NaN or infinite values, among examples {index.tolist()[:5]}...")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    x, y = _as_floats(send(x, like.device)).to(dtype), send(y, like.device)
    return x, y.to(dtype) if y.is_floating_point() else y


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
    return torch.cat([dataset.fetch(torch.tensor([i]))[1] for i in range(len(dataset))])


def to_device(dataset: IndexedDataset, device: torch.device) -> IndexedDataset:
    """Return the examples of arrays that take at most a quarter of a CUDA device's free memory as arrays there.

    Batches are then gathered and scaled there, and nothing but indices travels. Anything else is returned as it is.
    """
    if device.type != "cuda":
        return dataset
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([to_device(part, device) for part in dataset.datasets])
    if not in_memory(dataset) or not len(dataset) or (isinstance(dataset, TensorDataset) and dataset.x.is_cuda):
        return dataset
    like, _ = stored(dataset, torch.arange(1))
    if len(dataset) * like.nbytes > _MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]:
        return dataset
    x = torch.empty(len(dataset), *like.shape[1:], dtype=like.dtype, device=device)
    y = torch.empty(len(dataset), dtype=torch.int64, device=device)
    done = 0
    for x_part, y_part in _pieces(dataset):
        there = slice(done, done := done + len(y_part))
        x[there], y[there] = x_part.to(device), y_part.to(device)
    soft, _ = dataset.soft_labels(torch.arange(len(dataset)))
    soft = None if soft is None else soft.to(device)
    return TensorDataset(x, y, dataset.classes, dataset.name, dataset.folder, soft)


@checked
def pseudo_label(model: nn.Module, x: Any, *, least_confidence: float = 0.0) -> TensorDataset:
    """Label examples with the prediction of a standard model (Carmon et al. 2019, robust self-training).

    Args:
        model: trained without an attack, on the labelled examples; unchanged afterwards.
        x: inputs, (N, ...), floating or uint8, a tensor or a NumPy array.
        least_confidence: leave out examples whose largest probability is below this.

    Returns:
        The examples with their predicted labels, for ``hb.train(..., extra=...)``.

    Raises:
        UserError: if ``x`` cannot be read, or nothing is left.
    """
    try:
        inputs = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"x must be an array: {in_one_line(error)}") from error
    dataset = as_dataset((inputs, torch.zeros(inputs.shape[:1], dtype=torch.int64)))
    confidences, predictions = [], []
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}), torch.no_grad():
            for index in torch.arange(len(dataset)).split(1000):
                x_part, _ = fetch_for(model, dataset, index)
                try:
                    best = model(x_part).float().softmax(1).cpu().max(1)
                except Exception as error:  # the forward of somebody's model may raise anything, or return anything
                    problem = f"{type(error).__name__}: {in_one_line(error)}"
                    raise UserError(f"the model gives no logits (B, C) for inputs {tuple(x_part.shape)}: {problem}") from error
                confidences.append(best.values)
                predictions.append(best.indices)
    finally:
        for module, mode in modes:
            module.training = mode
    keep = torch.cat(confidences) >= least_confidence
    kept = _of_arrays(inputs[keep], torch.cat(predictions)[keep])
    if len(kept) == 0:
        raise UserError(f"the data set is empty: no prediction has a probability of {least_confidence}")
    return kept


def check_dataset(dataset: IndexedDataset, threat: ThreatModel, classes: int | None = None) -> None:
    """Check all examples of arrays, or the first 256 of any other data set, with so many classes if its own are not known.

    Raises:
        UserError: for NaN, inputs outside the box of the threat model (normalised by mistake), and labels out of range.
    """
    for x, y in _chunks(dataset, len(dataset) if in_memory(dataset) else min(len(dataset), _ITEMS_CHECKED)):
        check_inputs(x, y, threat, classes if dataset.classes is None else dataset.classes)


def channel_statistics(dataset: IndexedDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel (first dimension of an example), for a normalisation layer."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for x, _ in _chunks(dataset, len(dataset)):
        values = x.double().transpose(0, 1).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-8).tolist())


@checked
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
    if y.ndim != 1 or not len(y) or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"y must be labels, integers of shape (N,), got {shown(y)}")
    check_labels(y, None)
    kept, last = [], int(y.max())
    for k in range(last + 1):
        members = (y == k).nonzero().squeeze(1)
        kept.append(members[: max(1, round(len(members) * ratio ** (-k / max(last, 1))))])
    return torch.cat(kept).sort().values


def data_digest(dataset: IndexedDataset) -> str:
    """Return a digest of all inputs, labels and probabilities, in order: what a result is bound to.

    Arrays are read piece by piece as they are stored, also where they are mapped from a file: uint8 images and the same
    numbers as floats differ. Of a data set that is not in memory, 10,000 examples spread over it are read, or all of fewer.
    """
    inputs, targets, kind = hashlib.sha256(), hashlib.sha256(), ""
    for index in torch.arange(len(dataset)).split(_MAX_ITEMS_HASHED):
        soft, _ = dataset.soft_labels(index)
        if soft is None:
            break
        targets.update(_bytes(soft))
    for x, y in _pieces(dataset):
        kind = kind or f"{x.dtype} {tuple(x.shape[1:])}"
        inputs.update(_bytes(x))
        targets.update(_bytes(y if y.is_floating_point() else y.long()))
    return hashlib.sha256(f"{len(dataset)}{kind}".encode() + inputs.digest() + targets.digest()).hexdigest()[:16]


def _pieces(dataset: IndexedDataset) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _pieces(part)
        return
    if in_memory(dataset):
        size = max(stored(dataset, torch.arange(1))[0].nbytes, 1)
        which = torch.arange(len(dataset))
    else:
        size = _CHUNK_BYTES // 64
        which = torch.linspace(0, len(dataset) - 1, min(len(dataset), _MAX_ITEMS_HASHED), dtype=torch.float64).long()
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


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _chunks(dataset: IndexedDataset, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Fetch the first ``count`` examples, in parts that are small however large an example is."""
    size = max(dataset.fetch(torch.arange(1))[0].numel(), 1)
    for index in torch.arange(count).split(max(1, _CHUNK_NUMBERS // size)):
        yield dataset.fetch(index)


def _as_floats(x: Tensor) -> Tensor:
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
