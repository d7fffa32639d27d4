"""Callbacks of a training: how they are called, and those that write its metrics down."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import as_json, write_atomically


class CallbackList:
    """The callbacks of a training. They run on rank 0, and those with a true attribute ``all_ranks`` on every rank."""

    def __init__(self, callbacks: Iterable[Any], world: World):
        self._world = world
        # By their places in the list, those that run here.
        self._here = {place: one for place, one in enumerate(callbacks) if world.is_main or _on_all_ranks(one)}
        self.step_hooks = [one.on_step_end for one in self._here.values() if hasattr(one, "on_step_end")]

    def call(self, hook: str, *inputs: Any) -> None:
        """Call a hook of each; by all processes together. A UserError on rank 0 is raised on every rank."""
        self._each(hook, lambda place: inputs)

    def state_dict(self) -> dict[int, Any]:
        """Return the state of each callback that runs here and has one, by its place in the list."""
        return {place: one.state_dict() for place, one in self._here.items() if hasattr(one, "state_dict")}

    def load_state_dict(self, states: dict[int, Any]) -> None:
        """Restore each callback that had a state; by all processes together."""
        self._each("load_state_dict", lambda place: (states[place],))

    def _each(self, name: str, inputs: Callable[[int], tuple[Any, ...]]) -> None:
        def run(all_ranks: bool) -> None:
            for place, one in self._here.items():
                if hasattr(one, name) and _on_all_ranks(one) == all_ranks:
                    getattr(one, name)(*inputs(place))

        self._world.on_main_process(lambda: run(all_ranks=False))
        run(all_ranks=True)


def _on_all_ranks(callback: Any) -> bool:
    return bool(getattr(callback, "all_ranks", False))


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
        self._write()

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows: a checkpoint that is whole does not depend on another file."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, list[dict[str, Any]]]) -> None:
        """Write the rows of a checkpoint again; the file may have one more, of an epoch that will run again, or be lost."""
        self.rows = [restored_row(row) for row in state["rows"]]
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_atomically(self._path, "".join(as_json(row) + "\n" for row in self.rows).encode())


def restored_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of an epoch as they were, from a checkpoint: counts are integers, all else is floating."""
    floats = {str(name): float(value) for name, value in row.items()}  # which refuses what is no number, or too large
    return floats | {str(name): value for name, value in row.items() if type(value) is int} | {"epoch": int(floats["epoch"])}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run, a row per epoch. Raises UserError if they cannot be read."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {in_one_line(error)}") from error


class TensorBoardLog:
    """A callback that writes the metrics of each epoch for TensorBoard; nothing where that is not installed.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: str | Path):
        self._folder = folder
        self._writer: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        """Open the file. Raises UserError if it cannot be written, as the next one does."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        with self._as_user_error():
            self._writer = SummaryWriter(str(self._folder))

    def on_epoch_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write a point of each metric."""
        if self._writer is not None:
            with self._as_user_error():
                for name, value in metrics.items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, metrics["epoch"])
                self._writer.flush()

    def on_train_end(self, trainer: Any) -> None:
        """Close the file."""
        if self._writer is not None:
            with self._as_user_error():
                self._writer.close()

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # what its thread met
            raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error
