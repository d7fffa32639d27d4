"""MART: boosted cross-entropy, and a divergence weighted by how wrong the clean prediction is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.step_context import LossTerms, Objective, PresetName, is_official
from hauberk.objectives.functional import kl_divergence, log_softmax


def mart(logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 5.0, preset: PresetName = "paper") -> LossTerms:
    """MART (Wang et al. 2020): ``ℓ = BCE(p(x'), y)``, ``r = β·KL(p(x)‖p(x'))·(1 - p_y(x))``.

    ``BCE(p, y) = -log p_y - log(1 - max_{k≠y} p_k)``. The gradient flows through p(x'), p(x) and the weight.

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,) int64.
        beta: λ of the paper; 5 for ResNet-18 and 6 for WRN-34-10 in the public code.
        preset: ``"paper"`` is exact and in log space. ``"official"`` keeps the constants of the public code, which guard
            against log 0 and flatten the loss: ``log(1.0001 - p_k + 1e-12)`` (the margin term then ends at 9.21 and gives a
            confidently wrong example no gradient), ``log(p'_k + 1e-12)`` in the divergence, weight ``1.0000001 - p_y``.
    """
    official = is_official(preset)
    log_clean, log_adv = log_softmax(logits), log_softmax(logits_adv)
    true = F.one_hot(y, logits.shape[1]).bool()
    others = log_adv.masked_fill(true, -torch.inf)
    p_true = log_clean.gather(1, y[:, None]).squeeze(1).exp()
    if official:
        margin = -torch.log(1.0001 - others.exp().amax(1) + 1e-12)
        divergence = (log_clean.exp() * (log_clean - torch.log(log_adv.exp() + 1e-12))).sum(1)
        weight = 1.0000001 - p_true
    else:
        margin = -_log_not_largest(log_adv, others)
        divergence = kl_divergence(logits, logits_adv)
        weight = 1 - p_true
    boosted = margin - log_adv.gather(1, y[:, None]).squeeze(1)
    return LossTerms(boosted, beta * divergence * weight)


def _log_not_largest(log_p: Tensor, others: Tensor) -> Tensor:
    """``log(1 - max_{k≠y} p_k)`` as the log of the sum of all other probabilities, which loses no digits near 1."""
    rival = F.one_hot(others.argmax(1), log_p.shape[1]).bool()
    return log_p.masked_fill(rival, -torch.inf).logsumexp(1)


@dataclass(frozen=True)
class Mart(Objective):
    """MART, see :func:`hauberk.objectives.mart`.

    Attributes:
        beta: λ of the paper.
        preset: "paper" or "official".
    """

    beta: float = 5.0
    preset: PresetName = "paper"
    equation = "ω·BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))"
    function = staticmethod(mart)
