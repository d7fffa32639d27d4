"""Attacks by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from hauberk.attacks.apgd import APGD
from hauberk.attacks.base import GOAL, Attack
from hauberk.attacks.minimum_norm import CWL2, DDN, FAB, FMN, DeepFool, SigmaZero
from hauberk.attacks.pgd import LINE_SEARCH, NESTEROV, PGD
from hauberk.attacks.score_based.random_search import RandomSearch
from hauberk.attacks.score_based.square import Square
from hauberk.attacks.transfer import CallableAttack, Transfer
from hauberk.core.arguments import check_callable
from hauberk.core.errors import UserError, find_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.names import numbered
from hauberk.objectives.functional import AttackLoss
from hauberk.threat import ThreatModel

AttackLike: TypeAlias = str | Attack[Any] | Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")  # its standard version, in order
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
