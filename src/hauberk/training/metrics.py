"""What an epoch showed: sums of training metrics, validation, and signs that a training has gone wrong."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, frozen_model
from hauberk.attacks.base import attack_batch
from hauberk.core.arguments import unchecked
from hauberk.core.device import constant, send
from hauberk.core.distributed import World
from hauberk.core.numerics import float32_mode
from hauberk.core.random import ExampleRng
from hauberk.data import fetch_for
from hauberk.evaluation.diagnostics.results import hardly_beats_chance
from hauberk.methods import Output
from hauberk.methods.output import misclassification_weight, weighting_report
from hauberk.threat import threats_of
from hauberk.training.plan import Plan
from hauberk.weighting import probabilistic_margin

_AT_ONCE = 16  # steps that are counted at a time
BOUNDARY = 0.1  # margins from 0 up to here are near the class boundary; the MAIL paper, Section 4.1, draws no line


def count_areas(logits: Tensor | None, logits_adv: Tensor | None, y: Tensor) -> dict[str, Tensor]:
    """Say which examples are in the parts that the papers draw, as far as there are logits, (B, C); (B,) each.

    MART's S⁺ (``n_clean_right``; the others are S⁻); by the probabilistic margin of x', as in the MAIL paper's Figure 3, its
    wrong-prediction area (``n_wrong``, PM < 0) and the safe area (``n_safe``, PM ≥ 0.1); the rest is the class boundary. Where
    there are both logits, MART's 0-1 risks: R⁺ is 1 where x' is wrong, of S⁺ (``n_risk_plus``), R⁻ that
    and 1 more where the classes of x and x' differ, of S⁻ (``n_risk_minus``).
    """
    areas = {}
    if logits is not None:
        areas["n_clean_right"] = logits.argmax(1) == y
    if logits_adv is not None:
        margin = unchecked(probabilistic_margin)(logits_adv, y)
        areas |= {"n_robust_right": logits_adv.argmax(1) == y, "n_wrong": margin < 0, "n_safe": margin >= BOUNDARY}
    if logits is not None and logits_adv is not None:
        right, wrong = areas["n_clean_right"], ~areas["n_robust_right"]
        moved = logits.argmax(1) != logits_adv.argmax(1)
        areas |= {"n_risk_plus": right & wrong, "n_risk_minus": ~right * (wrong.long() + moved)}
    return areas


@dataclass
class _Seen:
    """What is kept of a step until several are counted at once: its loss as a mean over examples, and fields of the Output."""

    loss: Tensor
    y: Tensor
    logits: Tensor | None
    logits_adv: Tensor | None
    all_weights: Tensor | None
    measure: Tensor | None

    @property
    def shapes(self) -> list[Any]:
        """Steps with the same ones are counted together."""
        return [None if value is None else value.shape for value in vars(self).values()]


class EpochMetrics:
    """Sums over an epoch of what training saw in passes it made anyway; sums over examples, never means of means.

    Steps are counted some at a time, so that their number of launches does not matter. What a step shows is rounded to a
    multiple of 2⁻³², so that sums in float64 are exact: they do not depend on which steps are counted together.
    """

    def __init__(self, device: torch.device, world: World):
        self._device, self._world = device, world
        self._seen: list[_Seen] = []
        # By the names of the quantities that were seen together: their sums over examples, (k,) float64, and how many examples.
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, out: Output, y: Tensor, divisor: float) -> None:
        """Add a step with labels (b,), whose sum of losses was divided by ``divisor``. No host synchronisation."""
        loss = out.loss.detach()
        loss = loss if divisor == len(y) else loss * (divisor / len(y))
        seen = _Seen(loss, y, out.logits, out.logits_adv, out.all_weights, out.measure)
        if self._seen and (len(self._seen) == _AT_ONCE or self._seen[0].shapes != seen.shapes):
            self._count()
        self._seen.append(seen)

    @torch.no_grad()
    def _count(self) -> None:
        """Count the steps that have been put off."""
        if not self._seen:
            return
        stacked = {
            name: None if value is None else torch.stack([getattr(seen, name) for seen in self._seen])
            for name, value in vars(self._seen[0]).items()
        }
        loss, y, logits, logits_adv, weights, measure = stacked.values()
        assert loss is not None  # always there
        assert y is not None
        means = {"loss": loss}
        if weights is not None:
            means |= weighting_report(weights, measure, logits_adv, y)
        if logits is not None:
            means["misclassification_weight"] = misclassification_weight(logits, y).mean(1)
        clean, adversarial = (None if z is None else z.flatten(0, 1) for z in (logits, logits_adv))
        areas = {name: area.view(y.shape).sum(1) for name, area in count_areas(clean, adversarial, y.flatten()).items()}
        rows = torch.stack([value.double() for value in means.values()], 1)
        rows = torch.round(rows * 2.0**32) * (2.0**-32 * y.shape[1])
        if areas:
            rows = torch.cat([rows, torch.stack([value.double() for value in areas.values()], 1)], 1)
        names = (*means, *areas)
        total, count = self._sums.get(names, (0.0, 0))
        self._sums[names] = total + rows.sum(0), count + y.numel()
        self._seen = []

    def means(self) -> dict[str, float]:
        """Return means over the epoch so far, and counts; only of what the method looked at. By all processes together.

        ``misclassification_weight`` is MART's ``1 - p_y(x)``; ``risk_plus`` and ``risk_minus`` are what S⁺ and S⁻ add to MART's
        0-1 risk ``risk_misc``; for these and the counts see :func:`count_areas`.
        """
        sums = self.state_dict()
        found = {"loss": 0.0} | {name: total / count for name, (total, count) in sums.items() if not name.startswith("n_")}
        seen = {name: (int(total), int(count)) for name, (total, count) in sums.items() if name.startswith("n_")}
        if "n_clean_right" in seen:
            right, count = seen["n_clean_right"]
            found |= {"train_clean_accuracy": right / count, "n_clean_right": right, "n_clean_wrong": count - right}
        if "n_robust_right" in seen:
            (right, count), (wrong, _), (safe, _) = (seen[name] for name in ("n_robust_right", "n_wrong", "n_safe"))
            found |= {"train_robust_accuracy": right / count, "n_wrong": wrong, "n_safe": safe}
            found["n_boundary"] = count - wrong - safe
        if "n_risk_plus" in seen:
            (plus, count), (minus, _) = seen["n_risk_plus"], seen["n_risk_minus"]
            found |= {"risk_plus": plus / count, "risk_minus": minus / count, "risk_misc": (plus + minus) / count}
        return found

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sum of each quantity over all processes, and its number of examples; by all processes together."""
        self._count()
        if not self._sums:
            return {}
        counts = torch.tensor([count for _, count in self._sums.values()], dtype=torch.float64, device=self._device)
        sizes = [len(names) for names in self._sums]
        packed = self._world.sum(torch.cat([counts, *(sums for sums, _ in self._sums.values())]))
        seen, *totals = (part.tolist() for part in packed.split([len(sizes), *sizes]))
        state: dict[str, list[float]] = {}
        for names, sums, count in zip(self._sums, totals, seen, strict=True):
            for name, total in zip(names, sums, strict=True):
                before = state.get(name, [0.0, 0.0])
                state[name] = [before[0] + total, before[1] + count]
        return state

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from the sums of all processes, which are rank 0's from now on."""
        part = int(self._world.is_main)
        by_count: dict[float, list[str]] = {}
        for name, (_, count) in state.items():
            by_count.setdefault(count, []).append(name)
        for count, names in by_count.items():
            totals = torch.tensor([part * state[name][0] for name in names], dtype=torch.float64, device=self._device)
            self._sums[tuple(names)] = totals, part * int(count)


def validate(model: nn.Module, plan: Plan, world: World) -> dict[str, float]:
    """Measure accuracy, in [0, 1], on the held-out part, clean and under PGD (ε/4, uniform start, cross-entropy, last point).

    Robust accuracy is that of the worst class, too, among those that the held-out part has.

    The attack runs in the precision of the training. Both verdicts are the network's own in true float32: they choose the best
    epoch, so they should be what an evaluation of its weights would say. The one at the point found takes the place of the
    attack's own last look. Under several threat models an example must withstand each. Where the method's objective has
    ``certified(model, x, y, threat)``, it says of which inputs bounds prove robustness, and their share is measured too. Each
    process looks at its part. With class weights, an example counts as much as in the loss: otherwise a network that knows only
    the frequent class could be the best.
    """
    config, method, threats = plan.config, plan.method, threats_of(plan.method.threat)
    # A model that recognises adversarial inputs is right to do so: what counts is what evades it.
    rejects = method.extra_outputs > 0
    attack = PGD(config.val_steps, loss="evade" if rejects else "ce", return_last=True, evaluate_last=False)
    proves = getattr(method.objective, "certified", None)
    sums = torch.zeros(4, dtype=torch.float64, device=next(model.parameters()).device)
    outputs = torch.arange(plan.spec.classes, device=sums.device)
    named = torch.zeros_like(outputs, dtype=torch.bool)
    of_classes = torch.zeros(2, len(outputs), dtype=torch.float64, device=sums.device)  # how many there are, how many withstand
    at_once = -(-config.batch_size // world.size)
    for index in world.local_shard(torch.arange(len(plan.val))).split(at_once):
        if not len(index):
            break
        x, y = fetch_for(model, plan.val, index)
        # The same starts every epoch, so that epochs are compared on equal terms.
        rng = ExampleRng(config.seed, send(index, x.device), stage=-2)
        policy = method.precision
        with nullcontext(model) if policy is None else policy.attack_model(model, x, "eval") as form:
            points = [attack_batch(attack, form, x, y, threat, seed=rng).x_adv for threat in threats]
        with frozen_model(model) as view, float32_mode("fp32"), torch.no_grad():
            predicted = view(x).argmax(1)
            right = predicted == y
            broken = torch.stack([attack.attack_loss.criterion(view(point), y) for point in points]).any(0)
            proved = torch.zeros_like(right) if proves is None else proves(view, x, y, threats[0])
        each = plan.class_weights
        weight = torch.ones(len(y), device=y.device) if each is None else constant(each, each.dtype, y.device)[y]
        named |= (predicted[:, None] == outputs).any(0)
        members = (y[:, None] == outputs).double()
        of_classes += torch.stack([torch.ones_like(right), right & ~broken]).double() @ members
        sums += torch.stack([(weight * those).sum() for those in (right, right & ~broken, proved, torch.ones_like(right))])
    (clean, robust, certified, total), times, there, withstand = (
        part.tolist() for part in world.sum(torch.cat([sums, named.double(), *of_classes])).split([4, *[len(outputs)] * 3])
    )
    total = total or 1.0  # all weights may be 0
    found = {"val_clean_accuracy": clean / total, "val_robust_accuracy": robust / total}
    shares = [right / count for right, count in zip(withstand, there, strict=True) if count]
    found["val_worst_class_robust_accuracy"] = min(shares, default=0.0)
    found["val_predicted_classes"] = sum(count > 0 for count in times)
    return found if proves is None else found | {"val_certified_accuracy": certified / total}


class TrainingDiverged(Exception):
    """The loss is not finite, or robust accuracy has collapsed; the message says which, for the user."""


def check_catastrophic_overfitting(row: dict[str, Any], best: dict[str, Any], held_out: int, classes: int) -> None:
    """Raise TrainingDiverged for catastrophic overfitting (Wong et al. 2020): the training attack fails, and others succeed.

    That is taken to have happened when, of the held-out examples that the network has right, the part that withstands the
    attack is under half of that in the best epoch so far, by more than four standard errors, while robust accuracy in training
    has reached the held-out one of that epoch. A training that merely stumbles, at a high learning rate, loses clean accuracy
    with it, and is left to recover; and one that was no better than chance has nothing to lose.

    ``row`` has the metrics of this epoch, ``best`` those of the best one before, or nothing; ``held_out`` is the number of
    examples that validation looks at.
    """
    seen, then = row.get("train_robust_accuracy"), best.get("val_robust_accuracy")
    if seen is None or then is None or "val_robust_accuracy" not in row:
        return
    now, right, right_then = row["val_robust_accuracy"], row["val_clean_accuracy"], best["val_clean_accuracy"]
    if then <= 1 / classes + 4 * sqrt((1 - 1 / classes) / classes / held_out) or not right:
        return
    withstood, before = now / right, then / right_then
    error = sqrt(before * (1 - before) / (held_out * min(right, right_then)))
    if withstood < before / 2 and before - withstood > 4 * error and seen >= then:
        raise TrainingDiverged(
            f"robust accuracy on held-out examples fell from {100 * then:.1f} % to {100 * now:.1f} % in epoch {row['epoch']}, "
            f"while {100 * seen:.1f} % withstand the training attack and {100 * right:.1f} % are right without one: "
            "catastrophic overfitting, usual where it has one step"
        )


def score(row: dict[str, Any], attacks: bool) -> tuple[float, ...]:
    """Rank an epoch by its metrics; larger is better. With nothing held out, the last epoch is the best.

    A method that sees no worst cases is judged by clean accuracy first, one that proves robustness by what it proves.
    """
    if "val_clean_accuracy" not in row:
        return (row["epoch"],)
    names = ["val_robust_accuracy", "val_clean_accuracy"]
    names = ["val_certified_accuracy", *names] if "val_certified_accuracy" in row else names
    return tuple(row[name] for name in (names if attacks else names[::-1]))


def chance_line(row: dict[str, Any], classes: int) -> str:
    """Say that a network has learnt nothing, by its metrics on held-out examples; empty where it has, or none are held out.

    Of a network that recognises adversarial inputs, that may be because it takes clean ones for such.
    """
    clean = row.get("val_clean_accuracy")
    if row.get("val_predicted_classes") == 1 and clean != 1:
        return (
            "WARNING: the network takes all clean held-out examples for the same class: look at what the adversary may change "
            "(too much leaves nothing to learn), labels, input range and learning rate"
        )
    if clean is None or not hardly_beats_chance(clean, classes):
        return ""
    return (
        f"WARNING: {100 * clean:.1f} % of the clean held-out examples are right, no better than chance ({classes} classes): "
        "train longer, or look at labels, input range and learning rate"
    )


def epoch_line(row: dict[str, Any], epochs: int, better: bool) -> str:
    """Say in one line what an epoch showed."""
    names = {
        "train_clean_accuracy": "train clean",
        "train_robust_accuracy": "train robust",
        "val_clean_accuracy": "val clean",
        "val_robust_accuracy": "val PGD",
        "val_certified_accuracy": "val certified",
    }
    accuracies = [f"{label} {100 * row[name]:.1f} %" for name, label in names.items() if name in row]
    head = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['loss']:.4f}"
    rate = f"{row['examples_per_second']:,.0f} examples/s"
    return "  ".join([head, *accuracies, rate, *(["best so far"] if better else [])])
