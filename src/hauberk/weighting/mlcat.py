"""MLCAT-LS: small adversarial losses scaled up to a threshold (Yu et al. 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, BurnIn, MeasuredWeighting, PresetName, StepContext, is_official


@checked
@torch.no_grad()
def mlcat(loss: Tensor, threshold: float = 1.5, preset: PresetName = "paper") -> Tensor:
    """MLCAT-LS's weights (Yu et al. 2022) of adversarial losses.

    "paper": ``ω = max(1, ℓ₀/ℓ)``, so that a loss below the threshold ℓ₀ counts as much as one at it. "official": 1 where
    ℓ ≥ ℓ₀ and 0 elsewhere, because the public code does not detach ℓ₀/ℓ, so that its product with ℓ is a constant without a
    gradient: it takes small losses out of the training, as DOM does, and does not scale them up.

    Args:
        loss: cross-entropy at the adversarial inputs, (B,), not negative.
        threshold: ℓ₀ > 0.
        preset: ``"paper"`` or ``"official"``.

    Returns:
        (B,), detached. They are not scaled to mean 1. A loss that is 0 has weight 1, as it has no gradient to scale.

    Raises:
        UserError: for another shape or preset, and a threshold that is not positive.
    """
    if loss.ndim != 1 or threshold <= 0:
        raise UserError(f"loss must be of shape (B,), and threshold positive, got {shown(loss)} and {threshold}")
    if is_official(preset):
        return (loss >= threshold).to(loss.dtype)
    return torch.where(loss > 0, (threshold / loss).clamp_min(1.0), 1.0).nan_to_num(posinf=1.0)


@dataclass(frozen=True)
class Mlcat(MeasuredWeighting):
    """MLCAT-LS's weighting, with ``threshold`` and ``preset`` as in :func:`hauberk.weighting.mlcat`.

    The loss is cross-entropy at the adversarial input, whatever the objective, since the threshold is one of cross-entropy.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    threshold: float = 1.5
    burn_in: BurnIn = 0
    preset: PresetName = "paper"
    needs = ADVERSARIAL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold <= 0:
            raise UserError(f"threshold must be positive, got {self.threshold}")

    def measured(self, context: StepContext) -> Tensor:
        """Cross-entropy at the adversarial inputs, (b,)."""
        if context.logits_adv is None:
            raise UserError("MLCAT weighs by logits of adversarial inputs, which this method does not compute")
        return F.cross_entropy(context.logits_adv, context.y, reduction="none")

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Scales of small losses, (B,)."""
        return unchecked(mlcat)(measure, self.threshold, self.preset)
