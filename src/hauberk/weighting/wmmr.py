"""WMMR: weights that fall exponentially with the margin (Zeng et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, BurnIn, MeasuredWeighting, StepContext


@checked
@torch.no_grad()
def wmmr(margin: Tensor, slope: float = 1.0) -> Tensor:
    """WMMR's weights (Zeng et al. 2021): ``ω ∝ exp(-α · (z_y - max_{k≠y} z_k))``, scaled to mean 1.

    Args:
        margin: logit margins at the adversarial inputs, (B,): negative where the example is misclassified.
        slope: α ≥ 0.

    Returns:
        (B,), detached, mean 1.

    Raises:
        UserError: for another shape, and a negative slope.
    """
    if margin.ndim != 1 or slope < 0:
        raise UserError(f"margin must be of shape (B,), and slope not negative, got {shown(margin)} and {slope}")
    wide = margin.to(torch.promote_types(margin.dtype, torch.float32))
    return (-slope * wide).softmax(0) * len(margin)


@dataclass(frozen=True)
class Wmmr(MeasuredWeighting):
    """WMMR's weighting, with ``slope`` as in :func:`hauberk.weighting.wmmr`; its public code is not at hand, nor its α.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    slope: float = 1.0
    burn_in: BurnIn = 0
    needs = ADVERSARIAL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slope < 0:
            raise UserError(f"slope must not be negative, got {self.slope}")

    def measured(self, context: StepContext) -> Tensor:
        """Logit margins at the adversarial inputs, (b,)."""
        if context.logits_adv is None:
            raise UserError("WMMR weighs by logits of adversarial inputs, which this method does not compute")
        others = context.logits_adv.scatter(1, context.y[:, None], -torch.inf).amax(1)
        return context.logits_adv.gather(1, context.y[:, None]).squeeze(1) - others

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Exponential of the margins, (B,)."""
        return unchecked(wmmr)(measure, self.slope)
