"""ReBAT: adversarial training that stays near the moving average of the network."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hauberk.core.arguments import check_fields, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy, kl_divergence
from hauberk.threat.batch import checked_batch

_AFTER_DROP = 0.025  # of the training, between the first drop of the rate and the average: epochs 100 and 105 of 200


@checked_batch
def rebat(
    logits: Tensor | None,
    logits_adv: Tensor,
    y: Tensor,
    *,
    average_adv: Tensor | None,
    beta: float = 1.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """ReBAT (Wang et al. 2023): ``ℓ = CE(f(x'), y)``, ``r = β·KL(p̄(x')‖p(x'))``, p̄ the moving average's softmax.

    Arguments as in :func:`hauberk.objectives.at`, with ``average_adv``, logits of the moving average at the adversarial inputs,
    (B, C); None before it begins, where r is 0.
    """
    fit = cross_entropy(logits_adv, y if targets is None else targets)
    if average_adv is None:
        return LossTerms(fit, torch.zeros_like(fit))
    return LossTerms(fit, beta * kl_divergence(average_adv.detach(), logits_adv))


@dataclass(frozen=True)
class ReBAT(Objective):
    """Rebalanced adversarial training, see :func:`hauberk.objectives.rebat`.

    Attributes:
        beta: β.
        ema_decay: decay of the moving average.
        ema_start: 0-based epoch at which the average begins, and the term with it; or "first-drop": a fortieth of the training
            after the learning rate first drops (epoch 105 of the public code's 200, which drops it at 100).
    """

    beta: float = 1.0
    ema_decay: float = 0.999
    ema_start: int | Literal["first-drop"] = "first-drop"
    needs = ADVERSARIAL
    follows_progress = True
    equation = "ω·CE(f(x'), y) + β·KL(p_a(x')‖p(x')); p_a is the moving average's softmax, and the term 0 before it begins"
    function = staticmethod(rebat)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.beta < 0 or (self.ema_start != "first-drop" and self.ema_start < 0):
            raise UserError(f"beta and ema_start must not be negative, got {self.beta} and {self.ema_start}")

    def start(self, context: StepContext) -> int:
        """Return the epoch, from 0, at which the average begins."""
        if self.ema_start != "first-drop":
            return self.ema_start
        return context.schedule.first_drop + round(_AFTER_DROP * context.schedule.epochs)

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch, from the epoch of the start on after one pass of the average."""
        assert context.average is not None  # made for this loss
        assert context.logits_adv is not None  # needed
        waits = context.epoch < self.start(context)
        context.average.copies = waits  # type: ignore[assignment]
        found = None if waits else context.ask("average", "adversarial")
        logits, targets = context.logits_adv, context.loss_targets
        return unchecked(rebat)(None, logits, context.y, average_adv=found, beta=self.beta, targets=targets)
