"""Cross-entropy: on clean inputs, on adversarial ones, or with a class of their own for these."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, Objective, PresetName, is_official
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
    return LossTerms(beta * cross_entropy(logits_adv, last), cross_entropy(logits, y))


@dataclass(frozen=True)
class AdversarialClass(Objective):
    """A class for adversarial inputs, see :func:`hauberk.objectives.cross_entropy`.

    Attributes:
        beta: weight of recognising.
    """

    beta: float = 1.0
    equation = "ω·β·CE(f(x'), K) + CE(f(x), y), K the class of adversarial inputs"
    extra_outputs = 1
    function = staticmethod(adversarial_class)
