"""MMA: push the nearest adversarial example away, and train on what is wrong already."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.objectives.functional import at_least_float32
from hauberk.objectives.terms import LossTerms, PresetName, is_official

CLEAN_SHARE = 1 / 3  # of the public code's gradient


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

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: at the nearest adversarial examples x*, (B, C).
        y: labels, (B,) int64.
        beta: not used; every objective is called alike.
        within: (B,) bool, whether x* was found within d_max; by default whether ``logits_adv`` is misclassified.
        clean_share: c.
        preset: no field differs.
    """
    is_official(preset)
    clean, adv = (F.cross_entropy(at_least_float32(z), y, reduction="none") for z in (logits, logits_adv))
    right = logits.argmax(1) == y
    if within is None:
        within = logits_adv.argmax(1) != y
    pushed = torch.where(right, torch.where(within, adv, torch.zeros_like(adv)), clean)
    return LossTerms((1 - clean_share) * pushed, clean_share * clean)
