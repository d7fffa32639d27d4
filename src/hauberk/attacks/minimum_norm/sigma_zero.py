"""σ-zero (Cinà et al. 2025): the adversarial example that changes the fewest features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.minimum_norm.base import MinimumNormAttack, MinimumNormState, unit_slope
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs
from hauberk.core.errors import UserError
from hauberk.threat import Norm

FIRST_MEMORY, SECOND_MEMORY = 0.9, 0.999  # Adam's β
_LAST_STEP = 0.1  # of the first


@dataclass(frozen=True)
class SigmaZero(MinimumNormAttack["SigmaZeroState"]):
    """σ-zero (Cinà et al. 2025), in L0.

    Adam descends ``max(z_y - max_{k≠y} z_k, 0) + (1/D) Σ_j δ_j² / (δ_j² + σ)``, whose second term is a smooth count of the
    changed features; its gradient is divided by its largest entry, and the step falls to a tenth along a cosine. After each
    step, changes smaller than a threshold τ are set to 0; τ rises by a hundredth of the step where the point was misclassified,
    and falls otherwise. Changes are in widths of the box.

    Attributes:
        steps: K, looks at the model, each with a gradient.
        step_size: first step.
        sigma: σ.
        threshold: first τ.
        threshold_rate: times the step, what τ moves by.
        restarts: independent starts; the first is at the clean input.
        within_eps: whether only points within ε count, as in an evaluation, which sets it.
        loss: what is above 0 where an input is misclassified, and rises towards there.
    """

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_rate: float = 0.01
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step_size", "sigma"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")

    def defined_in(self, norm: Norm) -> bool:
        """In L0."""
        return norm.p == 0

    def init(self, inputs: AttackInputs) -> "SigmaZeroState":
        """Start at the clean input."""
        start = self.start(inputs)
        zero = torch.zeros_like(start["offset"])
        return SigmaZeroState(**start, first=zero, second=zero, threshold=torch.full_like(start["unit"], self.threshold))

    def step(self, state: "SigmaZeroState", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, take a step of Adam, and drop what is below the threshold."""
        point, change = state.point(state.offset), state.offset
        logits, value, grad = queries.value_and_grad(point, self.attack_loss, state.y)
        wrong, _ = self.note(state, point, logits)
        of_margin = unit_slope(grad, state.scale) * (value < 0)[:, None]
        square = change.square()
        of_count = 2 * change * self.sigma / (square + self.sigma).square() / change.shape[1]
        slope = of_count - of_margin  # of what is to fall; attacks' margins are to rise
        slope = slope / slope.abs().amax(1, keepdim=True).clamp_min(1e-12)
        state.first = torch.lerp(slope, state.first, FIRST_MEMORY)
        state.second = torch.lerp(slope.square(), state.second, SECOND_MEMORY)
        looks = state.step[:, None].to(slope.dtype)  # so many steps with this one
        mean, spread = state.first / (1 - FIRST_MEMORY**looks), state.second / (1 - SECOND_MEMORY**looks)
        size = self.annealed(state, self.step_size, _LAST_STEP * self.step_size)
        moved = change - size[:, None] * mean / (spread.sqrt() + 1e-8)
        moved = torch.minimum(torch.maximum(moved, state.low), state.high)
        rate = self.threshold_rate * size
        state.threshold = (state.threshold + torch.where(wrong, rate, -rate)).clamp(0, 1)
        state.offset = torch.where(moved.abs() < state.threshold[:, None], 0.0, moved)


@dataclass
class SigmaZeroState(MinimumNormState):
    """σ-zero under way."""

    first: Tensor  # Adam's mean of the slopes, (B, D)
    second: Tensor  # and of their squares
    threshold: Tensor  # τ, (B,)


sigma_zero = as_function(
    SigmaZero, "sigma_zero", "σ-zero (Cinà et al. 2025): the adversarial example that changes the fewest features."
)
