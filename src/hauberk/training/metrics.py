"""What an epoch showed: sums of training metrics, validation, and signs that a training has gone wrong."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, frozen_model
from hauberk.attacks.base import attack_batch
from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import as_json, write_atomically
from hauberk.core.numerics import float32_mode
from hauberk.core.random import ExampleRng
from hauberk.data import fetch_for
from hauberk.evaluation.diagnostics.results import hardly_beats_chance
from hauberk.methods import Output
from hauberk.objectives.functional import fooled
from hauberk.training.plan import Plan
from hauberk.weighting import probabilistic_margin

BOUNDARY = 0.1  # margins from 0 up to here are near the class boundary; the MAIL paper, Section 4.1, draws no line


def count_areas(logits: Tensor | None, logits_adv: Tensor | None, y: Tensor) -> dict[str, Tensor]:
    """Count the examples of a batch in the parts that the papers draw, as far as there are logits, (B, C); scalars.

    MART's S⁺ and S⁻ (``n_clean_right``, ``n_clean_wrong``); by the probabilistic margin of x', as in the MAIL paper's Figure
    3, the wrong-prediction area (``n_wrong``, PM < 0), the class boundary (``n_boundary``, PM < 0.1) and the safe area
    (``n_safe``).
    """
    counts = {}
    if logits is not None:
        counts["n_clean_right"] = (logits.argmax(1) == y).sum()
        counts["n_clean_wrong"] = len(y) - counts["n_clean_right"]
    if logits_adv is not None:
        margin = probabilistic_margin(logits_adv, y)
        counts["n_wrong"], counts["n_safe"] = (margin < 0).sum(), (margin >= BOUNDARY).sum()
        counts["n_boundary"] = len(y) - counts["n_wrong"] - counts["n_safe"]
    return counts


class EpochMetrics:
    """Sums over an epoch of what training saw in passes it made anyway; exact sums on the device, never means of means."""

    def __init__(self, device: torch.device, world: World):
        self._device, self._world = device, world
        self._sums: dict[str, Tensor] = {}  # of each quantity over examples, float64
        self._counts = Counter[str]()  # how many examples each was seen on

    def add(self, out: Output, y: Tensor, divisor: float) -> None:
        """Add a step with labels (b,), whose sum of losses was divided by ``divisor``. No host synchronisation."""
        totals = {"loss": out.loss.detach() * divisor}
        for name, logits in (("train_clean_accuracy", out.logits), ("train_robust_accuracy", out.logits_adv)):
            if logits is not None:
                totals[name] = (logits.argmax(1) == y).sum()
        if out.logits is not None:
            totals["misclassification_weight"] = (1 - out.logits.softmax(1).gather(1, y[:, None])).sum()
        totals |= {name: value * len(y) for name, value in out.report.items()} | count_areas(out.logits, out.logits_adv, y)
        for name, total in totals.items():
            self._sums[name] = total.double() + self._sums.get(name, 0.0)
            self._counts[name] += len(y)

    def means(self) -> dict[str, float]:
        """Return means over the epoch so far, and counts; only of what the method looked at. By all processes together.

        ``misclassification_weight`` is MART's ``1 - p_y(x)``; for the counts see :func:`count_areas`.
        """
        sums = self.state_dict().items()
        return {"loss": 0.0} | {k: int(total) if k.startswith("n_") else total / count for k, (total, count) in sums}

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sum of each quantity over all processes, and its number of examples; by all processes together."""
        if not self._sums:
            return {}
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=self._device)
        totals = self._world.sum(torch.stack([torch.stack(list(self._sums.values())), counts]))
        return dict(zip(self._sums, totals.T.tolist(), strict=True))

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from the sums of all processes, which are rank 0's from now on."""
        part = int(self._world.is_main)
        self._sums = {k: torch.tensor(part * s, dtype=torch.float64, device=self._device) for k, (s, _) in state.items()}
        self._counts = Counter({name: part * int(count) for name, (_, count) in state.items()})


def validate(model: nn.Module, plan: Plan, world: World) -> dict[str, float]:
    """Measure accuracy, in [0, 1], on the held-out part, clean and under PGD (ε/4, uniform start, cross-entropy, last point).

    The attack runs in the precision of the training. Both verdicts are the network's own in true float32: they choose the best
    epoch, so they should be what an evaluation of its weights would say. The one at the point found takes the place of the
    attack's own last look. Each process looks at its share. With class weights, an example counts as much as in the loss:
    otherwise a network that knows only the frequent class could be the best.
    """
    config, method = plan.config, plan.method
    # A model that recognises adversarial inputs is right to do so: what counts is what evades it.
    rejects = method.extra_outputs > 0
    attack = PGD(config.val_steps, loss="evade" if rejects else "ce", return_last=True, evaluate_last=False)
    sums = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    at_once = -(-config.batch_size // world.size)
    for index in world.local_shard(torch.arange(len(plan.val))).split(at_once):
        if not len(index):
            break
        x, y = fetch_for(model, plan.val, index)
        # The same starts every epoch, so that epochs are compared on equal terms.
        rng = ExampleRng(config.seed, index.to(x.device), stage=-2)
        policy = method.precision
        with nullcontext(model) if policy is None else policy.attack_model(model, x, "eval") as form:
            point = attack_batch(attack, form, x, y, method.threat, seed=rng).x_adv
        with frozen_model(model) as view, float32_mode("fp32"), torch.no_grad():
            right, broken = view(x).argmax(1) == y, fooled(view(point), y, rejects)
        weight = torch.ones(len(y), device=y.device) if plan.class_weights is None else plan.class_weights.to(y.device)[y]
        sums += torch.stack([(weight * right).sum(), (weight * (right & ~broken)).sum(), weight.sum()])
    clean, robust, total = world.sum(sums).tolist()
    total = total or 1.0  # all weights may be 0
    return {"val_clean_accuracy": clean / total, "val_robust_accuracy": robust / total}


class TrainingDiverged(Exception):
    """The loss is not finite, or robust accuracy has collapsed; the message says which, for the user."""


def check_catastrophic_overfitting(row: dict[str, Any], best: dict[str, Any], held_out: int, classes: int) -> None:
    """Raise TrainingDiverged for catastrophic overfitting (Wong et al. 2020): the training attack fails, and others succeed.

    That is taken to have happened when robust accuracy on held-out examples is under half of the best so far, by more than
    four standard errors, while robust accuracy in training has reached that best one. A training that merely stumbles, at a
    high learning rate, loses both, and is left to recover; and one that was no better than chance has nothing to lose.

    ``row`` has the metrics of this epoch, ``best`` those of the best one before, or nothing; ``held_out`` is the number of
    examples that validation looks at.
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

    A method that does not attack is judged by clean accuracy first.
    """
    if "val_clean_accuracy" not in row:
        return (row["epoch"],)
    names = ("val_robust_accuracy", "val_clean_accuracy")
    return tuple(row[name] for name in (names if attacks else names[::-1]))


def chance_line(row: dict[str, Any], classes: int) -> str:
    """Say that a network has learnt nothing, by its metrics on held-out examples; empty where it has, or none are held out.

    Of a network that recognises adversarial inputs, that may be because it takes clean ones for such.
    """
    clean = row.get("val_clean_accuracy")
    if clean is None or not hardly_beats_chance(clean, classes):
        return ""
    return (
        f"WARNING: {100 * clean:.1f} % of the clean held-out examples are right, no better than chance ({classes} classes): "
        "train longer, or look at labels, input range and learning rate"
    )


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
        rows = [{str(name): float(value) for name, value in row.items()} for row in state["rows"]]
        self.rows = [row | {"epoch": int(row["epoch"])} for row in rows]
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_atomically(self._path, "".join(as_json(row) + "\n" for row in self.rows).encode())


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
