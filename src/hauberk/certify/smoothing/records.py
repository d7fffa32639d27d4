"""Counts of randomised smoothing, on disk as they come, so that certifying goes on after a stop."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hauberk.core.distributed import World
from hauberk.core.errors import UserError
from hauberk.core.io import as_json, json_roundtrip, make_folder, read_json, write_json
from hauberk.core.lock import exclusive_lock

PLAN = "plan.json"
_COLUMNS = {"label": np.int64, "selected": np.int64, "count": np.int64, "error": np.float64}
_COST = {"forwards": int, "seconds": float}


class SmoothingRecords:
    """What was counted of each example, in memory and, if there is a folder, in a file of lines of each process.

    Args:
        folder: where; None for nowhere.
        plan: what is certified and how, "n" and "draws" among it; the same when it goes on.
        world: the processes that share the examples; all of them make one.

    Raises:
        UserError: if the folder holds something else, cannot be written, or another process is at work there.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], world: World):
        self.world, self.plan = world, plan
        self.known = np.zeros(plan["n"], dtype=bool)
        self.columns = {name: np.zeros(plan["n"], dtype) for name, dtype in _COLUMNS.items()}
        self.costs: list[dict[str, Any]] = []
        self._lock, self._file = ExitStack(), None
        first = json_roundtrip(world.on_main_process(lambda: plan))
        differs = next((key for key, value in json_roundtrip(plan).items() if first.get(key) != value), "")
        world.raise_if_any(f"process {world.rank} is not like the first one: {differs} differs" if differs else "")
        if folder is None:
            return
        world.on_main_process(lambda: _begin(folder, plan))
        problem = ""
        try:
            self._lock.enter_context(exclusive_lock(folder, f".lock-{world.rank}"))
            for path in sorted(folder.glob("counts-*.jsonl")):
                self._read(path)
            self._path = folder / f"counts-{world.rank}.jsonl"
            self._file = self._lock.enter_context(_open(self._path))
        except UserError as error:
            problem = str(error)
        try:
            world.raise_if_any(problem)  # and nobody writes before all have read
        except UserError:
            self.close()
            raise

    def write(self, example: int, label: int, selected: int, count: int, error: float) -> None:
        """Keep what was counted of an example; it survives the process from now on."""
        self._set(example, (label, selected, count, error))
        self._append({"i": example, "label": label, "selected": selected, "count": count, "error": error})

    def write_cost(self, forwards: int, seconds: float) -> None:
        """Keep how many noisy inputs went forward in this session, and how long it took."""
        cost = {"cost": self.world.rank, "forwards": forwards, "seconds": round(seconds, 3)}
        self.costs.append(cost)
        self._append(cost)

    def cost(self) -> dict[str, Any]:
        """Return passes of all processes, and seconds of the first, over all sessions."""
        mine = [cost["seconds"] for cost in self.costs if cost["cost"] == 0]
        forwards = sum(cost["forwards"] for cost in self.costs)
        return {"passes": {"forwards": forwards, "backwards": 0}, "seconds": round(sum(mine), 3)}

    def share(self) -> None:
        """Let all processes know what each has counted."""
        if self.world.size == 1:
            return
        mine = self.costs[-1:]
        earlier = self.costs[:-1]
        rows = {int(i): tuple(self.columns[name][i].item() for name in _COLUMNS) for i in np.flatnonzero(self.known)}
        self.costs = earlier
        for cost, theirs in self.world.all_gather_object((mine, rows)):
            self.costs += cost
            for i, row in theirs.items():
                self._set(i, row)

    def close(self) -> None:
        """Close the file, and let other processes in."""
        self._lock.close()

    def _set(self, example: int, row: tuple[float, ...]) -> None:
        for name, value in zip(_COLUMNS, row, strict=True):
            self.columns[name][example] = value
        self.known[example] = True

    def _append(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(as_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            kept = "what was counted before is kept, and the same call goes on with it"
            raise UserError(f"cannot write {self._path}: {error.strerror or error}; {kept}") from error

    def _read(self, path: Path) -> None:
        """Take in the lines of a file; one that was cut short by a crash is left out."""
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not (isinstance(record, dict) and self._take(record)):
                raise UserError(f"line {number} of {path} is not a count of these certificates")

    def _take(self, record: dict[str, Any]) -> bool:
        """Keep a line from the disk; returns whether it is one."""
        if "cost" in record:
            fits = type(record["cost"]) is int and all(type(record.get(name)) in (int, kind) for name, kind in _COST.items())
            self.costs += [record] if fits else []
            return fits
        i, row = record.get("i"), tuple(record.get(name) for name in _COLUMNS)
        whole = [type(value) is int and 0 <= value < 2**62 for value in (i, *row[:3])]
        if not all(whole) or type(row[3]) not in (int, float):
            return False
        if not (i < self.plan["n"] and row[2] <= self.plan["draws"] and 0 <= row[3] < 1):  # type: ignore[operator]
            return False
        self._set(i, row)  # type: ignore[arg-type]
        return True


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or check that it holds these certificates."""
    make_folder(folder)
    if not (folder / PLAN).exists():
        write_json(folder / PLAN, {"certificates": "smoothing", **plan})
        return
    there, wanted = read_json(folder / PLAN), json_roundtrip({"certificates": "smoothing", **plan})
    differs = next((key for key, value in wanted.items() if there.get(key) != value), "")
    if differs:
        raise UserError(f"{folder} holds something else ({differs} differs); choose another folder")


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
