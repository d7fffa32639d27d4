"""The ledger: what became of each example, line by line on disk, so that nothing is lost when a process is killed."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import as_json, exclusive_lock, finite, json_roundtrip, make_folder, read_json, write_json, write_zeros

Record: TypeAlias = dict[str, Any]  # "i", the example; "attack", "clean" for none; and what was seen

PLAN = "plan.json"
CLEAN = "clean"  # "attack" of what was seen without one
COST = "cost"  # "attack" of what a session has cost
DETECTION = "detection"  # "attack" that only tries to be misclassified, for models that recognise adversarial inputs
ADVERSARIALS = "adversarials.npy"

_WHOLE, _NUMBER, _FLAG = (int,), (int, float), (bool,)
_MARGIN = (*_NUMBER, type(None))  # none where it was not finite
# What a record must have, by its "attack"; any other is the verdict of an attack.
_NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    CLEAN: {"id": _WHOLE, "label": _WHOLE, "predicted": _WHOLE, "margin": _MARGIN, "right": _FLAG},
    COST: {"rank": _WHOLE, "seconds": _NUMBER, "forwards": _NUMBER, "backwards": _NUMBER},
    DETECTION: {"recognised": _FLAG},
}
_HARMLESS = ("threads", "python")  # which change rounding at most
_VERDICT: dict[str, tuple[type, ...]] = {"broken": _FLAG, "margin": _MARGIN}


class RecordStore:
    """Records of one evaluation, in memory and, if there is a folder, in one file for each process.

    Args:
        folder: where to keep it; None to keep it in memory only.
        plan: what is evaluated and how; must be the same when an evaluation goes on.
        rank: number of this process.

    Attributes:
        warning: in what the present session differs harmlessly from the one that began, to show; or "".

    Raises:
        UserError: if the folder holds another evaluation, cannot be written, or another process is at work there.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], rank: int = 0):
        self.folder, self.rank = folder, rank
        self.records: dict[tuple[str, int], Record] = {}
        self.warning = ""
        self._points: np.ndarray | None = None
        self._lock = ExitStack()
        if folder is None:
            return
        make_folder(folder)
        begun = (folder / PLAN).exists()
        if begun:
            self.warning = _same_plan(folder, plan)
        self._lock.enter_context(exclusive_lock(folder, f".lock-{rank}"))
        if begun:
            for record in read_records(folder):
                self.records[record["attack"], record["i"]] = record
        elif rank == 0:
            write_json(folder / PLAN, plan)
        self._path = folder / f"verdicts-{rank}.jsonl"
        _mend(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def has(self, attack: str, example: int) -> bool:
        """Whether that is known already."""
        return (attack, example) in self.records

    def write(self, record: Record) -> None:
        """Keep a record; it survives the process from now on."""
        key = (record["attack"], record["i"])
        if key in self.records:
            return
        self.records[key] = record = finite(record)  # what a later session would read
        if self.folder is not None:
            try:
                self._file.write(as_json(record) + "\n")
                self._file.flush()
            except OSError as error:
                kept = "what was found before is kept, and the same command goes on with it"
                raise UserError(f"cannot write {self._path}: {error.strerror or error}; {kept}") from error

    def write_cost(self, session: int, seconds: float, passes: dict[str, int]) -> None:
        """Keep what a session of this process has cost so far; the last record of a session counts."""
        record = {"attack": COST, "i": session, "rank": self.rank, "seconds": round(seconds, 3), **passes}
        self.records.pop((COST, session), None)
        self.write(record)

    def open_points(self, count: int, like: Tensor) -> None:
        """Open ``adversarials.npy``, (count, ...), for inputs like this one; the first process makes it, before the others.

        Raises:
            UserError: if there is no room for all of it, it is missing although the evaluation has begun, or it is something
                else.
        """
        assert self.folder is not None  # checked before the evaluation
        path, point = self.folder / ADVERSARIALS, like.cpu().numpy()
        if not path.exists():
            if self.records:  # whose points would be zeros
                raise UserError(f"{path} is gone, and with it what earlier attacks found; choose another folder")
            _make_points(path, point.dtype, (count, *point.shape))
        try:
            self._points = np.lib.format.open_memmap(path, mode="r+")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not the array of this evaluation: {in_one_line(error)}") from error

    def keep_point(self, example: int, point: Tensor) -> None:
        """Store an input (its adversarial example, or the clean one) as row ``example``."""
        if self._points is not None:
            self._points[example] = point.cpu().numpy()

    def close(self) -> None:
        """Close the files, and let other processes in."""
        if self.folder is not None:
            with suppress(OSError):  # of a write that has failed already, and said so
                self._file.close()
        if isinstance(self._points, np.memmap):
            self._points.flush()
        self._lock.close()


def _make_points(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write an array of zeros that has its place on the disk."""
    head = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    write_zeros(path, head.getvalue(), head.tell() + math.prod(shape) * dtype.itemsize)


def read_records(folder: Path) -> Iterator[Record]:
    """Read what all processes have written so far; a line cut short by a crash is left out.

    Raises:
        UserError: if a line is something else than a record.
    """
    for path in sorted(folder.glob("verdicts-*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not _is_record(record):
                raise UserError(f"line {number} of {path} is not a record of an evaluation")
            yield record


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or type(record.get("attack")) is not str or type(record.get("i")) is not int:
        return False
    needed = _NEEDED.get(record["attack"], _VERDICT)
    return all(name in record and type(record[name]) in kinds for name, kinds in needed.items())


def _mend(path: Path) -> None:
    """Cut off a last line that a crash left unfinished, so that the next one does not continue it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def difference(there: dict[str, Any], plan: dict[str, Any], harmless: Sequence[str] = _HARMLESS) -> str:
    """Name the first thing in which two plans of an evaluation differ, besides what is harmless; "" for none."""
    for key, value in json_roundtrip(plan).items():
        if key not in harmless and (seen := json_roundtrip(there.get(key))) != value:
            # Two digests would tell nobody anything.
            return "data: inputs, labels or their order" if key == "data_digest" else f"{key}: {seen!r} there, {value!r} here"
    return ""


def _same_plan(folder: Path, plan: dict[str, Any]) -> str:
    """Refuse another evaluation's folder; return in what this session differs harmlessly, or ""."""
    there = read_json(folder / PLAN)
    if differs := difference(there, plan):
        raise UserError(f"{folder} holds another evaluation ({differs}); choose another folder")
    others = ", ".join(f"{there.get(key)} {key}" for key in _HARMLESS if there.get(key) != plan.get(key))
    return f"begun with {others}: verdicts may differ by rounding" if others else ""
