"""Attacks by name, and the suites of them that an evaluation runs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from hauberk.attacks.apgd import APGD
from hauberk.attacks.base import GOAL, Attack, attack_batch, run_attack
from hauberk.attacks.minimum_norm import CWL2, DDN, FAB, FMN, DeepFool, SigmaZero
from hauberk.attacks.model.bpda import StandInLike, with_stand_in
from hauberk.attacks.model.check_model import check_module, has_gradient
from hauberk.attacks.pgd import LINE_SEARCH, NESTEROV, PGD
from hauberk.attacks.score_based.random_search import RandomSearch
from hauberk.attacks.score_based.square import Square
from hauberk.attacks.state import AttackResult
from hauberk.attacks.transfer import CallableAttack, Transfer
from hauberk.core.arguments import check_callable, checked
from hauberk.core.errors import UserError, find_name, unknown_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.names import numbered
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.objectives.functional import AttackLoss
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_batch

AttackLike: TypeAlias = str | Attack[Any] | Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")  # its standard version, in order
_JUMPS = "square-1000"  # of one-hot groups
_QUICK_SCORES = ("random-100", "square-1000")  # where there are no gradients
_FIRST_RUNS = {"apgd-ce": 1, "apgd-t": 3}  # of these, which the suite "fast" gives every example
_FIRST_RUNS_BESIDES = {"fab-t": 1}  # where the ball is no box, as FAB-T is the stronger there when gradients are masked
_PART = re.compile(r"(.+)\[(\d*):(\d*)\]")


@dataclass(frozen=True)
class AttackPreset:
    """A named attack.

    Attributes:
        attack: what runs.
        source: where its settings come from.
        in_l1: settings that are others in L1.
        runs: which of its runs (restarts, targets): the first, and the one after the last; None where there is no such end.
        whole: the attack that these runs are part of, whose random draws they have; "" for an attack of its own.
    """

    attack: Attack[Any]
    source: str
    in_l1: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[int | None, int | None] = (None, None)
    whole: str = ""

    def adapted(
        self, threat: ThreatModel, n_classes: int, goal: AttackLoss = GOAL, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack as it is run; arguments, note and errors as :meth:`hauberk.attacks.Attack.adapted`."""
        attack, note = self.attack.adapted(threat, n_classes, goal, surrogate)
        return replace(attack, **self.in_l1) if threat.norm.p == 1 and self.in_l1 else attack, note  # type: ignore[type-var]


# Step sizes that the sources give in absolute units belong to their ε (0.031 or 8/255, or 0.3 on MNIST). Where a source's code
# judges the last point only, so do the attacks that bear its name; all others count every point, and are stronger.
PRESETS: dict[str, AttackPreset] = {
    "fgsm": AttackPreset(PGD(1, "eps", "clean"), "Goodfellow et al. 2015: one step of ε from x"),
    "pgd-10": AttackPreset(PGD(10, "eps/4"), "Madry et al. 2018, CIFAR-10 training: 10 steps of ε/4"),
    "pgd-20": AttackPreset(PGD(20, "eps/4"), "FAT, GAIRAT evaluation: 20 steps of ε/4"),
    "pgd-40": AttackPreset(PGD(40, "eps/30"), "Madry et al. 2018, MNIST: 40 steps of 0.01 at ε 0.3"),
    "pgd-100": AttackPreset(PGD(100, "eps/10"), "100 steps of ε/10 (MAIL: 0.003 at ε 0.031)"),
    "pgd-20-last": AttackPreset(
        PGD(20, "eps/10", return_last=True), "TRADES, MART, MAIL evaluation: 20 steps of ε/10, the last point judged"
    ),
    "pgd-100-last": AttackPreset(
        PGD(100, "eps/10", return_last=True), "MAIL evaluation: 100 steps of ε/10, the last point judged"
    ),
    "pgd-20-targeted": AttackPreset(
        PGD(20, "eps/4", loss="ce-targeted"), "20 steps of ε/4 towards each of the 9 most likely wrong classes"
    ),
    "cw-20": AttackPreset(PGD(20, "eps/10", loss="cw", confidence=50.0), "margin loss, κ 50, 20 steps of ε/10"),
    "cw-20-last": AttackPreset(
        PGD(20, "eps/10", loss="cw", confidence=50.0, return_last=True),
        "MAIL evaluation: margin loss, κ 50, 20 steps of ε/10, the last point judged",
    ),
    "cw-30": AttackPreset(PGD(30, "eps/4", loss="cw", confidence=50.0), "FAT, GAIRAT: margin loss, κ 50, 30 steps of ε/4"),
    "cw-100": AttackPreset(PGD(100, "eps/10", loss="cw"), "margin loss, κ 0, 100 steps of ε/10"),
    "lm-pgd": AttackPreset(
        PGD(50, "eps/4", nesterov=NESTEROV, step_size_factors=LINE_SEARCH),
        "PGD with line search and Nesterov's momentum; our construction, MAIL's Appendix A is not public",
    ),
    "apgd-ce": AttackPreset(
        APGD(), "AutoAttack's first attack: APGD on cross-entropy, 100 steps (L1: 5 restarts)", in_l1={"restarts": 5}
    ),
    "apgd-t": AttackPreset(
        APGD(loss="dlr-targeted"),
        "AutoAttack's second attack: APGD on targeted DLR, 9 classes (L1: 5) of 100 steps",
        in_l1={"targets": 5},
    ),
    "fab-t": AttackPreset(FAB(), "AutoAttack's third attack: FAB-T, 9 classes of 100 steps"),
    "square": AttackPreset(Square(), "AutoAttack's fourth attack: Square, 5,000 queries"),
    "square-1000": AttackPreset(Square(1000), "Square, 1,000 queries: what the quick suite runs besides on categories"),
    "apgd-dlr": AttackPreset(
        APGD(loss="dlr"), "APGD on the difference of logits ratio, 100 steps (L1: 5 restarts)", in_l1={"restarts": 5}
    ),
    "apgd-ce-5": AttackPreset(APGD(restarts=5), "AutoAttack plus: APGD on cross-entropy, 5 restarts"),
    "apgd-dlr-5": AttackPreset(APGD(loss="dlr", restarts=5), "AutoAttack plus: APGD on DLR, 5 restarts"),
    "fab-5": AttackPreset(FAB(targeted=False, restarts=5), "AutoAttack plus: untargeted FAB, 5 restarts"),
    "fmn-100": AttackPreset(FMN(), "Pintor et al. 2021: FMN, 100 steps; counts what it finds within ε"),
    "ddn-100": AttackPreset(DDN(), "Rony et al. 2019: DDN, 100 steps, in L2; counts what it finds within ε"),
    "deepfool": AttackPreset(DeepFool(), "Moosavi-Dezfooli et al. 2016: DeepFool, in L2 and L∞; counts what it finds within ε"),
    "cw-l2": AttackPreset(
        CWL2(), "Carlini and Wagner 2017, L2: 9 constants of up to 10,000 steps; counts what it finds within ε"
    ),
    "sigma-zero-1000": AttackPreset(
        SigmaZero(), "Cinà et al. 2025: σ-zero, 1,000 steps, in L0; counts what it finds within k features"
    ),
    "random-100": AttackPreset(RandomSearch(100), "100 random points: a check that gradients find more"),
    "random-1000": AttackPreset(RandomSearch(1000), "1,000 random points: of the suite for models without gradients"),
    "random-10000": AttackPreset(RandomSearch(10_000), "10,000 random points, as Carlini et al. 2019 advise"),
    "transfer-fgsm": AttackPreset(Transfer(PGD(1, "eps", "clean")), "MART black box: FGSM on a surrogate, tried here"),
    "transfer-cw-20": AttackPreset(
        Transfer(PGD(20, "eps/10", loss="cw", confidence=50.0)),
        "MART black box: margin, κ 50, 20 steps of ε/10 on a surrogate, its last point tried here",
    ),
    "transfer-pgd-20": AttackPreset(
        Transfer(), "TRADES, MART black box: PGD-20 of ε/10 on a surrogate, its last point tried here"
    ),
    "pgd20-trades": AttackPreset(
        PGD(20, 0.003, return_last=True), "TRADES, MART, MAIL evaluation: 20 steps of 0.003 (ε 0.031), the last point judged"
    ),
    "pgd100-mail": AttackPreset(
        PGD(100, 0.003, return_last=True), "MAIL evaluation: 100 steps of 0.003 (ε 0.031), the last point judged"
    ),
    "cw20-mail": AttackPreset(
        PGD(20, 0.003, loss="cw", confidence=50.0, return_last=True),
        "MAIL evaluation: margin, κ 50, 20 steps of 0.003 (ε 0.031), the last point judged",
    ),
    "cw30-fat": AttackPreset(
        PGD(30, 0.031 / 4, loss="cw", confidence=50.0, return_last=True),
        "FAT evaluation: margin, κ 50, 30 steps of 0.031/4, the last point judged",
    ),
    "pgd10-madry-cifar": AttackPreset(
        PGD(10, "2/255", return_last=True), "Madry et al. 2018, CIFAR-10: 10 steps of 2/255 (ε 8/255), the last point judged"
    ),
    "pgd40-madry-mnist": AttackPreset(
        PGD(40, 0.01, return_last=True), "Madry et al. 2018, MNIST: 40 steps of 0.01 (ε 0.3), the last point judged"
    ),
    "pgd-plus-rst": AttackPreset(PGD(40, 0.01, restarts=5), "RST, GAIRAT's PGD+: 5 restarts of 40 steps of 0.01 (ε 0.031)"),
}


def find_attack(attack: AttackLike) -> tuple[str, AttackPreset]:
    """Return an attack with the name it is reported by.

    Args:
        attack: the name of a preset, or of some of its runs as in "apgd-t[:3]", which aims at the three most likely wrong
            classes; ``package.module:attribute``, which is imported; an attack of ours or of your own; or a function
            ``f(model, x, y, threat) -> x_adv`` of inputs (b, ...) and labels (b,).

    Raises:
        UserError: if it is none of these; for an unknown name, with the nearest one.
    """
    if isinstance(attack, str):
        if part := _PART.fullmatch(attack):
            name, whole = find_attack(part[1])
            first, last = (int(end) if end else None for end in (part[2], part[3]))
            return f"{name}[{part[2]}:{part[3]}]", replace(whole, runs=(first, last), whole=name)
        if is_import_path(attack):
            return attack, replace(find_attack(import_object(attack, "attack"))[1], source=f"imported from {attack}")
        name = find_name("attack", attack, PRESETS)
        return name, PRESETS[name]
    if isinstance(attack, Attack):
        return str(attack), AttackPreset(attack, "given by the caller")
    if callable(attack):
        check_callable("an attack", attack, "model", "x", "y", "threat")
        made = CallableAttack(attack)
        return str(made), AttackPreset(made, "a function given by the caller")
    raise UserError(f"an attack is a name, an Attack or a function of model, x, y and threat, not {attack!r:.60}")


def find_attacks(attacks: Sequence[AttackLike]) -> dict[str, AttackPreset]:
    """Return attacks by the names they are reported by; what is called like one before it is "NAME #2", and so on.

    Functions that the same function has made are called alike, for example, and so are attacks with losses of your own. The
    same name, or the very same object, given twice is one attack.

    Args:
        attacks: each as :func:`find_attack` takes it.

    Raises:
        UserError: as :func:`find_attack`.
    """
    found: dict[str | int, tuple[str, AttackPreset]] = {}
    for attack in attacks:
        name, preset = find_attack(attack)
        found.setdefault(name if isinstance(attack, str) else id(attack), (name, preset))
    names, presets = numbered(name for name, _ in found.values()), (preset for _, preset in found.values())
    return dict(zip(names, presets, strict=True))


@checked
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int | ExampleRng = 0,
    bpda: StandInLike | None = None,
) -> AttackResult:
    """Run AutoAttack (Croce and Hein 2020), standard version: APGD-CE, then APGD-T, FAB-T and Square, each on what stands.

    With fewer than 4 classes targeted APGD maximises ``z_t - z_y``, because targeted DLR is not defined.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,), integers.
        threat: ball and box.
        seed: of all random draws; an integer, or an ``ExampleRng`` keyed by example.
        bpda: as in :func:`hauberk.attacks.run_attack`.

    Returns:
        AttackResult: ``x_adv`` is the point of the attack that succeeded, otherwise of APGD-CE; so are ``kappa`` and the like.

    Raises:
        UserError: for models and inputs that do not fit together.
    """
    y = check_batch(x, y)
    check_module(model)
    model = with_stand_in(model, bpda)
    rng = batch_rng(seed, x)
    first, *others = SUITES["standard"].for_threat(threat).stages
    found = run_attack(PRESETS[first].adapted(threat, 10)[0], model, x, y, threat, seed=rng)
    assert found.clean_logits is not None  # it stops at a success
    classes = found.clean_logits.shape[1]
    for name in others:
        standing = (~found.success).nonzero().squeeze(1)
        if len(standing) == 0:
            break
        attack, _ = PRESETS[name].adapted(threat, classes)
        more = attack_batch(attack, model, x[standing], y[standing], threat, seed=rng.index_select(standing))
        found = _merge(found, more, standing)
    return found


def _merge(found: AttackResult, more: AttackResult, rows: Tensor) -> AttackResult:
    """Put what ``more`` found for some rows in place of what was found before."""
    broken = more.success
    index = rows[broken]
    fields = ("x_adv", "success", "kappa", "first_success", "steps_taken", "logits", "logits_lps")
    values = {name: getattr(found, name).index_copy(0, index, getattr(more, name)[broken]) for name in fields}
    part = len(rows) / len(found.success)
    passes = {kind: getattr(found, kind) + part * getattr(more, kind) for kind in ("forwards", "backwards")}
    return replace(found, **values, **passes)


_QUICK = ("fgsm", "pgd-20", "cw-30", "pgd-100")
_PAPERS = ("fgsm", "pgd-20-last", "cw-20-last", "pgd-100-last", "apgd-ce")


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs.

    Attributes:
        stages: attacks in order, each with those whose victims it leaves alone.
        columns: what is reported, each the attacks whose victims it counts.
        eot_iter: passes to average over for each look at the model.
        description: one line.
        attacks: what runs, by name.
        sampled: those of the stages that run on a random sample of what stands after the others.
    """

    stages: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    eot_iter: int
    description: str
    attacks: dict[str, AttackPreset] = field(default_factory=dict)
    sampled: tuple[str, ...] = ()

    @property
    def sequential(self) -> bool:
        """Whether each attack runs only on what stands, so that columns count the victims of all so far."""
        names = list(self.stages)
        return len(names) > 1 and all(self.stages[name] == tuple(names[:k]) for k, name in enumerate(names))

    def for_model(self, model: nn.Module, suite: str = "") -> "Suite":
        """The suite for a model that may have no gradients, on which no attack is run that goes by them.

        Args:
            model: with its stand-in (BPDA), if it has one.
            suite: name of the suite; empty for attacks that the caller has named.

        Raises:
            UserError: if the model has none, and attacks were asked for that go by them.
        """
        blind = [name for name, one in self.attacks.items() if one.attack.uses_gradients and not one.attack.sees_original]
        if not blind or has_gradient(model):
            return self
        if suite == "quick":
            return replace(find_suite("", _QUICK_SCORES), description=f"{', '.join(_QUICK_SCORES)}: a cheap upper bound")
        who = f"the suite {suite!r}" if suite else ", ".join(blind)
        raise UserError(
            f"{who} goes by gradients, which this model has not; take suite='scores', attacks=['square'], or give bpda="
        )

    def for_threat(self, threat: ThreatModel) -> "Suite":
        """The suite with FAB-T before APGD-T where attacks run in turn and the ball is no box, as FAB-T breaks more there.

        Only the passes depend on that, and which attack breaks an example first: draws are keyed by attack. Where there are
        one-hot groups, and nothing that does without gradients, it also runs Square: what a jump to another value does is
        nothing that a gradient knows for certain.
        """
        some = self.attacks or {name: PRESETS[name] for name in self.stages}
        if threat.one_hot is not None and self.eot_iter == 1 and all(one.attack.uses_gradients for one in some.values()):
            stages, columns = ({**have, _JUMPS: own} for have, own in ((self.stages, ()), (self.columns, (_JUMPS,))))
            return replace(self, stages=stages, columns=columns, attacks={**some, _JUMPS: PRESETS[_JUMPS]})
        if threat.norm.is_box or not self.sequential:
            return self
        if self.sampled:
            other = _two_phases(_FIRST_RUNS | _FIRST_RUNS_BESIDES)
            return replace(other, attacks={name: find_attack(name)[1] for name in other.stages})
        if not {"apgd-t", "fab-t"} <= self.stages.keys():
            return self
        names = ["apgd-t" if name == "fab-t" else "fab-t" if name == "apgd-t" else name for name in self.stages]
        other = _suite(names, self.description, sequential=True, eot_iter=self.eot_iter)
        return replace(other, attacks={name: self.attacks[name] for name in names if name in self.attacks})


def _suite(names: Sequence[str], description: str, *, sequential: bool, eot_iter: int = 1) -> Suite:
    """Every attack on all examples that are classified right; sequential, on those that still stand after the earlier ones."""
    stages = {name: tuple(names[:k]) if sequential else () for k, name in enumerate(names)}
    return Suite(stages, {name: (*earlier, name) for name, earlier in stages.items()}, eot_iter, description)


def _two_phases(first_runs: Mapping[str, int]) -> Suite:
    """AutoAttack, whose first runs all examples get, and whose others a sample of those that stand."""
    first = tuple(f"{name}[:{runs}]" for name, runs in first_runs.items())
    rest = tuple(f"{name}[{first_runs[name]}:]" if name in first_runs else name for name in AUTOATTACK)
    text = "AutoAttack's accuracy, estimated: its first runs on all examples, the others on a random sample of those that stand"
    suite = _suite((*first, *rest), text, sequential=True)
    return replace(suite, columns={name: suite.columns[name] for name in first} | {"autoattack": first + rest}, sampled=rest)


SUITES: dict[str, Suite] = {
    "quick": _suite(_QUICK, "FGSM, PGD-20, CW-30, PGD-100: a cheap upper bound", sequential=False),
    "papers": Suite(
        {**dict.fromkeys(_PAPERS, ()), **{name: AUTOATTACK[:k] for k, name in enumerate(AUTOATTACK) if k}},
        {**{name: (name,) for name in _PAPERS}, "autoattack": AUTOATTACK},
        1,
        "the columns of the MAIL and MART tables, as their codes judge: FGSM, the last points of PGD-20, CW-20 and "
        "PGD-100 (ε/10), APGD-CE, AutoAttack",
    ),
    "standard": _suite(AUTOATTACK, "AutoAttack (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T, Square", sequential=True),
    "fast": _two_phases(_FIRST_RUNS),
    "plus": _suite(
        ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
        "AutoAttack plus: APGD-CE and -DLR and FAB with 5 restarts, Square, APGD-T, FAB-T",
        sequential=True,
    ),
    "scores": _suite(
        ("random-1000", "square"),
        "for models without gradients: 1,000 random points, Square with AutoAttack's 5,000 queries",
        sequential=False,
    ),
    "rand": _suite(
        ("apgd-ce", "apgd-dlr"),
        "AutoAttack for randomised defences: APGD-CE and -DLR, means over 20 passes",
        sequential=True,
        eot_iter=20,
    ),
}


@checked
def find_suite(suite: str, attacks: Sequence[AttackLike] = (), sequential: bool = False, also: Sequence[str] = ()) -> Suite:
    """Return what to run.

    Args:
        suite: name of a suite, used where ``attacks`` is empty.
        attacks: attacks instead, by name, as objects or as functions that return inputs (B, ...); they run in order of cost.
        sequential: each of them only on the examples that still stand.
        also: attacks besides, on every example that is classified right.

    Raises:
        UserError: for unknown names.
    """
    if attacks:
        found = find_attacks(attacks)
        names = sorted(found, key=lambda name: found[name].attack.cost())
        chosen = _suite(names, ", ".join(names), sequential=sequential)
    elif suite in SUITES:
        chosen, found = SUITES[suite], {}
    else:
        raise unknown_name("suite", suite, SUITES)
    more = {name: () for name in also if name not in chosen.stages}
    stages = {**chosen.stages, **more}
    columns = {**chosen.columns, **{name: (name,) for name in more}}
    presets = {name: found.get(name) or find_attack(name)[1] for name in stages}
    return replace(chosen, stages=stages, columns=columns, attacks=presets)
