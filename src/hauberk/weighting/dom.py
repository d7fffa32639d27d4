"""DOM-RE: examples that are learned by heart are taken out of the training (Lin et al. 2024)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import CLEAN, BurnIn, MeasuredWeighting, StepContext


@checked
@torch.no_grad()
def dom(loss: Tensor, threshold: float = 1.5) -> Tensor:
    """DOM-RE's weights (Lin et al. 2024): 1 where the loss of the clean input is at least the threshold, otherwise 0.

    Args:
        loss: cross-entropy at the clean inputs, (B,).
        threshold: T; the authors have 1.5 for PGD, 2 for a single step, 0.2 for standard training.

    Returns:
        (B,), detached. They are not scaled to mean 1: the mean over the batch is over those that are left out, too, as in the
        public code.

    Raises:
        UserError: for another shape, and a negative threshold.
    """
    if loss.ndim != 1 or threshold < 0:
        raise UserError(f"loss must be of shape (B,), and threshold not negative, got {shown(loss)} and {threshold}")
    return (loss >= threshold).to(loss.dtype)


@dataclass(frozen=True)
class Dom(MeasuredWeighting):
    """DOM-RE's weighting, with ``threshold`` as in :func:`hauberk.weighting.dom`.

    The loss is cross-entropy at the clean input in training mode, which costs a method without a pass there one more. DOM-DA,
    which augments such examples again until their loss is large, changes x before the attack: it is no weighting, but a setting
    of the training (``augment_again`` of ``hb.train``). In TRADES and the like the weight is on ℓ, not on r.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training (0.5 in the paper), or "first-drop": until the
            learning rate first drops.
    """

    threshold: float = 1.5
    burn_in: BurnIn = 0.5
    needs = CLEAN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 0:
            raise UserError(f"threshold must not be negative, got {self.threshold}")

    def measured(self, context: StepContext) -> Tensor:
        """Cross-entropy at the clean inputs, (b,)."""
        if context.logits is None:
            raise UserError("DOM weighs by logits of clean inputs, which this method does not compute")
        return F.cross_entropy(context.logits, context.y, reduction="none")

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Which examples stay, (B,)."""
        return unchecked(dom)(measure, self.threshold)
