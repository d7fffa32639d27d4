"""ADR: labels softened by the moving average of the network that is trained (Wu et al. 2024)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.objectives.functional import at_least_float32, gather_class


def rectified_labels(
    logits: Tensor, y: Tensor, *, interpolation: float, temperature: float, targets: Tensor | None = None
) -> Tensor:
    """ADR's labels (Wu et al. 2024, ICLR): ``t = λ_i·p̄ + (1 - λ_i)·1_y``.

    Where ``p̄ = softmax(z̄/τ)`` and ``λ_i = clip(λ - (max_k p̄_k - p̄_y), 0, 1)``: the less, the surer z̄ is of another class.

    Args:
        logits: z̄, of the moving average at the clean inputs, (B, C).
        y: labels, (B,) int64.
        interpolation: λ.
        temperature: τ.
        targets: probabilities of the classes in place of 1_y, (B, C), such as those of mixed images.

    Returns:
        Probabilities of the classes, (B, C), detached.
    """
    p = (at_least_float32(logits.detach()) / temperature).softmax(1)
    share = (interpolation - (p.amax(1) - gather_class(p, y))).clamp(0, 1)[:, None]
    return share * p + (1 - share) * (F.one_hot(y, p.shape[1]) if targets is None else targets.to(p.dtype))


@dataclass(frozen=True)
class ADR:
    """Targets from the moving average of the network, for the attack's cross-entropy and the loss (Wu et al. 2024).

    λ and τ go from their first to their last value by half a cosine over all steps of the training. The average answers in
    evaluation mode, as in the public code.

    Attributes:
        lambda_start: λ at the beginning.
        lambda_end: λ at the end.
        temperature_start: τ at the beginning.
        temperature_end: τ at the end.
        ema_decay: decay of the moving average.
    """

    lambda_start: float = 0.7
    lambda_end: float = 0.95
    temperature_start: float = 2.5
    temperature_end: float = 2.0
    ema_decay: float = 0.995
    follows_progress = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not (min(self.lambda_start, self.lambda_end) >= 0 and max(self.lambda_start, self.lambda_end) <= 1):
            raise UserError(f"lambda_start and lambda_end must be from 0 to 1, got {self.lambda_start} and {self.lambda_end}")
        if min(self.temperature_start, self.temperature_end) <= 0:
            raise UserError(f"temperatures must be positive, got {self.temperature_start} and {self.temperature_end}")

    def schedule(self, done: float) -> tuple[float, float]:
        """Return λ and τ where a part of the training is done, in [0, 1]."""
        left = 0.5 * (1 + math.cos(math.pi * done))
        return (
            self.lambda_end + left * (self.lambda_start - self.lambda_end),
            self.temperature_end + left * (self.temperature_start - self.temperature_end),
        )

    @torch.no_grad()
    def __call__(self, context: StepContext) -> Tensor:
        """Return probabilities of the classes, (b, C)."""
        interpolation, temperature = self.schedule(context.done)
        logits = context.ask("average", "clean")
        how = {"interpolation": interpolation, "temperature": temperature}
        return rectified_labels(logits, context.y, targets=context.targets, **how)
