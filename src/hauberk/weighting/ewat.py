"""EWAT: weights from the entropy of the prediction (Kim et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, BurnIn, MeasuredWeighting, StepContext
from hauberk.threat.batch import checked_batch


@checked_batch
@torch.no_grad()
def ewat(logits_adv: Tensor) -> Tensor:
    """EWAT's weights (Kim et al. 2021): ``ω = 1 + H(p(x'))``, larger where the prediction is less certain.

    H is the entropy in nats, ``-Σ_k p_k log p_k``.

    Args:
        logits_adv: of the adversarial inputs, (B, C).

    Returns:
        (B,) in [1, 1 + log C], detached. They are not scaled to mean 1.
    """
    return 1 + _entropy(logits_adv)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return -(log_p.exp() * log_p).sum(1)


@dataclass(frozen=True)
class Ewat(MeasuredWeighting):
    """EWAT's weighting, see :func:`hauberk.weighting.ewat`; there is no public code.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    burn_in: BurnIn = 0
    needs = ADVERSARIAL

    def measured(self, context: StepContext) -> Tensor:
        """Entropy of the adversarial predictions, (b,)."""
        if context.logits_adv is None:
            raise UserError("EWAT weighs by logits of adversarial inputs, which this method does not compute")
        return _entropy(context.logits_adv)

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """One more than the entropy, (B,)."""
        return 1 + measure
