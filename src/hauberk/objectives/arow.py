"""ARoW: a divergence that counts more where the adversarial prediction is less sure of the label (Yang et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName, is_official
from hauberk.objectives.functional import cross_entropy, gather_class, kl_divergence, log_softmax, smoothed
from hauberk.threat.batch import checked_batch


@checked_batch
def arow(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 7.0,
    smoothing: float = 0.2,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """ARoW (Yang et al. 2023): ``ℓ = β·KL(p(x)‖p(x'))·(1 - p_y(x'))``, ``r = CE(f(x), (1 - α)·y + α/C)``.

    The gradient flows through both predictions and through the factor, as in the public code.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is twice the λ of the paper, which is 3.5 on CIFAR-10; ``smoothing``
    is α of the label smoothing. The ``preset`` "official" has the public code's ``log(p' + 1e-12)``. With ``targets``,
    probabilities (B, C), these are smoothed in place of the labels, which the factor keeps.

    Raises:
        UserError: for an unknown preset, and a smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    log_adv = log_softmax(logits_adv)
    if is_official(preset):
        log_clean = log_softmax(logits)
        divergence = (log_clean.exp() * (log_clean - torch.log(log_adv.exp() + 1e-12))).sum(1)
    else:
        divergence = kl_divergence(logits, logits_adv)
    fit = cross_entropy(logits, smoothed(y if targets is None else targets, smoothing, logits.shape[1]))
    return LossTerms(-beta * divergence * torch.expm1(gather_class(log_adv, y)), fit)


@dataclass(frozen=True)
class ARoW(Objective):
    """ARoW, with ``beta``, ``smoothing`` and ``preset`` as in :func:`hauberk.objectives.arow`."""

    beta: float = 7.0
    smoothing: float = 0.2
    preset: PresetName = "paper"
    equation = "ω·β·KL(p(x)‖p(x'))·(1 - p_y(x')) + CE(f(x), t); t is the label with smoothing α"
    function = staticmethod(arow)
