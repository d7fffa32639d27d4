"""MAIL: weights from probabilistic margins (Wang et al. 2021)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hauberk.core.arguments import check_callable, checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import BurnIn, MeasuredWeighting, PresetName, StepContext, is_official, mean_one
from hauberk.threat.batch import checked_batch

Margin: TypeAlias = Literal["pm-adv", "pm-nat", "pm-dif"]
MARGINS: tuple[Margin, ...] = get_args(Margin)


@checked_batch
@torch.no_grad()
def probabilistic_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``PM = p_y - max_{k≠y} p_k`` (MAIL paper, Eq. 4): negative where the example is misclassified.

    On adversarial inputs it is PM^adv (Eq. 5), on clean inputs PM^nat (Eq. 6).

    Args:
        logits: (B, C), C ≥ 2.
        y: labels, (B,), integers.

    Returns:
        (B,) in [-1, 1], float32 or wider, detached.
    """
    p = _probabilities(logits)
    others = p.scatter(1, y[:, None], -1.0)
    return _of_label(p, y) - others.amax(1)


@checked_batch
@torch.no_grad()
def margin_difference(logits: Tensor, logits_lps: Tensor, y: Tensor) -> Tensor:
    """``PM^dif = p_y(x) - p_y(x^{(t)})`` with t the least number of PGD steps that fool the model (MAIL paper, Eq. 7).

    Args:
        logits: of the clean inputs, (B, C).
        logits_lps: at each example's iterate t, or the last one seen where none fools the model, (B, C).
        y: labels, (B,), integers.

    Returns:
        (B,) in [-1, 1], detached. The paper calls [0, 1] its range, which holds where the attack lowers p_y.
    """
    return _of_label(_probabilities(logits), y) - _of_label(_probabilities(logits_lps), y)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _of_label(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(1, y[:, None]).squeeze(1)


@checked
@torch.no_grad()
def mail(margin: Tensor, slope: float = 10.0, bias: float = -0.5, preset: PresetName = "paper") -> Tensor:
    """MAIL's weights: ``ω ∝ sigmoid(-slope · (PM - bias))`` (MAIL paper, Eq. 8).

    Args:
        margin: probabilistic margins, (B,).
        slope: γ ≥ 0; 10 for MAIL-AT, 2 for MAIL-TRADES and MAIL-MART.
        bias: β; -0.5 for MAIL-AT, 0 for the others.
        preset: ``"paper"``: mean 1 over the batch. ``"official"``: 3 times the sigmoid, as the public code has it.

    Returns:
        (B,), detached.

    Raises:
        UserError: for another preset.
    """
    if margin.ndim != 1 or slope < 0:
        raise UserError(f"margin must be of shape (B,), and slope not negative, got {shown(margin)} and {slope}")
    raw = torch.sigmoid(-slope * (margin - bias))
    return 3.0 * raw if is_official(preset) else mean_one(raw)


@dataclass(frozen=True)
class Mail(MeasuredWeighting):
    """MAIL's weighting of a batch, with ``slope``, ``bias`` and ``preset`` as in :func:`hauberk.weighting.mail`.

    Attributes:
        measure: which margin: "pm-adv" at the adversarial input (Eq. 5), "pm-nat" at the clean one (Eq. 6), "pm-dif" the
            difference on the way of the attack (Eq. 7); or a function of the step's context that returns a number for each
            example, (b,), small where the weight shall be large. Its ``needs`` say which logits it looks at, if it has them.
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    slope: float = 10.0
    bias: float = -0.5
    measure: Margin | Callable[[StepContext], Tensor] = "pm-adv"
    burn_in: BurnIn = "first-drop"
    preset: PresetName = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slope < 0:
            raise UserError(f"slope must not be negative, got {self.slope}")
        if not isinstance(self.measure, str):
            check_callable("measure", self.measure, "context")

    @property
    def needs(self) -> frozenset[str]:
        """Which logits a measure of the caller's own needs."""
        return frozenset(getattr(self.measure, "needs", ()))

    def needs_clean_logits(self, needs: frozenset[str]) -> bool:
        """Whether the attack should look at the clean inputs, given which logits the loss computes.

        PM^dif compares two passes in the same mode; PM^nat uses the loss's own clean pass where there is one.
        """
        return self.measure == "pm-dif" or (self.measure == "pm-nat" and "clean" not in needs)

    def measured(self, context: StepContext) -> Tensor:
        """Probabilistic margins, or what the caller's own function returns, (b,)."""
        if not isinstance(self.measure, str):
            own = self.measure(context)
            if not isinstance(own, Tensor) or own.shape != context.y.shape:
                raise UserError(f"the measure must return a number for each example, ({len(context.y)},), not {shown(own)}")
            return own.detach().to(torch.promote_types(context.x.dtype, torch.float32))
        seen = getattr(context.attack, "clean_logits", None)
        if self.measure == "pm-dif" and seen is not None:
            return unchecked(margin_difference)(seen, context.attack.logits_lps, context.y)
        looked_at = {"pm-adv": context.logits_adv, "pm-nat": seen if context.logits is None else context.logits}
        logits = looked_at.get(self.measure)
        if logits is None:
            raise UserError(f"measure {self.measure!r} needs logits that this method does not compute")
        return unchecked(probabilistic_margin)(logits, context.y)

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Sigmoid of the margins, (B,)."""
        return unchecked(mail)(measure, self.slope, self.bias, self.preset)
