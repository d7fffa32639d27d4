"""VIR: weights from how vulnerable the clean input is and how far the attack moves its prediction (Fakorede et al. 2023)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, BurnIn, MeasuredWeighting, StepContext
from hauberk.threat.batch import checked_batch


@checked_batch
@torch.no_grad()
def vir(
    logits: Tensor, logits_adv: Tensor, y: Tensor, *, scale: float = 7.0, slope: float = 10.0, bias: float = 0.007
) -> Tensor:
    """VIR's weights (Fakorede et al. 2023): ``ω = α · exp(-γ · p_y(x)) · KL(p(x)‖p(x')) + β``.

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,), integers.
        scale: α ≥ 0; 7 for VIR-AT, 8 for VIR-TRADES.
        slope: γ; 10 for VIR-AT, 3 for VIR-TRADES.
        bias: β ≥ 0; 0.007 for VIR-AT, 1.6 for VIR-TRADES.

    Returns:
        (B,), at least β, detached. They are not scaled to mean 1.

    Raises:
        UserError: if α or β is negative.
    """
    if scale < 0 or bias < 0:
        raise UserError(f"scale and bias must not be negative, got {scale} and {bias}")
    log_p, log_q = (one.log_softmax(1, dtype=torch.promote_types(one.dtype, torch.float32)) for one in (logits, logits_adv))
    # Rounding may bring a divergence of 0 a little below it.
    moved = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).clamp_min(0)
    return scale * (-slope * log_p.gather(1, y[:, None]).squeeze(1).exp()).exp() * moved + bias


@dataclass(frozen=True)
class Vir(MeasuredWeighting):
    """VIR's weighting, with ``scale``, ``slope`` and ``bias`` as in :func:`hauberk.weighting.vir`; there is no public code.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    scale: float = 7.0
    slope: float = 10.0
    bias: float = 0.007
    burn_in: BurnIn = "first-drop"
    needs = CLEAN | ADVERSARIAL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0 or self.bias < 0:
            raise UserError(f"scale and bias must not be negative, got {self.scale} and {self.bias}")

    def measured(self, context: StepContext) -> Tensor:
        """The product of vulnerability and divergence with α 1, (b,)."""
        if context.logits is None or context.logits_adv is None:
            raise UserError("VIR weighs by logits of clean and adversarial inputs, which this method does not compute")
        return unchecked(vir)(context.logits, context.logits_adv, context.y, scale=1.0, slope=self.slope, bias=0.0)

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """α times that, and β more, (B,)."""
        return self.scale * measure + self.bias
