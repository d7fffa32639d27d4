"""HAT: TRADES, and labels of a plainly trained network far along the perturbation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hauberk.core.arguments import unchecked
from hauberk.core.step_context import LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy, kl_divergence
from hauberk.threat.batch import checked_batch


@checked_batch
def hat(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    logits_helper: Tensor,
    helper: Tensor,
    beta: float = 2.5,
    gamma: float = 0.5,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """Helper-based adversarial training (Rade and Moosavi-Dezfooli 2022).

    ``ℓ = β·KL(p(x)‖p(x'))``, ``r = CE(f(x), y) + γ·CE(f(x + h·(x' - x)), argmax g(x'))``.

    Arguments as in :func:`hauberk.objectives.at`, with ``logits_helper`` f(x + h·(x' - x)), and ``helper`` g(x'), logits of a
    network that was trained without attacks, (B, C) each.
    """
    far = cross_entropy(logits_helper, helper.argmax(1))
    fit = cross_entropy(logits, y if targets is None else targets)
    return LossTerms(beta * kl_divergence(logits, logits_adv), fit + gamma * far)


@dataclass(frozen=True)
class HAT(Objective):
    """Helper-based adversarial training, see :func:`hauberk.objectives.hat`; the helper is the method's teacher.

    x + h·(x' - x) is outside the ball for h above 1, and may be outside the box, on purpose.

    Attributes:
        beta: β of the divergence.
        helper_gamma: γ of the helper's labels (``gamma`` is AWP's).
        h: how many times the perturbation, for the helper's labels.
    """

    beta: float = 2.5
    helper_gamma: float = 0.5
    h: float = 2.0
    needs_teacher: ClassVar[bool] = True
    equation = "ω·β·KL(p(x)‖p(x')) + CE(f(x), y) + γ·CE(f(x_h), y_h); x_h is x + h·(x' - x), y_h the helper's class of x'"
    function = staticmethod(hat)

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch, after one pass more of the network and one of the helper."""
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        assert context.x_adv is not None
        helper = context.ask("teacher", "adversarial")
        far = context.forward(context.x + self.h * (context.x_adv - context.x))
        return unchecked(hat)(
            context.logits,
            context.logits_adv,
            context.y,
            logits_helper=far,
            helper=helper,
            beta=self.beta,
            gamma=self.helper_gamma,
            targets=context.loss_targets,
        )
