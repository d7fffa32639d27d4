"""DDN: decoupled direction and norm attack (Rony et al. 2019), in L2."""

from dataclasses import dataclass, field

import numpy as np
import torch

from hauberk.attacks.as_function import as_function
from hauberk.attacks.minimum_norm.base import MinimumNormAttack, MinimumNormState, normalised, unit_slope
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, where_rows
from hauberk.objectives.functional import LossLike
from hauberk.threat import Norm

LAST_STEP = 0.01  # of the first
_NOISE_TAG = 100


@dataclass(frozen=True)
class DDN(MinimumNormAttack["DDNState"]):
    """Decoupled direction and norm attack (Rony et al. 2019).

    A step along the gradient of cross-entropy, then back to a sphere around the clean input whose radius shrinks by γ where the
    point is misclassified, and grows by γ where it is not. Points are not rounded to grey values, which the public code does.

    Attributes:
        steps: K, looks at the model, each with a gradient.
        step_size: first step in widths of the box; it falls to a hundredth of that along a cosine.
        gamma: γ.
        init_norm: first radius, in widths of the box.
        restarts: independent starts; the first is at the clean input.
        loss: what each step goes up along.
        within_eps: whether only points within ε count, as in an evaluation, which sets it.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    init_norm: float = 1.0
    restarts: int = 1
    loss: LossLike = field(default="ce", kw_only=True)

    def defined_in(self, norm: Norm) -> bool:
        """In L2."""
        return norm.p == 2

    def init(self, inputs: AttackInputs) -> "DDNState":
        """Start at the clean input."""
        start = self.start(inputs)
        return DDNState(**start, radius=self.init_norm * start["unit"])

    def step(self, state: "DDNState", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, step along the gradient, and go back to the sphere of the next radius."""
        norm, point = state.feasible.norm, state.point(state.offset)
        logits, _, grad = queries.value_and_grad(point, self.attack_loss, state.y)
        wrong, _ = self.note(state, point, logits)
        slope = unit_slope(grad, state.scale)
        # Where there is no gradient, a random direction: otherwise nothing would ever move.
        random = state.rng.normal(point, state.tag + _NOISE_TAG + state.step).flatten(1) * (state.scale > 0)
        slope = where_rows(slope.abs().amax(1) > 0, slope, random)
        size = self.annealed(state, self.step_size, LAST_STEP * self.step_size) * state.unit
        moved = state.offset + size[:, None] * normalised(slope)
        radius = state.radius * torch.where(wrong, 1 - self.gamma, 1 + self.gamma)
        state.radius = torch.minimum(radius, norm.length(torch.maximum(state.high, -state.low)))
        on_sphere = moved * (state.radius / norm.length(moved).clamp_min(1e-12))[:, None]
        state.offset = torch.minimum(torch.maximum(on_sphere, state.low), state.high)


@dataclass
class DDNState(MinimumNormState):
    """DDN under way."""

    radius: torch.Tensor  # of the sphere of each example, (B,)


ddn = as_function(DDN, "ddn", "Decoupled direction and norm attack (Rony et al. 2019): the nearest adversarial example in L2.")
