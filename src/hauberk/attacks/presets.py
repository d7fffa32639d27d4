"""Attacks by name, as the literature runs them."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.auto_pgd import AutoPgd, apgd
from hauberk.attacks.result import AttackResult
from hauberk.attacks.steps import Ascent
from hauberk.errors import unknown_name
from hauberk.noise import Noise
from hauberk.threat import ThreatModel


@dataclass(frozen=True)
class Preset:
    """A named attack.

    Attributes:
        settings: what runs: an ascent of the engine, or APGD.
        source: where these settings come from.
        keep: which point is judged: the best one visited, or the last one.
    """

    settings: Ascent | AutoPgd
    source: str
    keep: Literal["best", "last"] = "best"

    @property
    def cost(self) -> int:
        """Gradients of an example that stands."""
        turns = self.settings.targets if isinstance(self.settings, AutoPgd) and self.settings.loss == "dlr-targeted" else 1
        return self.settings.steps * self.settings.restarts * turns

    def evading(self) -> "Preset":
        """Return the same attack against a model whose last output is a class of adversarial inputs."""
        return replace(self, settings=replace(self.settings, loss="evade"))

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int | Noise) -> AttackResult:
        """Attack a batch; arguments as in :func:`hauberk.attacks.pgd`."""
        if isinstance(self.settings, AutoPgd):
            return apgd(model, x, y, threat, **vars(self.settings), seed=seed)
        return ascend(model, x, y, threat, self.settings, keep=self.keep, seed=seed)


# Step sizes that the sources give in absolute units belong to their ε (0.031 or 8/255, or 0.3 on MNIST).
PRESETS: dict[str, Preset] = {
    "fgsm": Preset(Ascent(1, "eps", "clean"), "Goodfellow et al. 2015: one step of ε from x", keep="last"),
    "pgd-10": Preset(Ascent(10, "eps/4"), "Madry et al. 2018, CIFAR-10 training: 10 steps of ε/4"),
    "pgd-20": Preset(Ascent(20, "eps/4"), "FAT, GAIRAT evaluation: 20 steps of ε/4"),
    "pgd-40": Preset(Ascent(40, "eps/30"), "Madry et al. 2018, MNIST: 40 steps of 0.01 at ε 0.3"),
    "pgd-100": Preset(Ascent(100, "eps/10"), "100 steps of ε/10 (MAIL: 0.003 at ε 0.031)"),
    "cw-30": Preset(Ascent(30, "eps/4", loss="cw", confidence=50.0), "FAT, GAIRAT: margin loss, κ 50, 30 steps of ε/4"),
    "cw-100": Preset(Ascent(100, "eps/10", loss="cw"), "margin loss, κ 0, 100 steps of ε/10"),
    "apgd-ce": Preset(AutoPgd(), "AutoAttack's first attack: APGD on cross-entropy, 100 steps"),
    "apgd-dlr": Preset(
        AutoPgd(loss="dlr"), "APGD on the difference of logits ratio, 100 steps (AutoAttack plus has 5 restarts)"
    ),
    "apgd-t": Preset(AutoPgd(loss="dlr-targeted"), "AutoAttack's second attack: targeted APGD, 9 classes of 100 steps"),
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
