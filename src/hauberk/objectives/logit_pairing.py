"""ALP and CLP: keep the outputs of paired inputs close."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.functional import at_least_float32, cross_entropy
from hauberk.threat.batch import checked_batch

Pairing: TypeAlias = Literal["probabilities", "logits"]


@checked_batch
def alp(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 1.0,
    pairing: Pairing = "probabilities",
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Adversarial logit pairing (Kannan et al. 2018), in two readings.

    ``pairing="probabilities"``, as the MART paper's comparison states it: ``ℓ = CE(f(x'), y)``,
    ``r = β·‖p(x') - p(x)‖²``. ``pairing="logits"``, as Kannan et al. have it: ``ℓ = CE(f(x'), y)``,
    ``r = CE(f(x), y) + β·mean_k (f_k(x') - f_k(x))²``.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is the weight of the pairing. Public code uses 0.5 with logits; the
    MART paper states no value, and no official code in PyTorch is known.

    Raises:
        UserError: for an unknown pairing.
    """
    labels = y if targets is None else targets
    robust = cross_entropy(logits_adv, labels)
    regular = beta * _distance(logits, logits_adv, pairing)
    return LossTerms(robust, regular + cross_entropy(logits, labels) if pairing == "logits" else regular)


@checked_batch
def clp(
    logits: Tensor,
    logits_adv: Tensor | None,
    y: Tensor,
    *,
    beta: float = 1.0,
    pairing: Pairing = "probabilities",
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Clean logit pairing, in two readings.

    ``pairing="probabilities"``, as the MART paper's comparison states it: ``ℓ = β·‖p(x') - p(x)‖²``,
    ``r = CE(f(x), y)``. ``pairing="logits"``, as Kannan et al. (2018) have it, pairs random clean inputs and attacks nothing:
    ``r = CE(f(x), y) + β·mean_k (f_k(x_i) - f_k(x_{i+1}))²``, the next input of the shuffled batch; ``ℓ = 0``.

    Arguments as in :func:`hauberk.objectives.alp`; no source states a value of ``beta``.

    Raises:
        UserError: for an unknown pairing, and without ``logits_adv`` where it pairs with them.
    """
    clean = cross_entropy(logits, y if targets is None else targets)
    if pairing == "logits":
        paired = beta * _distance(logits, logits.roll(-1, 0), pairing)
        return LossTerms(paired * 0, clean + paired)
    if logits_adv is None:
        raise UserError("pairing of probabilities needs logits_adv")
    return LossTerms(beta * _distance(logits, logits_adv, pairing), clean)


def _distance(one: Tensor, other: Tensor, pairing: Pairing) -> Tensor:
    one, other = at_least_float32(one), at_least_float32(other)
    if pairing == "probabilities":
        return (one.softmax(1) - other.softmax(1)).square().sum(1)
    return (one - other).square().mean(1)


@dataclass(frozen=True)
class ALP(Objective):
    """Adversarial logit pairing, with ``beta`` and ``pairing`` as in :func:`hauberk.objectives.alp`."""

    beta: float = 1.0
    pairing: Pairing = "probabilities"
    function = staticmethod(alp)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss with this pairing."""
        if self.pairing == "probabilities":
            return "ω·CE(f(x'), y) + β·‖p(x') - p(x)‖²"
        return "ω·CE(f(x'), y) + CE(f(x), y) + β·mean_k (f(x') - f(x))²"


@dataclass(frozen=True)
class CLP(Objective):
    """Clean logit pairing, with ``beta`` and ``pairing`` as in :func:`hauberk.objectives.clp`."""

    beta: float = 1.0
    pairing: Pairing = "probabilities"
    function = staticmethod(clp)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss with this pairing."""
        if self.pairing == "probabilities":
            return "ω·β·‖p(x') - p(x)‖² + CE(f(x), y)"
        return "CE(f(x), y) + β·mean_k (f(x) - f(z))²; z is the next input of the batch"
