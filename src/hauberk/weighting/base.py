"""What weightings share: normalisation, a summary, and how a measure of the batch becomes its weights."""

from typing import Literal

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import Schedule, StepContext

_QUANTILES = (0.1, 0.5, 0.9)


def mean_one(weights: Tensor) -> Tensor:
    """Scale weights to mean 1: ``ω_i = M · w_i / Σ_j w_j`` (MAIL paper, Algorithm 1, line 11).

    Args:
        weights: (B,), not negative.

    Returns:
        (B,). All ones where every weight is 0.
    """
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean.clamp_min(torch.finfo(weights.dtype).tiny), torch.ones_like(weights))


@torch.no_grad()
def effective_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size as a fraction of the batch: ``(Σω)² / (B·Σω²)``; 1 for equal weights. (B,) -> scalar."""
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp_min(torch.finfo(weights.dtype).tiny)


@torch.no_grad()
def summary(weights: Tensor, measure: Tensor | None) -> dict[str, Tensor]:
    """Summarise the weights of a batch, and the measure they were made from, without host synchronisation.

    Args:
        weights: ω, (B,).
        measure: margins or step counts, (B,), or None for equal weights.

    Returns:
        Scalars: effective size, 10 %, 50 % and 90 % quantiles of weights and measure.
    """
    found = {"effective_size": effective_size(weights)}
    for name, values in (("weight", weights), ("measure", measure)):
        if values is not None:
            marks = torch.quantile(values.float(), torch.tensor(_QUANTILES, dtype=torch.float32, device=values.device))
            found |= {f"{name}_q{int(100 * q)}": mark for q, mark in zip(_QUANTILES, marks, strict=True)}
    return found


class MeasuredWeighting:
    """A weighting that measures each example and makes the weights from the measures of the whole batch.

    Attributes:
        burn_in: number of epochs with weights 1, so the 0-based first reweighted epoch; or "first-drop": until the
            learning rate first drops.
    """

    burn_in: int | Literal["first-drop"]

    def check_burn_in(self) -> None:
        """Refuse what is no number of epochs."""
        if self.burn_in != "first-drop" and not (isinstance(self.burn_in, int) and self.burn_in >= 0):
            raise UserError(f"burn_in is a number of epochs or 'first-drop', not {self.burn_in!r}")

    def in_attack(self, needs: frozenset[str]) -> bool:
        """Whether it wants the attack to look at the clean inputs, given which logits the loss computes."""
        return False

    def measured(self, context: StepContext) -> Tensor:
        """Measure this process's part of the batch, (b,)."""
        raise NotImplementedError

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Turn the measures of the whole batch (B,) into weights (B,)."""
        raise NotImplementedError

    def __call__(self, context: StepContext) -> Tensor:
        """Return weights (b,); their mean over the whole batch of all processes is 1, unless the preset says otherwise."""
        context.measure = context.all_gather(self.measured(context))
        context.all_weights = self.weights(context.measure, context)
        return context.take_local(context.all_weights)


def first_reweighted_epoch(weighting: object, schedule: Schedule) -> int:
    """Return the 0-based epoch from which a weighting counts; 0 for one that says nothing."""
    burn_in = getattr(weighting, "burn_in", 0)
    return schedule.first_drop if burn_in == "first-drop" else int(burn_in)
