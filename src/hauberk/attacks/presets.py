"""Attacks by name, as the literature runs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import nn

from hauberk.attacks.apgd import APGD
from hauberk.attacks.apgd_l1 import APGDL1
from hauberk.attacks.climb import Climb
from hauberk.attacks.fab import Fab
from hauberk.attacks.random_search import RandomSearch
from hauberk.attacks.rows import Program
from hauberk.attacks.square import Square
from hauberk.attacks.steps import Ascent
from hauberk.attacks.training import LINE_SEARCH, NESTEROV
from hauberk.attacks.transfer import Transfer
from hauberk.core.errors import UserError, unknown_name
from hauberk.threat import ThreatModel

Settings: TypeAlias = Ascent | Transfer | Program[Any]

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")  # its standard version, in order

_L1_RESTARTS = {"restarts": 5}  # of AutoAttack's APGD on cross-entropy and DLR in L1, in place of 1
_L1_TARGETS = {"targets": 5}  # of its targeted APGD in L1, in place of 9
_SUBSTITUTES = {"dlr": (3, "cw"), "dlr-targeted": (4, "cw-targeted")}  # where there are fewer classes
_EVADING = {"ce": "evade", "cw": "evade", "dlr": "evade"}
_EVADING |= {f"{name}-targeted": "evade-targeted" for name in ("ce", "cw", "dlr")}


@dataclass(frozen=True)
class Preset:
    """A named attack.

    Attributes:
        settings: what runs: the settings of an attack of ours, or a program of your own.
        source: where these settings come from.
        targets: for an ascent with a target, how many wrong classes it aims at in turn.
        in_l1: settings of APGD that are others in L1, where its steps are sparse.
    """

    settings: Settings
    source: str
    targets: int = 9
    in_l1: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> str:
        """Name of the loss, or "" where there is none."""
        return str(getattr(self.settings, "loss", ""))

    @property
    def cost(self) -> int:
        """ModelQueries of an example that stands, a backward counted as one, against 10 classes."""
        settings = self.settings
        if isinstance(settings, Ascent):
            return settings.steps * settings.restarts * (self.targets if self.loss.endswith("targeted") else 1) * 2
        if isinstance(settings, Transfer):
            return 1 + 2 * settings.settings.steps
        program: Program[Any] = settings
        weight = {APGD: 2, Fab: 3 if isinstance(settings, Fab) and settings.targeted else 12}.get(type(settings), 1)
        return program.turns(10) * program.length * weight

    def program(
        self, threat: ThreatModel, classes: int, evading: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Program[Any], str]:
        """Make the attack ready.

        Args:
            threat: ball and box.
            classes: number of the model's outputs.
            evading: the last of them is a class of adversarial inputs.
            surrogate: the model that transfer attacks are crafted on.

        Returns:
            What runs on rows, and what was put in place of a loss that is not defined for so few classes ("" for nothing).

        Raises:
            UserError: for a transfer attack without a surrogate, and for a program that does not know of a class of
                adversarial inputs against a model that has one.
        """
        settings: Settings = self.settings
        if isinstance(settings, Transfer):
            if surrogate is None:
                raise UserError("a transfer attack is crafted on another model; give surrogate=")
            return replace(settings, surrogate=surrogate, threat=threat, evading=evading), ""
        if isinstance(settings, Fab | Square | RandomSearch):
            return replace(settings, evading=evading), ""
        if isinstance(settings, Ascent | APGD | APGDL1):
            return self._maximising(settings, threat, classes, evading)
        if evading and not settings.evading:
            raise UserError(
                f"{type(settings).__name__} does not know of a class of adversarial inputs; leave out has_reject_class"
            )
        return settings, ""

    def _maximising(
        self, settings: Ascent | APGD | APGDL1, threat: ThreatModel, classes: int, evading: bool
    ) -> tuple[Program[Any], str]:
        """Make an attack that maximises a loss ready, with a loss that is defined, and APGD in its form for the norm."""
        note = ""
        needed, instead = _SUBSTITUTES.get(settings.loss, (0, ""))
        if evading:
            settings = replace(settings, loss=_EVADING.get(settings.loss, settings.loss))  # type: ignore[arg-type]
        elif classes < needed:
            note = f"the loss {instead!r} in place of {settings.loss!r}, which needs {needed} classes"
            settings = replace(settings, loss=instead)  # type: ignore[arg-type]
        if isinstance(settings, Ascent):
            return Climb(settings, threat, self.targets), note
        if type(settings) is APGD and threat.norm == "L1":
            sparse = APGDL1(settings.steps, settings.loss, settings.targets, settings.restarts)
            return replace(sparse, **self.in_l1), note
        return settings, note


# Step sizes that the sources give in absolute units belong to their ε (0.031 or 8/255, or 0.3 on MNIST).
PRESETS: dict[str, Preset] = {
    "fgsm": Preset(Ascent(1, "eps", "clean"), "Goodfellow et al. 2015: one step of ε from x"),
    "pgd-10": Preset(Ascent(10, "eps/4"), "Madry et al. 2018, CIFAR-10 training: 10 steps of ε/4"),
    "pgd-20": Preset(Ascent(20, "eps/4"), "FAT, GAIRAT evaluation: 20 steps of ε/4"),
    "pgd-40": Preset(Ascent(40, "eps/30"), "Madry et al. 2018, MNIST: 40 steps of 0.01 at ε 0.3"),
    "pgd-100": Preset(Ascent(100, "eps/10"), "100 steps of ε/10 (MAIL: 0.003 at ε 0.031)"),
    "pgd-20-targeted": Preset(
        Ascent(20, "eps/4", loss="ce-targeted"), "20 steps of ε/4 towards each of the 9 most likely wrong classes"
    ),
    "cw-20": Preset(Ascent(20, "eps/10", loss="cw", confidence=50.0), "MAIL evaluation: margin, κ 50, 20 steps of ε/10"),
    "cw-30": Preset(Ascent(30, "eps/4", loss="cw", confidence=50.0), "FAT, GAIRAT: margin loss, κ 50, 30 steps of ε/4"),
    "cw-100": Preset(Ascent(100, "eps/10", loss="cw"), "margin loss, κ 0, 100 steps of ε/10"),
    "lm-pgd": Preset(
        Ascent(50, "eps/4", nesterov=NESTEROV, line_search=LINE_SEARCH),
        "PGD with line search and Nesterov's momentum; our construction, MAIL's Appendix A is not public",
    ),
    "apgd-ce": Preset(
        APGD(), "AutoAttack's first attack: APGD on cross-entropy, 100 steps (L1: 5 restarts)", in_l1=_L1_RESTARTS
    ),
    "apgd-t": Preset(
        APGD(loss="dlr-targeted"),
        "AutoAttack's second attack: APGD on targeted DLR, 9 classes (L1: 5) of 100 steps",
        in_l1=_L1_TARGETS,
    ),
    "fab-t": Preset(Fab(), "AutoAttack's third attack: FAB-T, 9 classes of 100 steps"),
    "square": Preset(Square(), "AutoAttack's fourth attack: Square, 5,000 queries"),
    "apgd-dlr": Preset(
        APGD(loss="dlr"), "APGD on the difference of logits ratio, 100 steps (L1: 5 restarts)", in_l1=_L1_RESTARTS
    ),
    "apgd-ce-5": Preset(APGD(restarts=5), "AutoAttack plus: APGD on cross-entropy, 5 restarts"),
    "apgd-dlr-5": Preset(APGD(loss="dlr", restarts=5), "AutoAttack plus: APGD on DLR, 5 restarts"),
    "fab-5": Preset(Fab(targeted=False, restarts=5), "AutoAttack plus: untargeted FAB, 5 restarts"),
    "random-100": Preset(RandomSearch(100), "100 random points: a check that gradients find more"),
    "random-10000": Preset(RandomSearch(10_000), "10,000 random points, as Carlini et al. 2019 advise"),
    "transfer-fgsm": Preset(Transfer(Ascent(1, "eps", "clean")), "MART black box: FGSM on a surrogate, tried here"),
    "transfer-cw-20": Preset(
        Transfer(Ascent(20, "eps/10", loss="cw", confidence=50.0)),
        "MART black box: margin, κ 50, 20 steps of ε/10 on a surrogate, its last point tried here",
    ),
    "transfer-pgd-20": Preset(
        Transfer(Ascent(20, "eps/10")), "TRADES, MART black box: PGD-20 of ε/10 on a surrogate, its last point tried here"
    ),
    "pgd20-trades": Preset(Ascent(20, 0.003), "TRADES, MART, MAIL evaluation: 20 steps of 0.003 (ε 0.031)"),
    "pgd100-mail": Preset(Ascent(100, 0.003), "MAIL evaluation: 100 steps of 0.003 (ε 0.031)"),
    "cw20-mail": Preset(Ascent(20, 0.003, loss="cw", confidence=50.0), "MAIL evaluation: margin, κ 50, 20 steps of 0.003"),
    "cw30-fat": Preset(Ascent(30, 0.031 / 4, loss="cw", confidence=50.0), "FAT evaluation: margin, κ 50, 30 steps of 0.031/4"),
    "pgd10-madry-cifar": Preset(Ascent(10, "2/255"), "Madry et al. 2018, CIFAR-10: 10 steps of 2/255 (ε 8/255)"),
    "pgd40-madry-mnist": Preset(Ascent(40, 0.01), "Madry et al. 2018, MNIST: 40 steps of 0.01 (ε 0.3)"),
    "pgd-plus-rst": Preset(Ascent(40, 0.01, restarts=5), "RST, GAIRAT's PGD+: 5 restarts of 40 steps of 0.01 (ε 0.031)"),
}


def get_preset(name: str) -> Preset:
    """Return the attack of that name.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    if name not in PRESETS:
        raise unknown_name("attack", name, PRESETS)
    return PRESETS[name]
