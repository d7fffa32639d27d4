"""What a method returns for one batch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hauberk.core.step_context import summary
from hauberk.objectives.functional import fooled


@dataclass(frozen=True, eq=False, repr=False)
class Output:
    """What a method returns for one batch.

    Attributes:
        loss: scalar with a graph; call ``.backward()`` on it.
        x_adv: adversarial inputs, (B, ...), or None where the method attacks nothing.
        weights: ω, (B,), detached.
        logits: of the clean inputs, (B, C), detached, or None where nothing needs them.
        logits_adv: of the adversarial inputs, likewise.
        forwards: forward passes of this step so far, attack included; a fraction where finished examples were left out.
        backwards: backward passes to the input; those to the weights are not counted.
        burning_in: whether all weights are 1 because the epoch is before the end of the burn-in.
        y: labels, (B,).
        all_weights: ω of the whole batch of all processes; None without a weighting.
        measure: what they were made from, likewise; None for weightings that measure nothing.
    """

    loss: Tensor
    x_adv: Tensor | None
    weights: Tensor
    logits: Tensor | None
    logits_adv: Tensor | None
    forwards: float
    backwards: float
    burning_in: bool = False
    y: Tensor | None = None
    all_weights: Tensor | None = None
    measure: Tensor | None = None

    @cached_property
    def misclassification_weight(self) -> Tensor | None:
        """MART's 1 - p_y(x) of each example, (B,), of any method; None where it does not look at the clean inputs."""
        return None if self.logits is None or self.y is None else misclassification_weight(self.logits, self.y)

    @cached_property
    def report(self) -> dict[str, Tensor]:
        """Scalars that say what the weighting did, and the mean of MART's 1 - p_y(x), computed when they are first asked for.

        Each only where there is such a thing.
        """
        found = {}
        if self.all_weights is not None:
            found = weighting_report(self.all_weights, self.measure, self.logits_adv, self.y)
        if (weight := self.misclassification_weight) is not None:
            found["misclassification_weight"] = weight.mean()
        return found

    def numbers(self) -> dict[str, float]:
        """Return the loss and the report as plain numbers, for a logger; this waits for the device."""
        scalars = {"loss": self.loss.detach(), **self.report}
        return dict(zip(scalars, torch.stack([value.double() for value in scalars.values()]).tolist(), strict=True))

    def __repr__(self) -> str:
        return f"Output(loss={self.loss.item():.4g}, {len(self.weights)} examples, {', '.join(self.report) or 'no report'})"


@torch.no_grad()
def misclassification_weight(logits: Tensor, y: Tensor) -> Tensor:
    """Return MART's 1 - p_y(x) of each example, (..., B), from logits of clean inputs, (..., B, C), and labels."""
    return 1 - logits.softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def weighting_report(weights: Tensor, measure: Tensor | None, logits_adv: Tensor | None, y: Tensor | None) -> dict[str, Tensor]:
    """Say what a weighting did in one batch, weights and measure (B,), or in several, (M, B), at once.

    Adds to :func:`hauberk.weighting.summary` the part of the adversarial inputs that are misclassified, from logits (b, C) and
    labels (b,), or (M, b, C) and (M, b).
    """
    found = summary(weights, measure)
    if logits_adv is not None and y is not None:
        wrong = fooled(logits_adv.flatten(0, -2), y.flatten()).view(y.shape)
        found["wrong_adversarial"] = wrong.float().mean(-1)
    return found
