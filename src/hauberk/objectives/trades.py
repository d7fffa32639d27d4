"""TRADES: a clean loss and a weighted divergence between clean and adversarial predictions."""

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.objectives.functional import at_least_float32, kl_divergence
from hauberk.objectives.terms import LossTerms, PresetName, is_official

Direction: TypeAlias = Literal["clean-to-adv", "adv-to-clean"]


def trades(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 6.0,
    direction: Direction = "clean-to-adv",
    preset: PresetName = "paper",
) -> LossTerms:
    """TRADES (Zhang et al. 2019): ``ℓ = β·KL(p(x)‖p(x'))``, ``r = CE(f(x), y)``.

    The gradient flows through both predictions, as in the public code.

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,) int64.
        beta: trade-off β (1/λ in the paper); its CIFAR-10 experiments use 6.
        direction: of the divergence: ``"clean-to-adv"`` is KL(p(x)‖p(x')), TRADES and every public code; ``"adv-to-clean"`` is
            KL(p(x')‖p(x)), as the MAIL paper writes its Eq. 10.
        preset: no field of the loss differs. The public code's divergence takes probabilities as the target, which gives
            NaN gradients where one underflows; ours is in log space and equal to it everywhere else.

    Raises:
        UserError: for an unknown direction or preset.
    """
    is_official(preset)
    if direction not in ("clean-to-adv", "adv-to-clean"):
        raise UserError(f"direction is 'clean-to-adv' or 'adv-to-clean', not {direction!r}")
    pair = (logits, logits_adv) if direction == "clean-to-adv" else (logits_adv, logits)
    clean = F.cross_entropy(at_least_float32(logits), y, reduction="none")
    return LossTerms(beta * kl_divergence(*pair), clean)
