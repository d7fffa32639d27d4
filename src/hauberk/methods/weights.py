"""Which measure weighs the examples, through which function, and from when on."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from hauberk.attacks.result import AttackResult
from hauberk.core.errors import UserError
from hauberk.objectives import PresetName
from hauberk.weighting import gairat, mail, margin_difference, probabilistic_margin

Measure: TypeAlias = Literal["none", "pm-adv", "pm-nat", "pm-dif", "kappa", "lps"]
Assign: TypeAlias = Literal["sigmoid-of-margin", "tanh", "sigmoid", "discrete"]

MARGINS = ("pm-adv", "pm-nat", "pm-dif")
COUNTS = ("kappa", "lps")
OF_COUNTS = ("tanh", "sigmoid", "discrete")


@dataclass(frozen=True)
class Weighting:
    """How examples are weighted.

    Attributes:
        measure: "none" (all 1); a probabilistic margin (MAIL) "pm-adv", "pm-nat", "pm-dif"; or a step count (GAIRAT) "kappa"
            (iterates classified right), "lps" (least PGD steps that fool the model, K where none does).
        assign: "sigmoid-of-margin" for margins (MAIL, Eq. 8); "tanh", "sigmoid" or "discrete" for counts (GAIRAT).
        slope: γ of MAIL.
        bias: β of MAIL.
        lam: λ of GAIRAT.
        lam_end: λ at the end of the training, reached linearly from the end of the burn-in; None to keep it.
        burn_in: number of epochs with weights 1, so the 0-based first reweighted epoch; or "first-drop": until the
            learning rate first drops.
    """

    measure: Measure = "none"
    assign: Assign = "sigmoid-of-margin"
    slope: float = 10.0
    bias: float = -0.5
    lam: float = -1.0
    lam_end: float | None = None
    burn_in: int | Literal["first-drop"] = "first-drop"

    def __post_init__(self) -> None:
        if self.measure not in ("none", *MARGINS, *COUNTS):
            raise UserError(f"measure is one of none, {', '.join((*MARGINS, *COUNTS))}, not {self.measure!r}")
        if self.assign not in ("sigmoid-of-margin", *OF_COUNTS):
            raise UserError(f"assign is one of sigmoid-of-margin, {', '.join(OF_COUNTS)}, not {self.assign!r}")
        if self.measure in COUNTS and self.assign not in OF_COUNTS:
            raise UserError(f"a count such as {self.measure!r} needs assign 'tanh', 'sigmoid' or 'discrete'")
        if self.measure in MARGINS and self.assign in OF_COUNTS:
            raise UserError(f"a margin such as {self.measure!r} needs assign 'sigmoid-of-margin'")
        if self.slope < 0:
            raise UserError(f"slope must not be negative, got {self.slope}")
        if self.burn_in != "first-drop" and not (isinstance(self.burn_in, int) and self.burn_in >= 0):
            raise UserError(f"burn_in is a number of epochs or 'first-drop', not {self.burn_in!r}")

    def lam_at(self, epoch: int, begin: int, epochs: int) -> float:
        """Return λ of an epoch: of the burn-in's end, of the training's, or in between."""
        if self.lam_end is None or epochs <= begin + 1:
            return self.lam
        done = min(max((epoch - begin) / (epochs - 1 - begin), 0.0), 1.0)
        return self.lam + done * (self.lam_end - self.lam)

    def measured(self, seen: AttackResult | None, logits: Tensor | None, logits_adv: Tensor | None, y: Tensor) -> Tensor:
        """Measure a batch from what its passes showed.

        Args:
            seen: what the attack saw; its logits are those of the attack's mode (evaluation mode unless asked otherwise).
            logits: of the clean inputs in the loss, or None.
            logits_adv: of the adversarial inputs in the loss, or None.
            y: labels, (B,).

        Returns:
            (B,), margins or counts.
        """
        if self.measure == "pm-adv" and logits_adv is not None:
            return probabilistic_margin(logits_adv, y)
        clean = logits if logits is not None else seen.clean_logits if seen else None
        if self.measure == "pm-nat" and clean is not None:
            return probabilistic_margin(clean, y)
        if seen is None:
            raise UserError(f"measure {self.measure!r} needs a method that attacks")
        if self.measure == "pm-dif" and seen.clean_logits is not None:
            return margin_difference(seen.clean_logits, seen.logits_lps, y)
        if self.measure == "kappa":
            return seen.kappa.float()
        if self.measure == "lps":
            return seen.lps.float()
        raise UserError(f"measure {self.measure!r} needs logits that this objective does not compute")

    def assigned(self, measure: Tensor, steps: int, lam: float, preset: PresetName) -> Tensor:
        """Turn measures (B,) into weights (B,)."""
        if self.assign == "sigmoid-of-margin":
            return mail(measure, self.slope, self.bias, preset)
        return gairat(measure, steps, lam, self.assign)
