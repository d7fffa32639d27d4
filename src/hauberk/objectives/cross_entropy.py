"""Cross-entropy: on adversarial inputs, on clean ones, or with a class of their own for the adversarial ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy
from hauberk.threat.batch import checked_batch


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
def mixed(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    clean_share: float = 0.5,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Clean and adversarial cross-entropy (Goodfellow et al. 2015): ``ℓ = (1 - c)·CE(f(x'), y)``, ``r = c·CE(f(x), y)``.

    With PGD the mixed-minibatch PGD of Kannan et al. 2018. Arguments as in :func:`hauberk.objectives.at`; ``clean_share`` is c,
    0.5 in both papers (α in the first).
    """
    labels = y if targets is None else targets
    return LossTerms((1 - clean_share) * cross_entropy(logits_adv, labels), clean_share * cross_entropy(logits, labels))


@checked_batch
def adversarial_class(
    logits: Tensor, logits_adv: Tensor, y: Tensor, *, beta: float = 1.0, preset: PresetName = "paper"
) -> LossTerms:
    """Recognise adversarial inputs as a class of their own, the last output K.

    ``ℓ = β·CE(f(x'), K)``, ``r = CE(f(x), y)``. The idea is in the lecture notes among the sources; the loss is ours.

    Arguments as in :func:`hauberk.objectives.at`, with logits (B, K + 1) and labels 0 to K - 1; ``beta`` is
    the weight of recognising.
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
class Mixed(Objective):
    """Clean and adversarial cross-entropy, with ``clean_share`` as in :func:`hauberk.objectives.mixed`."""

    clean_share: float = 0.5
    equation = "ω·(1 - c)·CE(f(x'), y) + c·CE(f(x), y)"
    function = staticmethod(mixed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clean_share > 1:
            raise UserError(f"clean_share is a part, at most 1, got {self.clean_share}")


@dataclass(frozen=True)
class UniformNoise(Objective):
    """Cross-entropy at a random point of the threat model: ``ℓ = CE(f(x + u), y)``, u uniform in the ball, ``r = 0``.

    Noise augmentation of the size of the attack, without an attack: the baseline that adversarial training is compared with.
    It makes the pass itself; where nothing else has computed logits of x, metrics of clean inputs are of noisy ones.
    """

    needs = frozenset()
    equation = "ω·CE(f(x + u), y); u is uniform in the ball, and x + u in the box"
    takes_targets = True

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch."""
        logits = context.forward(context.threat.around(context.x).random(context.rng))
        context.logits = logits if context.logits is None else context.logits
        targets = context.loss_targets
        return _only(logits, context.y if targets is None else targets)


@dataclass(frozen=True)
class AdversarialClass(Objective):
    """A class for adversarial inputs, with ``beta`` as in :func:`hauberk.objectives.adversarial_class`."""

    beta: float = 1.0
    equation = "ω·β·CE(f(x'), K) + CE(f(x), y); K is the class of adversarial inputs"
    extra_outputs = 1
    function = staticmethod(adversarial_class)
