"""Further training examples: labelled, pseudo-labelled or generated, from Python or from a file of arrays."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.arguments import check_argument, shown
from hauberk.core.device import send
from hauberk.core.errors import UserError, in_one_line
from hauberk.data.dataset import IndexedDataset, TensorDataset, as_dataset

_SUM = 1e-3  # by how much the probabilities of an example may miss 1
_CHANNELS = (1, 3, 4)


def as_extra(data: Any, classes: int | None = None) -> IndexedDataset:
    """Make an indexed data set of further training examples.

    Args:
        data: what :func:`~hauberk.data.as_dataset` takes; a pair (x, p) with p, (N, C), floating, the probability of each class
            of each example; or the path of an ``.npz`` file, for :func:`read_extra`.
        classes: number of classes, if it is known.

    Raises:
        UserError: if it is none of these, or empty, and for rows of p that are no probabilities.
    """
    if isinstance(data, str | Path):
        return read_extra(data, classes)
    if isinstance(data, tuple | list) and len(data) == 2 and getattr(data[1], "ndim", 1) == 2:
        try:
            x, p = torch.as_tensor(data[0]), torch.as_tensor(data[1])
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"data must be a pair (x, y) of arrays: {in_one_line(error)}") from error
        check_argument("labels", p, Tensor)
        found = as_dataset((x, _largest(p)))
        assert isinstance(found, TensorDataset)
        found.probabilities = p
        found.classes = p.shape[1]
        return found
    return as_dataset(data)


def read_extra(path: str | Path, classes: int | None = None) -> IndexedDataset:
    """Read further training examples from an ``.npz`` file, in the format of generated data sets (Rebuffi 2021, Wang 2023).

    Args:
        path: of a file with the arrays ``image``, uint8, (N, H, W, channels), or floating, (N, ...) as the network takes them;
            and ``label``, (N,) integers, or (N, C), the probability of each class.
        classes: number of classes, if it is known.

    Returns:
        The examples; uint8 images stay bytes, (N, channels, H, W).

    Raises:
        UserError: if the file cannot be read, has no such arrays, or has objects in it.
    """
    image, label = _read_arrays(path)
    if label is None:
        advice = "give them by a network (--extra-labels RUN; in Python hauberk.data.pseudo_label)"
        raise UserError(f"{path} has no array label: {advice}")
    if label.ndim == 1 and label.dtype.kind == "u":
        label = label.astype(np.int64)
    try:
        found = as_extra((image, label), classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    found.name, found.folder = Path(path).name, str(path)
    return found


def read_images(path: str | Path) -> Tensor:
    """Read the inputs of such a file, whether it has labels or not: (N, ...), uint8 images as (N, channels, H, W).

    Raises:
        UserError: as :func:`read_extra`.
    """
    try:
        return torch.as_tensor(_read_arrays(path)[0])
    except TypeError as error:  # numbers that torch does not have, or none
        raise UserError(f"{path}: {in_one_line(error)}") from error


def _read_arrays(path: str | Path) -> tuple[Any, Any]:
    """Return the inputs, images with their channels in front, and the labels or None."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise ValueError("it is a single array")
            image, label = arrays["image"], arrays.get("label")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, EOFError, MemoryError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not an .npz file with the arrays image and label: {in_one_line(error)}") from error
    if image.dtype == np.uint8:
        image = image[..., None] if image.ndim == 3 else image
        if image.ndim != 4 or image.shape[3] not in _CHANNELS:
            raise UserError(f"{path}: image must be (N, H, W, channels), got {shown(image)}")
        image = image.transpose(0, 3, 1, 2)
    return image, label


def _largest(p: Tensor) -> Tensor:
    """The most probable class of each row, (N,)."""
    good = p.is_floating_point() and p.shape[1] > 1
    if not good or not bool(((p >= 0).all(1) & ((p.sum(1) - 1).abs() <= _SUM)).all()):
        raise UserError("labels (N, C) must be probabilities: floating, not negative, with the sum 1 for each example")
    return p.argmax(1)


def target_probabilities(dataset: IndexedDataset, index: Tensor, y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return the probabilities of the classes of the examples ``index``, (B, C): the data set's, or 1 for the labels ``y``.

    Args:
        dataset: of them.
        index: (B,).
        y: labels, (B,).
        classes: C, at least as many as the data set has; those beyond get 0.
        dtype: of the result, which is on the device of ``y``.
    """
    hard = torch.zeros(len(y), classes, dtype=dtype, device=y.device).scatter_(1, y[:, None], 1.0)
    soft, known = dataset.soft_labels(index)
    if soft is None:
        return hard
    soft = torch.nn.functional.pad(send(soft, y.device).to(dtype), (0, classes - soft.shape[1]))
    return soft if known is None else torch.where(send(known, y.device)[:, None], soft, hard)
