"""MMA: push the nearest adversarial example away, and train on what is wrong already."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.arguments import shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy
from hauberk.threat.batch import checked_batch

CLEAN_SHARE = 1 / 3  # of the public code's gradient


@checked_batch
def mma(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 0.0,
    within: Tensor | None = None,
    clean_share: float = CLEAN_SHARE,
    preset: PresetName = "paper",
) -> LossTerms:
    """Max-margin adversarial training (Ding et al. 2020).

    ``ℓ = (1 - c)·(CE(f(x*), y) if x is right and x* lies within d_max; CE(f(x), y) if x is wrong; else 0)``,
    ``r = c·CE(f(x), y)``, with x* the nearest adversarial example and c = 1/3 (0 is the paper's OMMA).

    Arguments as in :func:`hauberk.objectives.at`, with ``logits_adv`` at x*; ``clean_share`` is c, and ``within``, (B,) bool,
    says whether x* was found within d_max; by default whether ``logits_adv`` is misclassified.
    """
    clean, adv = (cross_entropy(z, y) for z in (logits, logits_adv))
    right = logits.argmax(1) == y
    if within is None:
        within = logits_adv.argmax(1) != y
    elif within.shape != y.shape or within.dtype != torch.bool:
        raise UserError(f"within must be bool, ({len(y)},), got {shown(within)}")
    pushed = torch.where(right, torch.where(within, adv, torch.zeros_like(adv)), clean)
    return LossTerms((1 - clean_share) * pushed, clean_share * clean)


@dataclass(frozen=True)
class MMA(Objective):
    """Max-margin adversarial training, with ``clean_share`` as in :func:`hauberk.objectives.mma`."""

    clean_share: float = CLEAN_SHARE

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss with this share."""
        return (
            f"ω·(1 - c)·CE(f(x*), y) + c·CE(f(x), y); c = {self.clean_share:.3g}, x* is the nearest adversarial input, or x "
            "where that is wrong already; without one within d_max the first term is 0"
        )

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms; an example counts as found within d_max where the attack says so."""
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        within = None if context.attack is None else context.attack.success
        return unchecked(mma)(context.logits, context.logits_adv, context.y, within=within, clean_share=self.clean_share)
