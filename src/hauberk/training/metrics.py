"""What an epoch showed: sums of training metrics, validation, and signs that a training has gone wrong."""

import json
from collections.abc import Callable, Iterable
from inspect import isclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, frozen_model, run_attack
from hauberk.core.distributed import World
from hauberk.core.errors import UserError, import_object, in_one_line
from hauberk.core.io import as_json, write_atomically
from hauberk.core.random import ExampleRng
from hauberk.data import IndexedDataset, fetch_for
from hauberk.methods import Method, Output


class EpochMetrics:
    """Sums over an epoch of what training saw in passes it made anyway; exact sums on the device, never means of means."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}  # of each quantity over examples
        self._counts: dict[str, int] = {}  # how many examples each was seen on

    def add(self, out: Output, y: Tensor, divisor: float) -> None:
        """Add one step. No host synchronisation.

        Args:
            out: what the method returned.
            y: labels, (b,).
            divisor: what the sum of the examples' losses was divided by.
        """
        self._add("loss", out.loss.detach() * divisor, len(y))
        for name, logits in (("train_clean_accuracy", out.logits), ("train_robust_accuracy", out.logits_adv)):
            if logits is not None:
                self._add(name, (logits.argmax(1) == y).sum(), len(y))
        for name, value in out.report.items():
            self._add(name, value * len(y), len(y))

    def total(self, world: World) -> "EpochMetrics":
        """Return the sums over all processes, which all have seen the same quantities."""
        if world.size == 1 or not self._sums:
            return self
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=self._device)
        sums, counts = world.sum(torch.stack([torch.stack(list(self._sums.values())), counts]))
        whole = EpochMetrics(self._device)
        whole._sums = dict(zip(self._sums, sums, strict=True))
        whole._counts = {name: int(count) for name, count in zip(self._sums, counts, strict=True)}
        return whole

    def means(self) -> dict[str, float]:
        """Return means over the epoch so far; accuracies only of what the method looked at. Synchronises."""
        return {"loss": 0.0} | {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state_dict(self) -> dict[str, list[float]]:
        """Return sums and counts, for a checkpoint."""
        return {name: [float(total), self._counts[name]] for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, list[float]], factor: int = 1) -> None:
        """Go on from the sums of a checkpoint, times 1 or, where another process has them, 0."""
        self._sums = {k: torch.tensor(factor * s, dtype=torch.float64, device=self._device) for k, (s, _) in state.items()}
        self._counts = {name: factor * int(count) for name, (_, count) in state.items()}

    def _add(self, name: str, total: Tensor, count: int) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums[name] = self._sums.get(name, zero) + total.double()
        self._counts[name] = self._counts.get(name, 0) + count


def validate(
    model: nn.Module,
    source: IndexedDataset,
    method: Method,
    steps: int,
    seed: int,
    batch_size: int,
    world: World,
    class_weights: Tensor | None = None,
) -> dict[str, float]:
    """Measure clean accuracy, and accuracy under PGD (ε/4, uniform start, cross-entropy, best point kept).

    Each process looks at its part, ``batch_size`` examples at a time. With class weights (C,), an example counts as much as in
    the loss: otherwise a network that knows only the frequent class could be the best.

    Returns:
        ``val_clean_accuracy`` and ``val_robust_accuracy``, in [0, 1].
    """
    # A model that recognises adversarial inputs is right to do so: what counts is what evades it.
    attack = PGD(steps, loss="evade" if method.extra_outputs else "ce")
    sums = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    for index in world.local_shard(torch.arange(len(source))).split(batch_size):
        if not len(index):
            break
        x, y = fetch_for(model, source, index)
        # The same starts every epoch, so that epochs are compared on equal terms.
        found = run_attack(attack, model, x, y, method.threat, seed=ExampleRng(seed, index.to(x.device), stage=-2))
        with frozen_model(model) as view, torch.no_grad():
            right = view(x).argmax(1) == y
        weight = torch.ones(len(y), device=y.device) if class_weights is None else class_weights.to(y.device)[y]
        sums += torch.stack([(weight * right).sum(), (weight * (right & ~found.success)).sum(), weight.sum()])
    clean, robust, total = world.sum(sums).tolist()
    total = total or 1.0  # all weights may be 0
    return {"val_clean_accuracy": clean / total, "val_robust_accuracy": robust / total}


class TrainingDiverged(Exception):
    """What went wrong, for the user."""


def require_finite(loss: float, where: str) -> None:
    """Raise TrainingDiverged if the loss is not finite."""
    if not isfinite(loss):
        raise TrainingDiverged(f"the loss became {loss} at {where}")


def check_catastrophic_overfitting(row: dict[str, Any], best: dict[str, Any], held_out: int, classes: int) -> None:
    """Raise TrainingDiverged for catastrophic overfitting (Wong et al. 2020): the training attack fails, and others succeed.

    That is taken to have happened when robust accuracy on held-out examples is under half of the best so far, by more than
    four standard errors, while robust accuracy in training has reached that best one. A training that merely stumbles, at a
    high learning rate, loses both, and is left to recover; and one that was no better than chance has nothing to lose.

    Args:
        row: metrics of this epoch.
        best: metrics of the best one before; empty if there is none.
        held_out: examples that validation looks at.
        classes: of the data.
    """
    now, then = row.get("val_robust_accuracy"), best.get("val_robust_accuracy")
    seen = row.get("train_robust_accuracy")
    if now is None or then is None or seen is None:
        return
    if then <= 1 / classes + 4 * sqrt((1 - 1 / classes) / classes / held_out):
        return
    if now < then / 2 and then - now > 4 * sqrt(then * (1 - then) / held_out) and seen >= then:
        raise TrainingDiverged(
            f"robust accuracy on held-out examples fell from {100 * then:.1f} % to {100 * now:.1f} % in epoch {row['epoch']}, "
            f"while {100 * seen:.1f} % withstand the training attack: catastrophic overfitting, usual where it has one step"
        )


def score(row: dict[str, Any], attacks: bool) -> tuple[float, ...]:
    """Rank an epoch by its metrics; larger is better. With nothing held out, the last epoch is the best.

    Args:
        row: metrics of the epoch.
        attacks: whether the method attacks; one that does not is judged by clean accuracy first.
    """
    if "val_clean_accuracy" not in row:
        return (row["epoch"],)
    names = ("val_robust_accuracy", "val_clean_accuracy")
    return tuple(row[name] for name in (names if attacks else names[::-1]))


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
