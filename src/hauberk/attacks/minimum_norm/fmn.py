"""FMN: fast minimum-norm attack (Pintor et al. 2021), in L∞, L2, L1 and L0."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack
from hauberk.attacks.minimum_norm.base import MinimumNormAttack, MinimumNormState, normalised, unit_slope
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs
from hauberk.threat import Norm, ThreatModel

LAST_STEP = 0.01  # of the first
_FIRST_STEP = 1.0
_FIRST_STEP_LINF = 10.0  # of the length of a step, which in L∞ moves D features


@dataclass(frozen=True)
class FMN(MinimumNormAttack["FMNState"]):
    """Fast minimum-norm attack (Pintor et al. 2021).

    A step of length α along the gradient of the margin, then a projection onto the ball of a radius of its own for each example
    (and onto the box). The radius shrinks by γ where the point is misclassified, and otherwise grows by γ, or, until a first
    misclassified point is found, to the distance of the boundary of the linearised margin. α and γ fall along a cosine.

    In the public code some examples come to rest before the boundary or on it. This goes beyond it by γ of the way, and sees
    which features the box lets move.

    Attributes:
        steps: K, looks at the model, each with a gradient.
        step_size: first α, in widths of the box; None for 10 in L∞ and 1 otherwise. The last is a hundredth of it.
        gamma: first γ.
        gamma_final: last γ.
        restarts: independent starts; the first is at the clean input.
        within_eps: whether only points within ε count, as in an evaluation, which sets it.
        loss: what is above 0 where an input is misclassified, and rises towards there.
    """

    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05
    gamma_final: float = 0.001
    restarts: int = 1

    def defined_in(self, norm: Norm) -> bool:
        """In all."""
        return True

    def for_threat(self, threat: ThreatModel) -> Attack[Any]:
        """In L0 the form that counts."""
        if threat.norm.p or isinstance(self, FMNL0):
            return self
        return FMNL0(**{f.name: getattr(self, f.name) for f in fields(self)})

    def init(self, inputs: AttackInputs) -> "FMNState":
        """Start at the clean input, in a ball without end."""
        state = FMNState(**self.start(inputs), radius=torch.zeros_like(inputs.y, dtype=inputs.feasible.x.dtype))
        state.radius = self.first_radius(state)
        return state

    def step(self, state: "FMNState", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, step along the gradient, and project onto the ball of the next radius."""
        norm, point = state.feasible.norm, state.point(state.offset)
        logits, value, grad = queries.value_and_grad(point, self.attack_loss, state.y)
        wrong, length = self.note(state, point, logits)
        slope = unit_slope(grad, state.scale)
        radius = self.next_radius(state, wrong, length, value.to(slope.dtype), slope)
        state.radius = torch.minimum(radius, norm.length(torch.maximum(state.high, -state.low)))
        first = (_FIRST_STEP_LINF if norm.is_box else _FIRST_STEP) if self.step_size is None else self.step_size
        size = self.annealed(state, first, LAST_STEP * first) * state.unit
        moved = state.offset + size[:, None] * normalised(slope)
        ball = state.radius[:, None].clamp_min(torch.finfo(slope.dtype).tiny)
        state.offset = norm.within(moved, ball, state.low, state.high)

    def first_radius(self, state: "FMNState") -> Tensor:
        """The radius before the first step, (B,)."""
        return torch.full_like(state.radius, torch.inf)

    def next_radius(self, state: "FMNState", wrong: Tensor, length: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The radius after a look: which are misclassified, how far they are and the margin, (B,); its slope (B, D)."""
        gamma = self.annealed(state, self.gamma, self.gamma_final)
        tiny = torch.finfo(slope.dtype).tiny
        movable = slope * (torch.where(slope > 0, state.high, state.low) != state.offset)  # what the box lets go on
        to_boundary = length + (1 + gamma) * value.abs() / state.feasible.norm.dual.length(movable).clamp_min(tiny)
        inwards = torch.minimum(state.radius * (1 - gamma), state.nearest)
        outwards = torch.where(state.nearest < torch.inf, state.radius * (1 + gamma), to_boundary)
        return torch.where(wrong, inwards, outwards)


@dataclass(frozen=True)
class FMNL0(FMN):
    """FMN in L0, whose radius is a whole number of features; settings as in :class:`FMN`."""

    def first_radius(self, state: "FMNState") -> Tensor:
        """One feature."""
        return torch.ones_like(state.radius)

    def next_radius(self, state: "FMNState", wrong: Tensor, length: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """By γ, and by at least one feature, down or up."""
        gamma, radius = self.annealed(state, self.gamma, self.gamma_final), state.radius
        fewer = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), state.nearest)
        more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
        return torch.where(wrong, fewer, more).clamp_min(0)


@dataclass
class FMNState(MinimumNormState):
    """FMN under way."""

    radius: Tensor  # of the ball of each example, (B,)


fmn = as_function(FMN, "fmn", "Fast minimum-norm attack (Pintor et al. 2021): the nearest adversarial example.")
