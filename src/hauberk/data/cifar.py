"""The Python batches of CIFAR-10 and CIFAR-100: pickles, read without running what they might carry."""

import pickle
import pickletools
from io import BytesIO
from typing import Any

import numpy as np

from hauberk.errors import UserError

# All that the original files use: NumPy's own way to rebuild an array, under its old and its new module name.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


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
        batch = _ArraysOnly(BytesIO(raw), encoding="bytes").load()
        images = batch[b"data"]
        labels = np.asarray(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"], dtype=np.int64)
        if images.dtype != np.uint8 or labels.ndim != 1:
            raise ValueError("data must be unsigned bytes, labels a list")
        return images.reshape(len(labels), 3, 32, 32), labels
    except Exception as error:  # a foreign pickle can fail in any way
        raise UserError(f"{path} is not a CIFAR batch in the Python format: {' '.join(str(error).split())[:200]}") from error
