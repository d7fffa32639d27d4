"""Writing so that nothing is lost: whole files or none, a checksum in front of every checkpoint."""

import errno
import hashlib
import io
import json
import math
import os
import pickle
import platform
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hauberk import __version__
from hauberk.core.errors import UserError

_MAGIC = b"HAUBERK-STATE-1\n"
_NOT_PLAIN = re.compile(r"[^\w .,=+()-]")  # letters and digits of any script are plain
_IN_ONE_LINE = json.JSONEncoder(allow_nan=False).encode  # made once: records are written by the million
_LONGEST = 100  # bytes of a plain name; file systems allow 255, of which endings take some


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def plain_name(text: str) -> str:
    """Turn any text into the name of a file in one folder: what may come from other people's files chooses no path.

    Letters, digits, spaces and ``.,=+()-_`` stay, everything else becomes ``-``; dots and spaces at either end go, and what is
    too long for a file system. Different texts may get the same name.
    """
    name = _NOT_PLAIN.sub("-", text).encode()[:_LONGEST].decode(errors="ignore").strip(" .")
    return name or "unnamed"


def write_atomically(path: Path, content: bytes, keep_previous: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: of the file.
        content: all of it.
        keep_previous: keep the old content beside the new one, as ``*.previous``.

    Raises:
        UserError: if the folder cannot be written or the disk is full; the old file is then still there.
    """
    with _whole(path, keep_previous) as file:
        file.write(content)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files as :func:`write_atomically`, of which none takes its place before all are on the disk.

    Raises:
        UserError: if one of them cannot be written; the old files are then all still there.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            file = stack.enter_context(_whole(path))
            file.write(content)
            _sync(file)


def write_zeros(path: Path, head: bytes, size: int) -> None:
    """Write, atomically, a file of ``head`` and zeros, ``size`` bytes in all, with its place on the disk set aside.

    A file with holes finds its place only as it is written to; if that is done through a memory map and the disk is full, the
    system kills the process.

    Raises UserError as :func:`write_atomically`.
    """
    with _whole(path) as file:
        file.write(head)
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (OSError, AttributeError) as error:  # file systems and systems that cannot set aside
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            for begin in range(len(head), size, 2**20):
                file.write(bytes(min(2**20, size - begin)))


@contextmanager
def _whole(path: Path, keep_previous: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place when the block ends well, and is removed when it does not."""
    temporary = path.with_name(path.name + ".part")
    try:
        # Never through a link, which could lead out of the folder where somebody else made it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
            _sync(file)
        if keep_previous and path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # on a file system that has become read-only, for one
            temporary.unlink()
        if isinstance(error, OSError):
            kept = "what was saved before is intact"
            if error.errno == errno.ENOENT:
                kept = f"{path.parent} is gone, with what was saved in it unless it was moved"
            raise UserError(f"cannot write {path}: {error.strerror or error}; {kept}") from error
        raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def as_json(content: Any, indent: int | None = None) -> str:
    """Return JSON, in one line unless ``indent`` is given. JSON has neither NaN nor infinity: they become ``null``."""
    encode = _IN_ONE_LINE if indent is None else json.JSONEncoder(indent=indent, allow_nan=False).encode
    try:
        return encode(content)
    except ValueError:  # there are some
        return encode(_finite(content))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write JSON as :func:`write_atomically`."""
    write_atomically(path, json_file(content))


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as :func:`write_atomically`, each of its "examples" on a line of its own."""
    whole = as_json(content | {"examples": []}, indent=2)
    lines = ",\n".join("    " + as_json(example) for example in content["examples"])
    write_atomically(path, whole.replace('"examples": []', f'"examples": [\n{lines}\n  ]', 1).encode() + b"\n")


def json_file(content: Any) -> bytes:
    """Return what is in a JSON file, as :func:`as_json` puts it."""
    return (as_json(content, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


def json_roundtrip(content: Any) -> Any:
    """Return what :func:`read_json` would after :func:`write_json`: lists for tuples, None for NaN."""
    return json.loads(as_json(content))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write, as :func:`write_atomically`, a checkpoint of tensors and plain types; keep the one before as ``*.previous``."""
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

    Raises:
        UserError: naming ``path``, if the bytes are damaged, or hold anything but tensors and plain types.
    """
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(raw)) as parts:  # which torch refuses below
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise UserError(f"{path} is packed, as PyTorch packs nothing, and was not loaded: it could fill the memory")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about files that are refused below
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


def versions() -> dict[str, str]:
    """Return versions and date, for cards and results."""
    return {
        "hauberk": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the device and the number of CPU threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads()}
