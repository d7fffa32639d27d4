"""UIAT's two searches: an adversarial input, and an inverse adversarial one (Dong et al. 2023)."""

from dataclasses import replace

from torch import Tensor

from hauberk.attacks import PGD, AttackResult
from hauberk.core.arguments import check_argument
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, run_in_step
from hauberk.objectives.functional import AttackLoss, cross_entropy


class WithInverse(BatchAttack):
    """PGD, and with the same settings PGD downwards, ``x̌ = argmin CE(f(x̌), y)`` within ε', left in ``context.x_inverse``.

    Both begin at the same point where the start is random. x' is what the attack returns; passes of both are counted.

    Args:
        attack: PGD; the second search has its settings but for the loss and τ.
        inverse_radius: ε' as a part of ε, at most 1.
        evaluate_last: as of :class:`BatchAttack`.

    Raises:
        UserError: for a radius that is not above 0 and at most 1.
    """

    def __init__(self, attack: PGD, inverse_radius: float = 1.0, evaluate_last: bool = False):
        super().__init__(attack, evaluate_last=evaluate_last)
        self.inverse_radius: float = check_argument("inverse_radius", inverse_radius, float)
        if not 0 < self.inverse_radius <= 1:
            raise UserError(f"inverse_radius must be above 0 and at most 1, got {inverse_radius}")
        self._downwards = replace(attack, tau=None, loss=_LIKELIHOOD, return_last=True, evaluate_last=False)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch, and look for the inverse of the attack."""
        soft = context.targets
        attack = self._downwards if soft is None else replace(self._downwards, loss=_SOFT_LIKELIHOOD)
        threat = context.threat if self.inverse_radius == 1 else context.threat.scaled(self.inverse_radius)
        inverse = run_in_step(attack, context, threat, return_clean_logits=False, reference=soft)
        context.x_inverse = inverse.x_adv
        context.more_forwards += inverse.forwards
        context.more_backwards += inverse.backwards
        return super().__call__(context)


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    return -cross_entropy(logits, labels)


def _log_likelihood_of(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits, targets)


_LIKELIHOOD = AttackLoss(_log_likelihood)
_SOFT_LIKELIHOOD = AttackLoss(_log_likelihood_of, "given")
