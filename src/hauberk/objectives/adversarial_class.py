"""An extra class for adversarial inputs: the model learns to recognise them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.objectives.base import LossTerms, Objective, PresetName, is_official
from hauberk.objectives.functional import cross_entropy


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
    """A class for adversarial inputs, see :func:`hauberk.objectives.adversarial_class`.

    Attributes:
        beta: weight of recognising.
    """

    beta: float = 1.0
    equation = "ω·β·CE(f(x'), K) + CE(f(x), y), K the class of adversarial inputs"
    extra_outputs = 1
    function = staticmethod(adversarial_class)
