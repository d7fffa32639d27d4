"""Cross-entropy: on adversarial inputs, on clean ones, or with a class of their own for the adversarial ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, Objective, PresetName
from hauberk.objectives.functional import cross_entropy
from hauberk.threat.model import checked_batch


@checked_batch
def at(
    logits: Tensor | None,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 0.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Adversarial training (Madry et al. 2018, Eq. 2.1): ``ℓ = CE(f(x'), y)``, ``r = 0``.

    Args:
        logits: of the clean inputs, (B, C); not used here, and may be None.
        logits_adv: of the adversarial inputs, (B, C).
        y: labels, (B,), integers.
        beta: weight of one of the terms; not used here, but every objective is called alike.
        preset: ``"paper"`` or ``"official"``, the authors' code; they differ in :func:`hauberk.objectives.mart` only.
        targets: probabilities of the classes, (B, C), that cross-entropy takes in place of the labels.

    Returns:
        LossTerms, (B,) each.
    """
    return _only(logits_adv, y if targets is None else targets)


@checked_batch
def standard(
    logits: Tensor,
    logits_adv: Tensor | None,
    y: Tensor,
    *,
    beta: float = 0.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Standard training: ``ℓ = CE(f(x), y)``, ``r = 0``. Arguments as in :func:`hauberk.objectives.at`."""
    return _only(logits, y if targets is None else targets)


def _only(logits: Tensor, y: Tensor) -> LossTerms:
    loss = cross_entropy(logits, y)
    return LossTerms(loss, torch.zeros_like(loss))


@checked_batch
def adversarial_class(
    logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 1.0, preset: PresetName = "paper"
) -> LossTerms:
    """Recognise adversarial inputs as a class of their own, the last output K.

    ``ℓ = β·CE(f(x'), K)``, ``r = CE(f(x), y)``. The idea is in the lecture notes among the sources; the loss is ours.

    Arguments as in :func:`hauberk.objectives.at`, with logits (B, K + 1) and labels 0 to K - 1; ``beta`` weighs recognising.
    """
    last = torch.full_like(y, logits.shape[1] - 1)
    return LossTerms(beta * cross_entropy(logits_adv, last), cross_entropy(logits, y))


@dataclass(frozen=True)
class AT(Objective):
    """Adversarial training, see :func:`hauberk.objectives.at`."""

    needs = ADVERSARIAL
    equation = "ω·CE(f(x'), y)"
    function = staticmethod(at)


@dataclass(frozen=True)
class Standard(Objective):
    """Standard training, see :func:`hauberk.objectives.standard`."""

    needs = CLEAN
    equation = "ω·CE(f(x), y)"
    function = staticmethod(standard)


@dataclass(frozen=True)
class AdversarialClass(Objective):
    """A class for adversarial inputs, with ``beta`` as in :func:`hauberk.objectives.adversarial_class`."""

    beta: float = 1.0
    equation = "ω·β·CE(f(x'), K) + CE(f(x), y); K is the class of adversarial inputs"
    extra_outputs = 1
    function = staticmethod(adversarial_class)
