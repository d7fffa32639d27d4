"""What was found for each example: columns in memory, and JSON lines on disk that survive a kill."""

import hashlib
import io
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import as_json, json_roundtrip, make_folder, read_json, write_json, write_zeros
from hauberk.core.lock import exclusive_lock

PLAN = "plan.json"
CLEAN = "clean"  # "attack" of what was seen without one
COST = "cost"  # "attack" of what a session has cost

_CLEAN = [
    ("known", "?"), ("id", "i8"), ("label", "i4"), ("predicted", "i4"), ("margin", "f8"), ("right", "?"), ("recognised", "?"),
]  # fmt: skip
_VERDICT = [
    ("known", "?"), ("broken", "?"), ("margin", "f8"), ("run", "i4"), ("step", "i4"), ("predicted", "i4"), ("norm", "f8"),
    ("finite", "?"), ("unverified", "?"),
]  # fmt: skip
# What a row has where nothing is said, and what is then left out on disk.
_CLEAN_DEFAULTS: dict[str, Any] = {"recognised": False}
_DEFAULTS: dict[str, Any] = {"run": -1, "step": -1, "predicted": -1, "norm": -1.0, "finite": True, "unverified": False}
_JSON_TYPES: dict[str, tuple[type, ...]] = {"i": (int,), "f": (int, float), "b": (bool,)}  # by the kind of a NumPy dtype
_COST = {"i": "i", "rank": "i", "seconds": "f", "forwards": "f", "backwards": "f"}
# What digests stand for, which would tell nobody anything.
_DIGESTS = {
    "data_digest": "data: inputs, labels or their order",
    "model_id": "model: its weights, buffers or other tensors",
    "goal": "criterion, loss or has_reject_class",
    "bpda": "bpda: its code or its weights",
    "surrogate_id": "surrogate: its weights, buffers or other tensors",
}
_HARMLESS = ("threads", "python", "float32")  # which change rounding at most


class Records:
    """Columns of what was found, one row for each example of the data set.

    ``records["clean"]`` and ``records[attack]`` are structured NumPy arrays (n,), of at most 32 bytes an example; "known" says
    which rows are filled. Without an attack: "id" (a digest of the input), "label", "predicted", "right", "margin"
    (``z_y - max_{k≠y} z_k``, NaN where it is not finite), and "recognised": for a model with a class of adversarial inputs,
    whether it recognises one that does not try to hide. Of an attack: "broken" and "margin"; where broken, the "run" and
    "step" that did it, "predicted", "norm" of the change in units of the input, and "finite" (whether the logits were; where
    they were not, the example counts as misclassified, with a margin of 0); "unverified" is whether a claimed success did not
    hold.

    Args:
        n: how many examples there are.
        attacks: names of the attacks, in order.

    Attributes:
        certified: which examples are proved robust, (n,) bool.
        spared: which of these no attack is run on any more, (n,) bool.
    """

    def __init__(self, n: int, attacks: Iterable[str]):
        self.n, self.attacks = n, tuple(attacks)
        self.costs: dict[tuple[int, int], dict[str, Any]] = {}  # by rank and session
        self.certified, self.spared = np.zeros(n, bool), np.zeros(n, bool)
        self._tables: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._tables:
            self._tables[name] = np.zeros(self.n, _CLEAN if name == CLEAN else _VERDICT)
        return self._tables[name]

    def set(self, name: str, examples: np.ndarray, **columns: Any) -> None:
        """Fill rows. ``columns`` are arrays (b,) or single values; the others get their default, "unverified" stays."""
        table = self[name]
        usual = {} if name == CLEAN else {**_DEFAULTS, "unverified": table["unverified"][examples]}
        for key, values in {**usual, **columns, "known": True}.items():
            table[key][examples] = np.where(np.isfinite(values), values, np.nan) if key == "margin" else values

    def broken(self, attacks: Iterable[str], examples: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Which examples (all, or those given) any of these attacks breaks, (b,) bool."""
        found = np.zeros(self.n, bool)[examples]
        for name in attacks:
            found |= self[name]["broken"][examples]
        return found

    @property
    def right(self) -> np.ndarray:
        """Which examples are classified right without an attack, (n,) bool."""
        return np.asarray(self[CLEAN]["right"])

    @property
    def robust(self) -> np.ndarray:
        """Which examples are right and nothing has broken yet, (n,) bool."""
        return np.asarray(self.right & ~self.broken(self.attacks))

    def data_digest(self) -> str:
        """Return a digest of the examples, in order: of their inputs' "id" and of their labels."""
        return hashlib.sha256(self[CLEAN]["id"].tobytes() + self[CLEAN]["label"].tobytes()).hexdigest()[:16]

    def check_certified(self) -> None:
        """Stop where an attack has broken what was certified: one of the two is wrong, and so is every number.

        Raises:
            RuntimeError: if there is such an example.
        """
        both = np.flatnonzero(self.certified & self.broken(self.attacks))
        if len(both):
            attack = next(name for name in self.attacks if self[name]["broken"][both[0]])
            raise RuntimeError(
                f"example {both[0]} was certified, and {attack} broke it all the same: a bound is wrong, or the model does not "
                "compute the same twice; please report this"
            )

    def least_margin(self, examples: np.ndarray | slice = slice(None), attacks: Iterable[str] | None = None) -> np.ndarray:
        """The least margin of examples (all, or those given) that was seen without an attack and by these, or all, of them.

        (b,); NaN where none was finite.
        """
        margin = self[CLEAN]["margin"][examples]
        for name in self.attacks if attacks is None else attacks:
            table = self[name][examples]
            margin = np.fmin(margin, np.where(table["known"], table["margin"], np.nan))
        return np.asarray(margin)

    def cost(self) -> dict[str, Any]:
        """Return passes of all processes, and wall-clock seconds, over all sessions."""
        costs, main = self.costs.values(), [cost for (rank, _), cost in self.costs.items() if rank == 0]
        return {
            "passes": {kind: sum(cost[kind] for cost in costs) for kind in ("forwards", "backwards")},
            "seconds": round(sum(cost["seconds"] for cost in main), 3),
            "sessions": len(main),
        }

    def known(self) -> dict[str, Any]:
        """Return the filled rows only, for another process; :meth:`add` takes them in."""
        rows = {name: np.flatnonzero(table["known"]) for name, table in self._tables.items()}
        return {"costs": self.costs, "tables": {name: (index, self[name][index]) for name, index in rows.items()}}

    def add(self, known: Mapping[str, Any]) -> None:
        """Take in what :meth:`known` of another process returned."""
        self.costs |= known["costs"]
        for name, (index, rows) in known["tables"].items():
            self[name][index] = rows

    def share(self, world: World) -> None:
        """Let all processes know what each has found."""
        if world.size > 1:
            for known in world.all_gather_object(self.known()):
                self.add(known)

    def read(self, folder: Path) -> None:
        """Take in what all processes have written to a folder; a line cut short by a crash is left out.

        Raises:
            UserError: if a line is something else than a record of this evaluation.
        """
        for path in sorted(folder.glob("verdicts-*.jsonl")):
            with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    if not (isinstance(record, dict) and self._take(record)):
                        raise UserError(f"line {number} of {path} is not a record of this evaluation")

    def _take(self, record: dict[str, Any]) -> bool:
        """Fill a row from a line on disk; returns whether it is one."""
        name, i = record.get("attack"), record.get("i")
        if name == COST and all(type(record.get(key)) in _JSON_TYPES[kind] for key, kind in _COST.items()):
            self.costs[record["rank"], record["i"]] = record
            return True
        if type(i) is not int or name not in (CLEAN, *self.attacks) or not 0 <= i < self.n:
            return False
        table, usual = self[name], _CLEAN_DEFAULTS if name == CLEAN else _DEFAULTS
        said = {**usual, **record, "known": True}
        row = [math.nan if key == "margin" and said.get(key, 0) is None else said.get(key) for key in table.dtype.names or ()]
        if not all(type(value) in _JSON_TYPES[table.dtype[k].kind] for k, value in enumerate(row)):
            return False
        try:
            table[i] = tuple(row)
        except OverflowError:
            return False
        return True

    def lines(self, name: str, examples: np.ndarray) -> str:
        """Return rows as they are kept on disk, one line of JSON each, without what goes without saying."""
        rows, usual = self[name][examples], {"known": True, **(_CLEAN_DEFAULTS if name == CLEAN else _DEFAULTS)}
        lines = []
        for i, row in zip(examples.tolist(), rows.tolist(), strict=True):
            said = {key: value for key, value in zip(rows.dtype.names, row, strict=True) if usual.get(key) != value}
            lines.append(as_json({"i": i, "attack": name, **said}) + "\n")
        return "".join(lines)


class RecordStore:
    """The records of one evaluation and, if there is a folder, a file of each process that they are appended to.

    The ``plan`` is what is evaluated and how ("n" and "stages" among it), and must be the same when an evaluation goes on;
    ``warning`` says in what the present session differs harmlessly from the one that began, or is "".

    Raises:
        UserError: if the folder holds another evaluation, cannot be written, or another process is at work there.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], rank: int = 0):
        self.folder, self.rank = folder, rank
        self.records = Records(plan["n"], plan["stages"])
        self.warning = ""
        self._session, self._begun = time.time_ns(), time.monotonic()
        self._points: np.memmap[Any, Any] | None = None
        self._lock = ExitStack()
        if folder is None:
            return
        make_folder(folder)
        begun = (folder / PLAN).exists()
        if begun:
            self.warning = _check_plan(folder, plan)
        self._lock.enter_context(exclusive_lock(folder, f".lock-{rank}"))
        if begun:
            self.records.read(folder)
        elif rank == 0:
            write_json(folder / PLAN, plan)
        self._path = folder / f"verdicts-{rank}.jsonl"
        try:
            self._file = self._path.open("a", encoding="utf-8")
            written = self._path.read_bytes()
            if not written.endswith(b"\n"):  # a crash left a line unfinished, which the next one must not continue
                self._file.truncate(written.rfind(b"\n") + 1)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error

    def write(self, name: str, examples: np.ndarray, **columns: Any) -> None:
        """Keep rows, as :meth:`Records.set` takes them; they survive the process from now on."""
        if len(examples):
            self.records.set(name, examples, **columns)
            if self.folder is not None:
                self._append(self.records.lines(name, examples))

    def write_cost(self, passes: dict[str, int]) -> None:
        """Keep what this session has cost so far; the last record of a session counts."""
        cost = {"rank": self.rank, "seconds": round(time.monotonic() - self._begun, 3), **passes}
        self.records.costs[self.rank, self._session] = cost
        if self.folder is not None:
            self._append(as_json({"attack": COST, "i": self._session, **cost}) + "\n")

    def _append(self, lines: str) -> None:
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            kept = "what was found before is kept, and the same command goes on with it"
            raise UserError(f"cannot write {self._path}: {error.strerror or error}; {kept}") from error

    def open_points(self, like: Tensor) -> None:
        """Open ``adversarials.npy``, (n, ...), for inputs like this one; the first process makes it, before the others.

        Raises:
            UserError: if there is no room for all of it, it is missing although the evaluation has begun, or it is something
                else.
        """
        assert self.folder is not None  # checked before the evaluation
        path, point = self.folder / "adversarials.npy", like.cpu().numpy()
        if not path.exists():
            if self.records[CLEAN]["known"].any():  # whose points would be zeros
                raise UserError(f"{path} is gone, and with it what earlier attacks found; choose another folder")
            shape, head = (self.records.n, *point.shape), io.BytesIO()
            layout = {"descr": np.lib.format.dtype_to_descr(point.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(head, layout)
            write_zeros(path, head.getvalue(), head.tell() + math.prod(shape) * point.itemsize)
        try:
            self._points = np.lib.format.open_memmap(path, mode="r+")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not the array of this evaluation: {in_one_line(error)}") from error

    def keep_points(self, examples: np.ndarray, points: Tensor, which: np.ndarray) -> None:
        """Store those of the inputs (b, ...), adversarial examples or clean ones, of the examples (b,) that ``which`` says."""
        if self._points is not None and which.any():
            self._points[examples[which]] = points.cpu().numpy()[which]

    def close(self) -> None:
        """Close the files, and let other processes in."""
        if self.folder is not None:
            with suppress(OSError):  # of a write that has failed already, and said so
                self._file.close()
        if self._points is not None:
            self._points.flush()
        self._lock.close()


def difference(there: dict[str, Any], plan: dict[str, Any], harmless: Sequence[str] = _HARMLESS) -> str:
    """Name the first thing in which two plans of an evaluation differ, besides what is harmless; "" for none."""
    for key, value in json_roundtrip(plan).items():
        seen = json_roundtrip(there.get(key))
        if key in harmless or seen == value:
            continue
        if key == "attacks" and isinstance(seen, dict):
            return f"code or settings of {next(name for name in value if seen.get(name) != value[name])}"
        return _DIGESTS.get(key) or f"{key}: {seen!r} there, {value!r} here"
    return ""


def _check_plan(folder: Path, plan: dict[str, Any]) -> str:
    """Refuse another evaluation's folder; return in what this session differs harmlessly, or ""."""
    there = read_json(folder / PLAN)
    if differs := difference(there, plan):
        raise UserError(f"{folder} holds another evaluation ({differs}); choose another folder")
    others = ", ".join(f"{there.get(key)} {key}" for key in _HARMLESS if there.get(key) != plan.get(key))
    return f"{folder} was begun with {others}: verdicts may differ by rounding" if others else ""
