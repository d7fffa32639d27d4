"""TRADES: a clean loss and a weighted divergence between clean and adversarial predictions."""

import torch.nn.functional as F
from torch import Tensor

from hauberk.objectives.kl import at_least_float32, kl_divergence
from hauberk.objectives.terms import PresetName, Terms, is_official


def trades(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 6.0, preset: PresetName = "paper") -> Terms:
    """TRADES (Zhang et al. 2019): ``ℓ = β·KL(p(x)‖p(x'))``, ``r = CE(f(x), y)``.

    The gradient flows through both predictions, as in the public code.

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,) int64.
        beta: trade-off β (1/λ in the paper); its CIFAR-10 experiments use 6.
        preset: no field of the loss differs. The public code's divergence takes probabilities as the target, which gives
            NaN gradients where one underflows; ours is in log space and equal to it everywhere else.
    """
    is_official(preset)
    clean = F.cross_entropy(at_least_float32(logits), y, reduction="none")
    return Terms(beta * kl_divergence(logits, logits_adv), clean)
