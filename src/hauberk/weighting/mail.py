"""MAIL: weights from probabilistic margins (Wang et al. 2021)."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.weighting.base import MeasuredWeighting, mean_one
from hauberk.weighting.margins import margin_difference, probabilistic_margin

Margin: TypeAlias = Literal["pm-adv", "pm-nat", "pm-dif"]
MARGINS: tuple[Margin, ...] = ("pm-adv", "pm-nat", "pm-dif")

OFFICIAL_SCALE = 3.0  # of MAIL's public code, in place of the paper's normalisation


@torch.no_grad()
def mail(margin: Tensor, slope: float = 10.0, bias: float = -0.5, preset: Literal["paper", "official"] = "paper") -> Tensor:
    """MAIL's weights: ``ω ∝ sigmoid(-slope · (PM - bias))`` (MAIL paper, Eq. 8).

    Args:
        margin: probabilistic margins, (B,).
        slope: γ ≥ 0; 10 for MAIL-AT, 2 for MAIL-TRADES and MAIL-MART.
        bias: β; -0.5 for MAIL-AT, 0 for the others.
        preset: ``"paper"``: mean 1 over the batch. ``"official"``: 3 times the sigmoid, as the public code has it.

    Returns:
        (B,), detached.
    """
    raw = torch.sigmoid(-slope * (margin - bias))
    return OFFICIAL_SCALE * raw if preset == "official" else mean_one(raw)


@dataclass(frozen=True)
class Mail(MeasuredWeighting):
    """MAIL's weighting of a batch, see :func:`hauberk.weighting.mail`.

    Attributes:
        slope: γ of MAIL.
        bias: β of MAIL.
        measure: which margin: "pm-adv" at the adversarial input (Eq. 5), "pm-nat" at the clean one (Eq. 6), "pm-dif" the
            difference on the way of the attack (Eq. 7).
        burn_in: number of epochs with weights 1, or "first-drop": until the learning rate first drops.
        preset: "paper" or "official".
    """

    slope: float = 10.0
    bias: float = -0.5
    measure: Margin = "pm-adv"
    burn_in: int | Literal["first-drop"] = "first-drop"
    preset: Literal["paper", "official"] = "paper"

    def __post_init__(self) -> None:
        if self.measure not in MARGINS:
            raise UserError(f"measure is one of {', '.join(MARGINS)}, not {self.measure!r}")
        if self.slope < 0:
            raise UserError(f"slope must not be negative, got {self.slope}")
        self.check_burn_in()

    def in_attack(self, needs: frozenset[str]) -> bool:
        """PM^dif compares two passes in the same mode; PM^nat uses the loss's own clean pass where there is one."""
        return self.measure == "pm-dif" or (self.measure == "pm-nat" and "clean" not in needs)

    def measured(self, context: StepContext) -> Tensor:
        """Probabilistic margins, (b,)."""
        seen = context.attack
        if self.measure == "pm-adv" and context.logits_adv is not None:
            return probabilistic_margin(context.logits_adv, context.y)
        if self.measure == "pm-nat":
            clean = context.logits if context.logits is not None else getattr(seen, "clean_logits", None)
            if clean is not None:
                return probabilistic_margin(clean, context.y)
        if self.measure == "pm-dif" and getattr(seen, "clean_logits", None) is not None:
            return margin_difference(seen.clean_logits, seen.logits_lps, context.y)
        raise UserError(f"measure {self.measure!r} needs logits that this method does not compute")

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Sigmoid of the margins, (B,)."""
        return mail(measure, self.slope, self.bias, self.preset)
