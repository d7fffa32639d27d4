"""Standard training and adversarial training: cross-entropy on clean or on adversarial inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.objectives.base import ADVERSARIAL, CLEAN, LossTerms, Objective, PresetName, is_official
from hauberk.objectives.functional import cross_entropy


def standard(
    logits: Tensor, logits_adv: Tensor | None, y: Tensor, *, beta: float = 0.0, preset: PresetName = "paper"
) -> LossTerms:
    """Standard training: ``ℓ = CE(f(x), y)``, ``r = 0``.

    Args:
        logits: of the clean inputs, (B, C).
        logits_adv: not used; may be None.
        y: labels, (B,) int64.
        beta: not used; every objective is called alike.
        preset: no field differs.
    """
    return _only(logits, y, preset)


def at(logits: Tensor | None, logits_adv: Tensor, y: Tensor, *, beta: float = 0.0, preset: PresetName = "paper") -> LossTerms:
    """Adversarial training (Madry et al. 2018, Eq. 2.1): ``ℓ = CE(f(x'), y)``, ``r = 0``.

    Args:
        logits: not used; may be None.
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,) int64.
        beta: not used; every objective is called alike.
        preset: no field of the loss differs.
    """
    return _only(logits_adv, y, preset)


def _only(logits: Tensor, y: Tensor, preset: PresetName) -> LossTerms:
    is_official(preset)
    loss = cross_entropy(logits, y)
    return LossTerms(loss, torch.zeros_like(loss))


@dataclass(frozen=True)
class Standard(Objective):
    """Standard training, see :func:`hauberk.objectives.standard`."""

    needs = CLEAN
    equation = "ω·CE(f(x), y)"
    function = staticmethod(standard)


@dataclass(frozen=True)
class AT(Objective):
    """Adversarial training, see :func:`hauberk.objectives.at`."""

    needs = ADVERSARIAL
    equation = "ω·CE(f(x'), y)"
    function = staticmethod(at)
