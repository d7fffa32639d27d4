"""An extra class for adversarial inputs: the model learns to recognise them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.objectives.functional import at_least_float32
from hauberk.objectives.terms import LossTerms, PresetName, is_official


def adversarial_class(
    logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 1.0, preset: PresetName = "paper"
) -> LossTerms:
    """Recognise adversarial inputs as a class of their own, the last output K.

    ``ℓ = β·CE(f(x'), K)``, ``r = CE(f(x), y)``. The idea is in the lecture notes among the sources; the loss is ours.

    Args:
        logits: of the clean inputs, (B, K + 1).
        logits_adv: of the adversarial inputs, (B, K + 1).
        y: labels, (B,) int64, 0 to K - 1.
        beta: weight of recognising.
        preset: no field differs.
    """
    is_official(preset)
    last = torch.full_like(y, logits.shape[1] - 1)
    clean = F.cross_entropy(at_least_float32(logits), y, reduction="none")
    return LossTerms(beta * F.cross_entropy(at_least_float32(logits_adv), last, reduction="none"), clean)
