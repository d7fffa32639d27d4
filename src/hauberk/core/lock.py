"""One writer for a folder, by a lock that a dead process cannot hold."""

import errno
import os
import platform
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hauberk.core.errors import UserError

LOCKFILE = ".lock"  # what the names of all files of this module begin with, where no other name is given
_WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_BEAT = 20.0  # seconds between two signs of life of a holder, where the file system has no locks
_DEAD_AFTER = 180.0  # seconds without one


@contextmanager
def exclusive_lock(folder: Path | None, name: str = LOCKFILE) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs.

    The system lets go of the lock when a process dies. Where the file system has no locks, a file stands for it, whose holder
    touches it: it is taken over at once where its process has died on this machine, and after three minutes without a touch
    where nobody here can know.

    Args:
        folder: which; None locks nothing.
        name: of the lock, for folders that several processes share by agreement.

    Raises:
        UserError: if another process has it, or the folder cannot be written.
    """
    with ExitStack() as held:
        try:
            taken = folder is None or _take(folder / name, held)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
        if not taken:
            raise UserError(f"another process is at work in {folder}; wait for it, or choose another folder")
        yield


def _take(path: Path, held: ExitStack) -> bool:
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    held.callback(os.close, file)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:  # there is none on Windows
        if isinstance(error, OSError) and error.errno not in _WITHOUT_FLOCK:
            raise
        return _take_marker(path.with_name(f"{path.name}.held"), held)
    return True


def _take_marker(path: Path, held: ExitStack) -> bool:
    """Make the file that stands for a lock, in place of one whose holder is dead; returns whether that was possible."""
    ours = f"{os.getpid()} {secrets.token_hex(8)} {platform.node()}"
    beside = path.with_name(f"{path.name}-{ours.split()[1]}")
    if path.exists() and _is_dead(holder := path.read_text(errors="replace"), path, beside):
        with suppress(FileNotFoundError):  # another process was quicker
            path.rename(beside)
            if beside.read_text(errors="replace") != holder:  # and has it now
                os.link(beside, path)
            beside.unlink()
    try:
        with path.open("x") as file:
            file.write(ours)
    except FileExistsError:
        return False
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
    held.callback(path.unlink, missing_ok=True)
    held.callback(ended.set)
    return True


def _is_dead(holder: str, path: Path, probe: Path) -> bool:
    process, _, rest = holder.partition(" ")
    if os.name == "posix" and process.isdigit() and rest.partition(" ")[2] == platform.node():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is somebody else's
            pass
    probe.touch()  # the clock of the file system, which may not be that of this machine
    age = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return age > _DEAD_AFTER


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with suppress(OSError):
            os.utime(path)
