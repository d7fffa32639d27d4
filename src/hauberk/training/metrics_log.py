"""Metrics of each epoch: a JSON-lines file always, TensorBoard where it is installed."""

import json
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError
from hauberk.core.io import as_json, write_atomically


class Record:
    """The metrics of a run, one row per epoch.

    Args:
        folder: of the run, or None to keep them in memory only.
    """

    def __init__(self, folder: Path | None):
        self.rows: list[dict[str, Any]] = []
        self._path = folder / "metrics.jsonl" if folder else None
        self._board = _tensorboard(folder) if folder else None

    def restore(self, epochs: int) -> None:
        """Read back the first ``epochs`` rows; later ones, of an epoch that will run again, are dropped."""
        if self._path is None or not self._path.exists():
            return
        self.rows = read_rows(self._path)[:epochs]

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of an epoch.

        Raises:
            UserError: if it cannot be written.
        """
        self.rows.append(row)
        if self._path is not None:
            write_atomically(self._path, "".join(as_json(r) + "\n" for r in self.rows).encode())
        if self._board is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._board.add_scalar(name, value, row["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file, if there is one."""
        if self._board is not None:
            self._board.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def epoch_line(row: dict[str, Any], epochs: int, better: bool) -> str:
    """Say in one line what an epoch showed."""
    names = {
        "train_clean_accuracy": "train clean",
        "train_robust_accuracy": "train robust",
        "val_clean_accuracy": "val clean",
        "val_robust_accuracy": "val PGD",
    }
    shares = [f"{label} {100 * row[name]:.1f} %" for name, label in names.items() if name in row]
    head = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['loss']:.4f}"
    rate = f"{row['examples_per_second']:,.0f} examples/s"
    return "  ".join([head, *shares, rate, *(["best so far"] if better else [])])
