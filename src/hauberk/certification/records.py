"""What was found for each example, on disk as it comes, so that certifying goes on after a stop."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hauberk.core.distributed import World
from hauberk.core.errors import UserError
from hauberk.core.io import as_json, json_roundtrip, make_folder, read_json, write_json
from hauberk.core.lock import exclusive_lock

PLAN = "plan.json"
_COST = "cost"


class CertificateRecords:
    """Columns of what was found, one row for each example, and, if there is a folder, a file of lines of each process.

    Args:
        folder: where; None for nowhere.
        plan: what is certified and how, "n" among it; it must be the same when the certificates go on.
        columns: name and NumPy dtype, integer or floating, of each column.
        world: the processes that share the examples; all of them make one.

    Attributes:
        known: which rows are filled, (n,) bool.
        columns: the columns, (n,) each.

    Raises:
        UserError: if the folder holds something else, cannot be written, or another process is at work there.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], columns: Mapping[str, Any], world: World):
        self.world, self.n = world, int(plan["n"])
        self.known = np.zeros(self.n, dtype=bool)
        self.columns = {name: np.zeros(self.n, dtype) for name, dtype in columns.items()}
        self._seconds: list[tuple[int, float]] = []  # rank, and how long each session took
        self._lock, self._file = ExitStack(), None
        differs = _difference(world.on_main_process(lambda: plan), plan)
        world.raise_if_any(f"process {world.rank} is not like the first one: other {differs}" if differs else "")
        if folder is None:
            return
        world.on_main_process(lambda: _begin(folder, plan))
        problem = ""
        try:
            self._lock.enter_context(exclusive_lock(folder, f".lock-{world.rank}"))
            for path in sorted(folder.glob("certificates-*.jsonl")):
                self._read(path)
            self._path = folder / f"certificates-{world.rank}.jsonl"
            self._file = self._lock.enter_context(_open(self._path))
        except UserError as error:
            problem = str(error)
        try:
            world.raise_if_any(problem)  # and nobody writes before all have read
        except UserError:
            self.close()
            raise

    def write(self, examples: np.ndarray, **columns: np.ndarray) -> None:
        """Keep rows (b,); they survive the process from now on."""
        for name, values in columns.items():
            self.columns[name][examples] = values
        self.known[examples] = True
        self._append({"i": int(i), **{name: column[i].item() for name, column in self.columns.items()}} for i in examples)

    def write_cost(self, seconds: float) -> None:
        """Keep how long this session took."""
        self._seconds.append((self.world.rank, seconds))
        self._append([{_COST: self.world.rank, "seconds": round(seconds, 3)}])

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the first process, over all sessions."""
        return round(sum(seconds for rank, seconds in self._seconds if rank == 0), 3)

    def share(self) -> None:
        """Let all processes know what each has found."""
        if self.world.size == 1:
            return
        rows = np.flatnonzero(self.known)
        mine = rows, {name: column[rows] for name, column in self.columns.items()}, self._seconds
        for theirs, columns, seconds in self.world.all_gather_object(mine):
            self._seconds = seconds if any(rank == 0 for rank, _ in seconds) else self._seconds
            self.known[theirs] = True
            for name, values in columns.items():
                self.columns[name][theirs] = values

    def close(self) -> None:
        """Close the file, and let other processes in."""
        self._lock.close()

    def _append(self, rows: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write("".join(as_json(row) + "\n" for row in rows))
            self._file.flush()
        except OSError as error:
            kept = "what was found before is kept, and the same call goes on with it"
            raise UserError(f"cannot write {self._path}: {error.strerror or error}; {kept}") from error

    def _read(self, path: Path) -> None:
        """Take in the lines of a file; one that was cut short by a crash is left out."""
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not (isinstance(row, dict) and self._take(row)):
                raise UserError(f"line {number} of {path} is not a record of these certificates")

    def _take(self, row: dict[str, Any]) -> bool:
        """Keep a line from the disk; returns whether it is one."""
        if _COST in row:
            fits = type(row[_COST]) is int and type(row.get("seconds")) in (int, float)
            self._seconds += [(row[_COST], row["seconds"])] if fits else []
            return fits
        i = row.get("i")
        if type(i) is not int or not 0 <= i < self.n:
            return False
        for name, column in self.columns.items():
            value = math.nan if row.get(name, 0) is None else row.get(name)
            whole = column.dtype.kind == "i"
            if type(value) not in ((int,) if whole else (int, float)) or (whole and abs(value) >= 2**31):  # type: ignore[arg-type]
                return False
            column[i] = value
        self.known[i] = True
        return True


def _difference(there: dict[str, Any], plan: dict[str, Any]) -> str:
    """Name the first thing in which two plans differ, "" for none."""
    seen, wanted = json_roundtrip(there), json_roundtrip(plan)
    return next(
        (f"{key}: {seen.get(key)!r:.80} there, {value!r:.80} here" for key, value in wanted.items() if seen.get(key) != value),
        "",
    )


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or check that it holds these certificates."""
    make_folder(folder)
    if not (folder / PLAN).exists():
        write_json(folder / PLAN, plan)
    elif differs := _difference(read_json(folder / PLAN), plan):
        raise UserError(f"{folder} holds something else ({differs}); choose another folder")


def _open(path: Path) -> Any:
    """Open a file of lines to append to, without a last line that a crash left unfinished."""
    try:
        file = path.open("a", encoding="utf-8")
        written = path.read_bytes()
        if not written.endswith(b"\n"):
            file.truncate(written.rfind(b"\n") + 1)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return file
