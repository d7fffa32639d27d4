"""MART: boosted cross-entropy, and a divergence weighted by how wrong the clean prediction is."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.core.step_context import LossTerms, Objective
from hauberk.objectives.functional import gather_class, kl_divergence, log_softmax, mask_class
from hauberk.threat.batch import checked_batch

MartPreset: TypeAlias = Literal["paper", "official", "note"]


@checked_batch
def mart(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 5.0,
    preset: MartPreset = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """MART (Wang et al. 2020): ``ℓ = BCE(p(x'), y)``, ``r = β·KL(p(x)‖p(x'))·(1 - p_y(x))``.

    ``BCE(p, y) = -log p_y - log(1 - max_{k≠y} p_k)``. The gradient flows through p(x'), p(x) and the weight.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is λ of the paper, 5 for ResNet-18 and 6 for WRN-34-10 in the public
    code. The ``preset`` "paper" is exact and in log space. "official" keeps the constants of the public code, which guard
    against log 0 and flatten the loss: ``log(1.0001 - p_k + 1e-12)`` (the margin term then ends at 9.21 and gives a confidently
    wrong example no gradient), ``log(p'_k + 1e-12)`` in the divergence, weight ``1.0000001 - p_y``. "note", after a reader's
    trainer, has the margin term of the public code and takes p(x), in the divergence and in the weight, as a constant: no
    gradient comes from the clean logits. With ``targets``, probabilities (B, C), ``-log p_y`` becomes cross-entropy with them;
    margin and weight stay those of the labels.
    """
    logits = logits.detach() if preset == "note" else logits
    log_clean, log_adv = log_softmax(logits), log_softmax(logits_adv)
    others = mask_class(log_adv, y)
    p_true = gather_class(log_clean, y).exp()
    if preset == "paper":
        # The log of the sum of all other probabilities than max_{k≠y} p_k, which loses no digits near 1.
        margin = -mask_class(log_adv, others.argmax(1)).logsumexp(1)
    else:
        margin = -torch.log(1.0001 - others.exp().amax(1) + 1e-12)
    if preset == "official":
        divergence = (log_clean.exp() * (log_clean - torch.log(log_adv.exp() + 1e-12))).sum(1)
        weight = 1.0000001 - p_true
    else:
        divergence, weight = kl_divergence(logits, logits_adv), 1 - p_true
    fit = -gather_class(log_adv, y) if targets is None else -(targets * log_adv).sum(1)
    return LossTerms(margin + fit, beta * divergence * weight)


@dataclass(frozen=True)
class Mart(Objective):
    """MART, with ``beta`` and ``preset`` as in :func:`hauberk.objectives.mart`."""

    beta: float = 5.0
    preset: MartPreset = "paper"
    equation = "ω·BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))"
    function = staticmethod(mart)
