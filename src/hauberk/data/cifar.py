"""The Python batches of CIFAR-10 and CIFAR-100: pickles, read without running what they might carry."""

import pickle
import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np

from hauberk.core.errors import UserError, in_one_line


class _ArraysOnly(pickle.Unpickler):
    """Knows arrays of bytes and nothing else, and builds them itself: NumPy's own way crashes on hostile states."""

    def __init__(self, raw: bytes):
        super().__init__(BytesIO(raw), encoding="bytes")
        # All that the original files name. Made anew for each file, because a pickle can write to what it is handed.
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    class Dtype:
        def __init__(self, name: Any, *flags: Any):
            self.is_bytes = name in (b"u1", "u1")

        def __setstate__(self, state: Any) -> None:
            """Byte order and the like, which bytes do not have."""

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


def read_batch(raw: bytes, path: object) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file.

    Args:
        raw: its bytes.
        path: its name, for the error message.

    Returns:
        images (N, 3, 32, 32) uint8 and labels (N,) int64; CIFAR-100's fine labels.

    Raises:
        UserError: if it is not such a file, or names anything but arrays.
    """
    try:
        if any(op.name in ("PUT", "LONG_BINPUT") and int(arg or 0) > len(raw) for op, arg, _ in pickletools.genops(raw)):
            raise ValueError("it asks for more memory than it can need")
        batch = _ArraysOnly(raw).load()
        images = batch[b"data"].array
        labels = np.asarray(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"], dtype=np.int64)
        if images.dtype != np.uint8 or labels.ndim != 1:
            raise ValueError("data must be unsigned bytes, labels a list")
        return images.reshape(len(labels), 3, 32, 32), labels
    except Exception as error:  # a foreign pickle can fail in any way
        raise UserError(f"{path} is not a CIFAR batch in the Python format: {in_one_line(error)}") from error
