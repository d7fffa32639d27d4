"""The idx format of MNIST and Fashion-MNIST."""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from hauberk.core.errors import UserError

_MOST = 2**30  # bytes; a small file may claim to unpack to any size
_MOST_DIMENSIONS = 4  # examples, and up to three of an image


def read_idx(path: Path) -> tuple[np.ndarray, bytes]:
    """Read an idx file of unsigned bytes, gzipped or not.

    Returns:
        The array, and the uncompressed bytes for a checksum.

    Raises:
        UserError: if the file is not idx or is cut short.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
                raw = file.read(_MOST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged: {error}") from error
    if len(raw) > _MOST:
        raise UserError(f"{path} holds more than {_MOST / 2**30:.0f} GiB")
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise UserError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    # Python integers: a hostile header cannot overflow.
    if not 1 <= len(shape) <= _MOST_DIMENSIONS or 0 in shape or math.prod(shape) != len(body):
        raise UserError(f"{path} is cut short or damaged: {len(body)} bytes where its header says {str(shape)[:60]}")
    return body.reshape(shape), raw
