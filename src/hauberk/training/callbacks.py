"""Callbacks of a training, and the two that are always there: the log of metrics, and TensorBoard."""

import json
from collections.abc import Callable, Iterable
from inspect import isclass
from pathlib import Path
from typing import Any

from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.imports import import_object
from hauberk.core.io import as_json, write_atomically

_HOOKS = ("on_train_begin", "on_step_end", "on_epoch_end", "on_train_end")


class CallbackList:
    """The callbacks of a training. They run on rank 0, and those with a true attribute ``all_ranks`` on every rank.

    Args:
        callbacks: each as :func:`find_callback` returns it.
        world: the processes that train together.
    """

    def __init__(self, callbacks: Iterable[Any], world: World):
        self._callbacks, self._world = list(callbacks), world
        self.step_hooks = list(self._find("on_step_end").values())

    def call(self, hook: str, *inputs: Any) -> None:
        """Call a hook of each; by all processes together. A UserError on rank 0 is raised on every rank."""
        self._each(hook, lambda place: inputs)

    def state_dict(self) -> dict[int, Any]:
        """Return the state of each callback that runs here and has one, by its place in the list."""
        return {place: read() for place, read in self._find("state_dict").items()}

    def load_state_dict(self, states: dict[int, Any]) -> None:
        """Restore each callback that had a state; by all processes together."""
        self._each("load_state_dict", lambda place: (states[place],))

    def _each(self, name: str, inputs: Callable[[int], tuple[Any, ...]]) -> None:
        def run(all_ranks: bool) -> None:
            for place, act in self._find(name, all_ranks).items():
                act(*inputs(place))

        self._world.on_main_process(lambda: run(all_ranks=False))
        run(all_ranks=True)

    def _find(self, name: str, all_ranks: bool | None = None) -> dict[int, Callable[..., Any]]:
        """The methods of a name of callbacks that run here: of those on all ranks, of those on rank 0, or (None) of both."""
        found = {}
        for place, one in enumerate(self._callbacks):
            everywhere = bool(getattr(one, "all_ranks", False))
            if hasattr(one, name) and (everywhere or self._world.is_main) and all_ranks in (None, everywhere):
                found[place] = getattr(one, name)
        return found


def find_callback(callback: Any) -> Any:
    """Return an object with hooks: the one given or named by ``package.module:attribute``, or one that calls a function.

    Raises:
        UserError: if it cannot be imported or made, or could never be called.
    """
    found = import_object(callback, "callback") if isinstance(callback, str) else callback
    try:
        found = found() if isclass(found) else found
    except TypeError as error:
        raise UserError(f"pass an instance of the callback {found.__qualname__}: {in_one_line(error)}") from error
    if any(hasattr(found, hook) for hook in _HOOKS):
        return found
    if not callable(found):
        raise UserError(f"a callback is a function of metrics or has one of {', '.join(_HOOKS)}; {found!r:.60} has none")
    return _EachEpoch(found)


class _EachEpoch:
    """Calls a function of the metrics at the end of each epoch."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]):
        self._function = function

    def on_epoch_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        self._function(metrics)


class MetricsLog:
    """A callback that keeps the metrics of each epoch, and writes them to ``metrics.jsonl``, a row of JSON per epoch.

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
    """Read the metrics of a run, a row per epoch. Raises UserError if they cannot be read."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


class TensorBoardLog:
    """A callback that writes the metrics of each epoch for TensorBoard; nothing where that is not installed.

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
