"""RAMP: cross-entropy at the worst of two threat models, and predictions under both paired (Jiang and Singh 2024)."""

from dataclasses import dataclass

from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, LossTerms, Objective, StepContext
from hauberk.objectives.functional import cross_entropy, fooled, kl_divergence


@dataclass(frozen=True)
class Ramp(Objective):
    """RAMP (Jiang and Singh 2024): ``ℓ = CE(f(x'), y)``, ``r = λ·KL(p(x_1)‖p(x_2))`` where x_1 is classified right.

    x' is the worse of x_1 and x_2, the adversarial inputs under the first two threat models, which the attack leaves in
    ``context.x_adv_by_threat``; they make a pass each. The divergence is averaged over the examples with x_1 right; both
    predictions have a gradient, as in the public code, whose λ is 5 from scratch (--lbd) and 1.5 by default. Its gradient
    projection, which averages the weights after each epoch with those of a second network trained on clean inputs in
    between, is a matter of the training loop and is left out. With one threat model there is no pair and r is 0.

    Attributes:
        ramp_lam: λ.
    """

    ramp_lam: float = 5.0
    needs = ADVERSARIAL
    equation = "ω·CE(f(x'), y) + λ·KL(p(x_1)‖p(x_2)); x_1 and x_2 are x' of the first two threat models, where x_1 is right"
    takes_targets = True

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch."""
        if context.logits_adv is None or not context.x_adv_by_threat:
            raise UserError(
                "RAMP pairs the points of several threat models, which its attack leaves in context.x_adv_by_threat"
            )
        targets = context.loss_targets
        loss = cross_entropy(context.logits_adv, context.y if targets is None else targets)
        if len(context.x_adv_by_threat) < 2:
            return LossTerms(loss, loss.new_zeros(len(loss)))
        one, other = (context.forward(x) for x in context.x_adv_by_threat[:2])
        return LossTerms(loss, self.ramp_lam * self._share(one, context) * kl_divergence(one, other))

    @staticmethod
    def _share(logits: Tensor, context: StepContext) -> Tensor:
        """Weights that average over the examples that are right: 0 for the others."""
        right = (~fooled(logits.detach(), context.y)).to(logits.dtype)
        return context.mean_one(right) * right
