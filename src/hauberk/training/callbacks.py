"""Callbacks of a training, and the two ready ones: the log of metrics, and TensorBoard."""

import json
from collections.abc import Callable, Iterable
from inspect import isclass
from pathlib import Path
from typing import Any

from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.imports import import_object
from hauberk.core.io import SCHEMA_ERRORS, as_json, write_atomically

_HOOKS = ("on_train_begin", "on_step_end", "on_epoch_end", "on_train_end")


class CallbackList:
    """The callbacks of a training. They run on rank 0, and those with a true attribute ``all_ranks`` on every rank.

    Args:
        callbacks: each an object with some of the hooks, or a function of an epoch's metrics.
        world: the processes that train together.

    Raises:
        UserError: for a callback that could never be called.
    """

    def __init__(self, callbacks: Iterable[Any], world: World):
        self._callbacks, self._world = list(callbacks), world
        for one in self._callbacks:
            if not callable(one) and not _has_hooks(one):
                raise UserError(f"a callback is a function of metrics or has one of {', '.join(_HOOKS)}; {one!r:.60} has none")
        self.step_hooks = list(self._here("on_step_end").values())

    def call(self, hook: str, *inputs: Any) -> None:
        """Call a hook of each; by all processes together. A UserError on rank 0 is raised on every rank."""
        self._world.on_main_process(lambda: _call_each(self._bound(hook, everywhere=False), inputs))
        _call_each(self._bound(hook, everywhere=True), inputs)

    def state_dict(self) -> dict[int, Any]:
        """Return the state of each callback that runs here and has one, by its place in the list."""
        return {place: read() for place, read in self._here("state_dict").items()}

    def load_state_dict(self, states: dict[int, Any]) -> None:
        """Restore each callback that had a state; by all processes together.

        Raises:
            UserError: if one does not take its state back.
        """
        self._world.on_main_process(lambda: _load_each(self._bound("load_state_dict", everywhere=False), states))
        _load_each(self._bound("load_state_dict", everywhere=True), states)

    def _here(self, name: str) -> dict[int, Callable[..., Any]]:
        return self._bound(name, everywhere=False) | self._bound(name, everywhere=True)

    def _bound(self, name: str, everywhere: bool) -> dict[int, Callable[..., Any]]:
        """The methods of a name of the callbacks that run on every rank, or of those that run on rank 0 only."""
        runs = everywhere or self._world.is_main
        some = {i: c for i, c in enumerate(self._callbacks) if runs and bool(getattr(c, "all_ranks", False)) == everywhere}
        found = {i: _of_metrics(c) if name == "on_epoch_end" else getattr(c, name, None) for i, c in some.items()}
        return {i: method for i, method in found.items() if method is not None}


def find_callback(callback: Any) -> Any:
    """Return a callback: the object itself, what ``package.module:attribute`` names, or an instance of a class.

    Raises:
        UserError: if it cannot be imported or made.
    """
    found = import_object(callback, "callback") if isinstance(callback, str) else callback
    try:
        return found() if isclass(found) else found
    except TypeError as error:
        raise UserError(f"pass an instance of the callback {found.__qualname__}: {in_one_line(error)}") from error


def _has_hooks(callback: Any) -> bool:
    return any(hasattr(callback, hook) for hook in _HOOKS)


def _of_metrics(callback: Any) -> Callable[..., None] | None:
    """What to call with trainer and metrics at the end of an epoch."""
    hook: Callable[..., None] | None = getattr(callback, "on_epoch_end", None)
    return hook if _has_hooks(callback) else lambda trainer, metrics: callback(metrics)


def _call_each(hooks: dict[int, Callable[..., Any]], inputs: tuple[Any, ...]) -> None:
    for act in hooks.values():
        act(*inputs)


def _load_each(hooks: dict[int, Callable[..., Any]], states: dict[int, Any]) -> None:
    for place, load in hooks.items():
        if place in states:
            try:
                load(states[place])
            except UserError:
                raise
            except SCHEMA_ERRORS as error:
                raise UserError(f"callback {place} of the run does not take its state back: {in_one_line(error)}") from error


class MetricsLog:
    """Keeps the metrics of each epoch, and writes them to ``metrics.jsonl``, a row of JSON per epoch. A callback.

    Args:
        folder: of the run, or None to keep them in memory only.
    """

    def __init__(self, folder: Path | None):
        self.rows: list[dict[str, Any]] = []
        self._path = folder / "metrics.jsonl" if folder else None

    def on_epoch_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Append the row of an epoch. Raises UserError if it cannot be written."""
        self.rows.append(metrics)
        if self._path is not None:
            write_atomically(self._path, "".join(as_json(row) + "\n" for row in self.rows).encode())

    def state_dict(self) -> dict[str, int]:
        """Return how many rows there are."""
        return {"epochs": len(self.rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Read the rows of a checkpoint back; later ones, of an epoch that will run again, are dropped."""
        if self._path is not None and self._path.exists():
            self.rows = read_metrics(self._path)[: state["epochs"]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run, a row per epoch.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


class TensorBoardLog:
    """Writes the metrics of each epoch for TensorBoard; nothing where that is not installed. A callback.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: str | Path):
        self._folder = folder
        self._writer: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        """Open the file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(self._folder))

    def on_epoch_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write a point of each metric."""
        if self._writer is not None:
            for name, value in metrics.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, metrics["epoch"])
            self._writer.flush()

    def on_train_end(self, trainer: Any) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def epoch_line(row: dict[str, Any], epochs: int, better: bool) -> str:
    """Say in one line what an epoch showed."""
    names = {
        "train_clean_accuracy": "train clean",
        "train_robust_accuracy": "train robust",
        "val_clean_accuracy": "val clean",
        "val_robust_accuracy": "val PGD",
    }
    accuracies = [f"{label} {100 * row[name]:.1f} %" for name, label in names.items() if name in row]
    head = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['loss']:.4f}"
    rate = f"{row['examples_per_second']:,.0f} examples/s"
    return "  ".join([head, *accuracies, rate, *(["best so far"] if better else [])])
