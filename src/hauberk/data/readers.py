"""Readers of original files: MNIST's idx format, CIFAR's Python batches and SVHN. None runs what a file might carry."""

import gzip
import hashlib
import io
import math
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hauberk.core.errors import UserError, in_one_line

Files: TypeAlias = Iterable[tuple[Path, bytes]]  # each with its content
ImagesAndLabels: TypeAlias = tuple[np.ndarray, np.ndarray]

_MAX_UNPACKED = 2**30  # bytes; a small file may claim to unpack to any size
_MAX_DIMENSIONS = 4  # examples, and up to three of an image


def read_files(paths: Sequence[Path], checksums: Mapping[str, str] | None) -> Iterator[tuple[Path, bytes]]:
    """Read original files one after the other, unpacked where they are gzipped; ``checksums`` are MD5 of what they then hold.

    Raises:
        UserError: if a file is damaged, holds more than 1 GiB, or is not the original one.
    """
    for path in paths:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            try:
                with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
                    raw = file.read(_MAX_UNPACKED + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path} is damaged: {error}") from error
        if len(raw) > _MAX_UNPACKED:
            raise UserError(f"{path} holds more than {_MAX_UNPACKED / 2**30:.0f} GiB")
        if checksums is not None:
            seen, right = hashlib.md5(raw, usedforsecurity=False).hexdigest(), checksums[path.name.removesuffix(".gz")]
            if seen != right:
                said = f"MD5 {seen}, expected {right}. If that is meant, add --no-verify"
                raise UserError(f"{path} is not the original file: {said}")
        yield path, raw


def read_mnist(files: Files) -> ImagesAndLabels:
    """Read a file of images and one of labels in the idx format. Returns images (N, 1, H, W) uint8 and labels (N,)."""
    (images_path, images), (labels_path, labels) = ((path, read_idx(raw, path)) for path, raw in files)
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(f"{images_path} must hold images and {labels_path} labels")
    return images[:, None], labels


def read_cifar(files: Files) -> ImagesAndLabels:
    """Read batches in CIFAR's Python format. Returns images (N, 3, 32, 32) uint8 and labels (N,)."""
    images, labels = zip(*(read_cifar_batch(raw, path) for path, raw in files), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def read_svhn(files: Files) -> ImagesAndLabels:
    """Read SVHN's MATLAB file of cropped digits. Returns images (N, 3, 32, 32) uint8 and labels (N,)."""
    from scipy.io import loadmat  # slow to import, seldom needed

    ((path, raw),) = files
    try:
        content = loadmat(io.BytesIO(raw), variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError("X must be (H, W, 3, N) unsigned bytes")
    except Exception as error:  # SciPy's reader fails in many ways on a foreign file
        raise UserError(f"{path} is not an SVHN file: {error}") from error
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels % 10  # the files write the digit 0 as 10


def read_idx(raw: bytes, path: object) -> np.ndarray:
    """Read the content of an idx file of unsigned bytes; ``path`` is for the error message.

    Raises:
        UserError: if it is no such file, or cut short.
    """
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise UserError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    # Python integers: a hostile header cannot overflow.
    if not 1 <= len(shape) <= _MAX_DIMENSIONS or 0 in shape or math.prod(shape) != len(body):
        raise UserError(f"{path} is cut short or damaged: {len(body)} bytes where its header says {str(shape)[:60]}")
    return body.reshape(shape)


def read_cifar_batch(raw: bytes, path: object) -> ImagesAndLabels:
    """Read the content of one batch of CIFAR-10, or of CIFAR-100 with its fine labels; ``path`` is for the error message.

    Raises:
        UserError: if it is no such file, or names anything but arrays.
    """
    try:
        if any(op.name in ("PUT", "LONG_BINPUT") and int(arg or 0) > len(raw) for op, arg, _ in pickletools.genops(raw)):
            raise ValueError("it asks for more memory than it can need")
        batch = _ArrayUnpickler(raw).load()
        images = batch[b"data"].array
        labels = np.asarray(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"], dtype=np.int64)
        if images.dtype != np.uint8 or labels.ndim != 1:
            raise ValueError("data must be unsigned bytes, labels a list")
        return images.reshape(len(labels), 3, 32, 32), labels
    except Exception as error:  # a foreign pickle can fail in any way
        raise UserError(f"{path} is not a CIFAR batch in the Python format: {in_one_line(error)}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays of bytes and nothing else, and builds them itself: NumPy's own way crashes on hostile states."""

    def __init__(self, raw: bytes):
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self._known = _array_builders()  # made anew for each file, because a pickle can write to what it is handed

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def _array_builders() -> dict[tuple[str, str], Callable[..., Any]]:
    """Return stand-ins for all that the original files name."""

    class Dtype:
        def __init__(self, name: Any, *flags: Any):
            self.is_bytes = name in (b"u1", "u1")

        def __setstate__(self, state: Any) -> None:
            """Ignore byte order and the like, which bytes do not have."""

    class Array:
        array = np.zeros(0, np.uint8)

        def __init__(self, *ignored: Any):
            pass

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, by_column, content = state
            if not isinstance(dtype, Dtype) or not dtype.is_bytes or not isinstance(content, bytes):
                raise pickle.UnpicklingError("data must be unsigned bytes")
            self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_column else "C")

    def encode(text: Any, encoding: Any = "latin1") -> bytes:
        return str(text).encode("latin1")

    return {
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): encode,
    }
