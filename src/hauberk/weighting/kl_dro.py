"""KL-DRO: weights of the worst distribution of examples near the one in the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import BurnIn, MeasuredWeighting, StepContext


@checked
@torch.no_grad()
def kl_dro(loss: Tensor, temperature: float = 1.0) -> Tensor:
    """Weights of distributionally robust optimisation with a KL penalty: ``ω ∝ exp(ℓ/τ)``, scaled to mean 1.

    They are where ``max_q Σ_i q_i ℓ_i - τ·KL(q‖1/B)`` over distributions q of the batch takes its maximum, ``ω = B·q``; its
    value is ``τ·log mean exp(ℓ/τ)``, whose gradient these weights give. Doubly robust instance-reweighted adversarial training
    has them (Sow et al. 2023), with a moving average of the normaliser that is not here.

    Args:
        loss: ℓ, (B,).
        temperature: τ > 0; large for equal weights, small for the largest loss alone.

    Returns:
        (B,), detached, mean 1.

    Raises:
        UserError: for another shape, and a τ that is not positive.
    """
    if loss.ndim != 1 or temperature <= 0:
        raise UserError(f"loss must be of shape (B,), and temperature positive, got {shown(loss)} and {temperature}")
    return (loss / temperature).softmax(0) * len(loss)


@dataclass(frozen=True)
class KLDRO(MeasuredWeighting):
    """KL-DRO's weighting by ℓ of the objective, whatever it is, with ``temperature`` as in :func:`hauberk.weighting.kl_dro`.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    temperature: float = 1.0
    burn_in: BurnIn = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"temperature must be positive, got {self.temperature}")

    def measured(self, context: StepContext) -> Tensor:
        """ℓ of the objective, (b,)."""
        if context.robust is None:
            raise UserError("KL-DRO weighs by the loss, so it is called after the objective")
        return context.robust

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Exponential of the losses, (B,)."""
        return unchecked(kl_dro)(measure, self.temperature)
