"""Diagnostics of clean inputs, which take little, and of the verdicts of an evaluation, which take no pass at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, Suite
from hauberk.attacks.base import MaximizingAttack
from hauberk.attacks.model.check_model import are_probabilities, has_gradient
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.presets import AUTOATTACK
from hauberk.data import IndexedDataset, Subset, class_overlap, reach_of
from hauberk.data.tables.rows import rows_behind
from hauberk.evaluation.finding import Finding
from hauberk.evaluation.records import CLEAN, Records
from hauberk.objectives.functional import ATTACK_LOSSES, AttackLoss, find_attack_loss, fooled
from hauberk.threat import ThreatModel

_ROWS = 2000  # that are compared, every two
_MARGIN_LOSSES = ("cw", "dlr", "dlr-targeted", "cw-targeted")


@dataclass(frozen=True)
class Verdicts:
    """What diagnostics that need "verdicts" are given. Those that need attacks which did not run find nothing.

    Attributes:
        records: what was found for each example.
        suite: what was run.
        outputs: how many logits the model has.
        weights: for how many examples each stands, (n,).
        goal: what the adversary was after.
        tested: the examples.
        threat: the threat model.
    """

    records: Records
    suite: Suite
    outputs: int
    weights: np.ndarray
    goal: AttackLoss = ATTACK_LOSSES["cw"]
    tested: IndexedDataset | None = None
    threat: ThreatModel | None = None

    def attack(self, name: str) -> Attack[Any]:
        """What ran under a name."""
        return self.suite.attacks[name].attack

    @property
    def apart(self) -> list[str]:
        """Attacks that saw every example that is classified right."""
        return [name for name, earlier in self.suite.stages.items() if not earlier]

    @property
    def cross_entropy(self) -> list[str]:
        """Those of them that maximise cross-entropy in several steps, in order of cost."""
        some = [name for name in self.apart if _loss(self.attack(name)) == "ce" and not _single_step(self.attack(name))]
        return sorted(some, key=lambda name: self.attack(name).cost(self.outputs))

    @property
    def pgd(self) -> list[str]:
        """Those of these that are PGD."""
        return [name for name in self.cross_entropy if isinstance(self.attack(name), PGD)]


def _loss(attack: Attack[Any]) -> str:
    return str(attack.loss) if isinstance(attack, MaximizingAttack) else ""


def _single_step(attack: Attack[Any]) -> bool:
    return getattr(attack, "steps", 0) == 1


def clean_accuracy(found: Verdicts) -> list[Finding]:
    """Whether the model hardly beats chance (1) or does (0)."""
    if not found.goal.of_classes:
        return []
    accuracy = float(found.records.right.mean())
    measured = f"clean accuracy {accuracy:.1%}, chance {1 / found.outputs:.1%}"
    return [Finding(float(hardly_beats_chance(accuracy, found.outputs)), measured)]


def hardly_beats_chance(clean: float, classes: int) -> bool:
    """Whether a clean accuracy, in [0, 1], is less than twice what guessing gives; of two classes, no more than that."""
    return (clean < 2 / classes and classes > 2) or clean <= 1 / classes


def largest_class(found: Verdicts) -> list[Finding]:
    """Whether no more is right than one answer for every input would have (1), where there are examples of several classes."""
    clean = found.records[CLEAN]
    if not found.goal.of_classes or len(counts := np.unique(clean["label"], return_counts=True)[1]) < 2:
        return []
    n, right, answers = found.records.n, int(found.records.right.sum()), np.unique(clean["predicted"])
    said = f"says class {answers[0]} for every input" if len(answers) == 1 else f"has {right / n:.1%} right"
    measured = f"the model {said}, and {counts.max() / n:.1%} of the examples are of the largest class"
    return [Finding(float(len(answers) == 1 or right <= counts.max()), measured)]


def unverified(found: Verdicts) -> list[Finding]:
    """For which fraction of the examples a claimed success did not hold."""
    tables = [found.records[name] for name in found.suite.stages]
    count = int(np.logical_or.reduce([table["known"] & table["unverified"] for table in tables]).sum())
    measured = f"for {count} examples a claimed success did not hold when checked again"
    return [Finding(_more_than_one(count, found), measured)]


def nonfinite_logits(found: Verdicts) -> list[Finding]:
    """For how many examples logits that are not finite counted as a success."""
    tables = [found.records[name] for name in found.suite.stages]
    count = int(np.logical_or.reduce([table["broken"] & ~table["finite"] for table in tables]).sum())
    return [Finding(count, f"for {count} examples an attack found an input with logits that are NaN or infinite")]


def single_step(found: Verdicts) -> list[Finding]:
    """Which fraction of the examples single-step attacks break that iterative ones do not."""
    single = [name for name in found.apart if _single_step(found.attack(name))]
    if not single or not found.cross_entropy:
        return []
    missed = int((found.records.broken(single) & ~found.records.broken(found.cross_entropy)).sum())
    return [Finding(missed / found.records.n, f"FGSM breaks {missed} examples that no PGD breaks")]


def margin_gap(found: Verdicts) -> list[Finding]:
    """Which larger fraction of the examples attacks on the margin break than those on cross-entropy, at least."""
    if found.goal.is_own:  # which all of them maximise
        return []
    margin = [name for name in found.apart if _loss(found.attack(name)) in _MARGIN_LOSSES]
    return _gap(found, margin, found.cross_entropy, "attacks on the margin break", "those on cross-entropy")


def no_gradients(found: Verdicts) -> list[Finding]:
    """Whether no attack went by gradients (1)."""
    names = list(found.suite.stages)
    if any(found.attack(name).uses_gradients for name in names):
        return [Finding(0, "attacks by gradients ran")]
    return [Finding(1, f"no attack by gradients ran, only {', '.join(names)}")]


def steps_gain(found: Verdicts) -> list[Finding]:
    """Which larger fraction of the examples the PGD of most steps breaks than the one of fewest, at least."""
    if len(found.pgd) < 2:
        return []
    short, long = found.pgd[0], found.pgd[-1]
    return _gap(found, [long], [short], f"{long} breaks", short)


def autoattack_gap(found: Verdicts) -> list[Finding]:
    """Which larger fraction of the examples AutoAttack breaks than PGD, at least."""
    return _gap(found, found.suite.columns.get("autoattack", ()), found.pgd, "AutoAttack breaks", "PGD")


def robust_rows_that_meet(found: Verdicts) -> list[Finding]:
    """How many rows of a table stand that cannot all stand: of two classes, and the adversary can make them the same.

    A model says one thing of what both can be made into, so one of the two is broken there, and no attack has found it.
    """
    if found.tested is None or found.threat is None or found.goal.criterion is not fooled or found.suite.sampled:
        return []
    if rows_behind(found.tested) is None:
        return []
    standing = torch.from_numpy(np.flatnonzero(found.records.robust))
    if not len(standing):
        return []
    n = min(len(standing), _ROWS)
    overlap = class_overlap(Subset(found.tested, standing), found.threat, n=n)
    missed = round(n * (1 - overlap.at_most))
    measured = f"of {n:,} rows that stand at least {missed:,} do not: each can be made the same as one of another class"
    return [Finding(missed / found.records.n, measured if missed else f"no two of {n:,} rows that stand can be made the same")]


def _gap(found: Verdicts, attacks: Sequence[str], others: Sequence[str], who: str, whom: str) -> list[Finding]:
    """Compare what attacks break with what others do, if both have run; ``who`` and ``whom`` are words for them.

    The value is the gap less two standard errors of paired fractions (McNemar), which few examples may show by chance.
    """
    if not attacks or not others:
        return []
    some, rest, n = found.records.broken(attacks), found.records.broken(others), found.records.n
    gap, error = (int(some.sum()) - int(rest.sum())) / n, float((some != rest).sum()) ** 0.5 / n
    measured = f"{who} {100 * gap:+.1f} points more than {whom} (± {200 * error:.1f}, two standard errors)"
    return [Finding(gap - 2 * error, measured)]


def _without_gradients(found: Verdicts, in_autoattack: bool) -> list[Finding]:
    """Which fraction of the examples each attack without gradients alone breaks, of those in AutoAttack or the others."""
    white_box = [name for name in found.suite.stages if found.attack(name).uses_gradients]
    findings = []
    for name in found.suite.stages if white_box else ():
        if name not in white_box and (name in AUTOATTACK) == in_autoattack:
            more = np.flatnonzero(found.records.broken([name]) & ~found.records.broken(white_box)).tolist()
            shown = f" ({', '.join(map(str, more[:10]))}{', ...' if len(more) > 10 else ''})" if more else ""
            measured = f"{name} breaks {len(more)} examples that no attack with gradients breaks{shown}"
            fraction = float(found.weights[more].sum()) / found.records.n if len(more) > 1 else 0.0
            findings.append(Finding(fraction, measured, f"{name}-beats-gradients"))
    return findings


autoattack_without_gradients = partial(_without_gradients, in_autoattack=True)
others_without_gradients = partial(_without_gradients, in_autoattack=False)


def _more_than_one(count: int, found: Verdicts) -> float:
    """The fraction of all examples, 0 for a single one."""
    return count / found.records.n if count > 1 else 0.0


SPREAD = 1e-4  # of normalised logits, between passes over the same inputs; AutoAttack's own threshold
_REPEATS = 5


@dataclass(frozen=True)
class CleanInputs:
    """What diagnostics that need "model" are given.

    Attributes:
        model: in evaluation mode, lent by ``frozen_model``.
        x: some clean inputs, (b, ...).
        draws: passes that the evaluation averages over; more than 1 is for random models.
        source: the data.
        threat: the threat model.
        of_classes: whether its outputs are logits of classes.
    """

    model: nn.Module
    x: Tensor
    draws: int
    source: IndexedDataset
    threat: ThreatModel
    of_classes: bool = True

    def look(self, x: Tensor) -> Tensor:
        """Logits of inputs, in one pass: (k, ...) -> (k, C)."""
        return ModelQueries(self.model).logits(x).reshape(len(x), -1)

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the inputs, (b, C)."""
        return self.look(self.x)

    @cached_property
    def spread(self) -> float:
        """How far the logits of further passes over the same inputs are from the first ones."""
        return max(_distance(self.logits, self.look(self.x)) for _ in range(_REPEATS - 1))


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest L2 distance of the logits of an example, each divided by its length."""
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True).clamp_min(1e-30) for z in (one, other))
    return float((a - b).norm(dim=1).max())


def probabilities(clean: CleanInputs) -> list[Finding]:
    """Whether the outputs look like those of a softmax."""
    if not clean.of_classes:
        return []
    found = are_probabilities(clean.logits)
    return [Finding(float(found), f"the outputs are {'' if found else 'no '}probabilities")]


def randomness(clean: CleanInputs) -> list[Finding]:
    """How far passes over the same inputs differ, where the evaluation does not average over passes."""
    return [_repeated(clean, clean.spread)] if clean.draws == 1 else []


def needless_averaging(clean: CleanInputs) -> list[Finding]:
    """Whether the evaluation averages over passes that do not differ."""
    return [_repeated(clean, float(clean.spread <= SPREAD))] if clean.draws > 1 else []


def _repeated(clean: CleanInputs, value: float) -> Finding:
    return Finding(value, f"{_REPEATS} passes over the same inputs differ by up to {clean.spread:.2g} (normalised logits)")


def training_modules(clean: CleanInputs) -> list[Finding]:
    """How many modules ignore ``eval()``."""
    found = [type(module).__name__ for module in clean.model.modules() if module.training]
    return [Finding(len(found), f"{len(found)} modules stay in training mode" + (f" ({found[0]}, ...)" if found else ""))]


def side_effects(clean: CleanInputs) -> list[Finding]:
    """How many parameters and buffers a pass changes."""
    before = [value.clone() for value in (*clean.model.parameters(), *clean.model.buffers())]
    clean.look(clean.x)
    after = [*clean.model.parameters(), *clean.model.buffers()]
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return [Finding(changed, f"a forward pass in evaluation mode changes {changed} parameters or buffers")]


def gradients_in_forward(clean: CleanInputs) -> list[Finding]:
    """How many tensors that autograd has saved in a forward pass are used before it ends."""
    if not has_gradient(clean.model):
        return []
    used, before = 0, 0

    def unpack(saved: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return saved

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal before
        before = used  # the forward pass ends here
        return logits.reshape(len(logits), -1).sum(1)

    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, unpack):
        ModelQueries(clean.model).value_and_grad(clean.x[:2], find_attack_loss(loss), clean.x[:2])
    return [Finding(before, f"a forward pass takes {'' if before else 'no '}gradients")]


def batch_dependence(clean: CleanInputs) -> list[Finding]:
    """How far logits of inputs alone differ from those in a batch, for models that are not random."""
    if clean.spread > SPREAD:
        return []
    alone = torch.cat([clean.look(one) for one in clean.x[:4].split(1)])
    distance = _distance(alone, clean.logits[: len(alone)])
    return [Finding(distance, f"inputs alone and in a batch differ by up to {distance:.2g} (normalised logits)")]


def changeable_columns(clean: CleanInputs) -> list[Finding]:
    """Which columns of a table can change: 0 if all that may, 1 if not all of them, 2 if none."""
    reach = reach_of(clean.source, clean.threat)
    return [] if reach is None else [Finding(2 if not reach.moving else 1 if reach.stuck else 0, str(reach))]
