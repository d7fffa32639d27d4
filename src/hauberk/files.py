"""Writing so that nothing is lost: whole files or none, a checksum in front of every checkpoint, one writer for a folder."""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from hauberk.errors import UserError

_MAGIC = b"HAUBERK-STATE-1\n"
LOCK = ".lock"
FOREIGN = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)  # from using a state of another version


@contextmanager
def alone_in(folder: Path | None, name: str = LOCK) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs. The system lets go of the lock when a process dies.

    Args:
        folder: which; None locks nothing.
        name: of the lock, for folders that several processes share by agreement.

    Raises:
        UserError: if another process has it, or the folder cannot be written.
    """
    if folder is None:
        yield
        return
    lock = FileLock(folder / name, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is at work in {folder}; wait for it, or choose another folder") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, content: bytes, keep_previous: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: where.
        content: all of it.
        keep_previous: keep the old content beside the new one, as ``*.previous``.

    Raises:
        UserError: if the folder cannot be written or the disk is full; the old file is then still there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a file system that has become read-only, for one
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was saved before is intact") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raises UserError as :func:`write_atomically`."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


def as_read_back(content: Any) -> Any:
    """Return what :func:`read_json` would after :func:`write_json`: lists for tuples."""
    return json.loads(json.dumps(content))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain types; the one before is kept beside it as ``*.previous``.

    Raises:
        UserError: as :func:`write_atomically`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, _MAGIC + hashlib.sha256(payload).digest() + payload, keep_previous=True)


def read_state(path: Path) -> tuple[dict[str, Any], str]:
    """Read a checkpoint, or the one before if it is damaged. Never unpickles code.

    Returns:
        The state, and a warning to show (empty if all is well).

    Raises:
        UserError: if neither is whole.
    """
    try:
        return _read_one(path), ""
    except UserError as error:
        if not previous(path).exists():
            raise
        return _read_one(previous(path)), f"{error}; going on from {previous(path).name}"


def _read_one(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    if not raw.startswith(_MAGIC):
        raise UserError(f"{path} is not a Hauberk checkpoint")
    start = len(_MAGIC) + 32
    if hashlib.sha256(raw[start:]).digest() != raw[len(_MAGIC) : start]:
        raise UserError(f"{path} is cut short or damaged")
    return read_tensors(raw[start:], path)


def read_tensors(raw: bytes, path: Path) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote, without unpickling code.

    Args:
        raw: the bytes.
        path: where they are from, for the message.

    Raises:
        UserError: if they are damaged, or hold anything but tensors and plain types.
    """
    try:
        content = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} carries code or foreign objects, and was not loaded") from error
    except Exception as error:  # a damaged archive can fail in any way
        raise UserError(f"{path} is cut short or is not a PyTorch file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a dictionary of tensors")
    return content


def previous(path: Path) -> Path:
    """Return where the checkpoint before is kept."""
    return path.with_name(path.name + ".previous")
