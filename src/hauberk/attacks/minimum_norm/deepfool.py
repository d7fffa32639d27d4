"""DeepFool (Moosavi-Dezfooli et al. 2016), in L2 and L∞."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.minimum_norm.base import MinimumNormAttack, MinimumNormState
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, where_rows
from hauberk.core.errors import UserError
from hauberk.threat import Norm

_PAST = 1e-4  # of the public code, added to each distance


@dataclass(frozen=True)
class DeepFool(MinimumNormAttack[MinimumNormState]):
    """DeepFool (Moosavi-Dezfooli et al. 2016).

    Each step goes to the nearest of the boundaries of the linearised classes, ``min_k |z_k - z_y| / ‖∇(z_k - z_y)‖_q``, and
    beyond by the overshoot, until the point is misclassified; there it ends. So it is the quickest of the minimum-norm attacks,
    and the weakest.

    Attributes:
        steps: most looks at the model, each with a gradient for each class.
        overshoot: η.
        within_eps: whether only points within ε count, as in an evaluation, which sets it.
        loss: the margin; there is no other that it could go by.
    """

    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "cw":
            raise UserError("DeepFool goes by the boundaries between classes, whatever is to be maximised; use FMN")

    @property
    def passes_per_step(self) -> int:  # type: ignore[override]
        """A forward, and a backward for each class (of ten)."""
        return 11

    def defined_in(self, norm: Norm) -> bool:
        """In L2 and L∞."""
        return norm.p >= 2

    def init(self, inputs: AttackInputs) -> MinimumNormState:
        """Start at the clean input."""
        return MinimumNormState(**self.start(inputs))

    def finished(self, state: MinimumNormState) -> Tensor:
        """Those whose first misclassified point is found, and those whose steps are."""
        return (state.nearest < torch.inf) | (state.step >= self.max_steps)

    def step(self, state: MinimumNormState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, and step beyond the nearest linearised boundary."""
        norm, point = state.feasible.norm, state.point(state.offset)
        nearest = torch.full_like(state.unit, torch.inf)
        normal = torch.zeros_like(state.offset)
        seen: Tensor | None = None
        for classes, logits, grads in queries.logit_gradients(point, state.y):
            seen = logits
            normals = grads.flatten(2) * state.scale[:, None]
            gaps = (logits - logits.gather(1, state.y[:, None]))[:, classes].abs()
            own = torch.arange(classes.start, classes.stop, device=gaps.device) == state.y[:, None]
            slopes = norm.dual.length(normals).clamp_min(1e-12)
            away = (gaps.to(slopes.dtype) / slopes).masked_fill(own, torch.inf)
            least = away.argmin(1, keepdim=True)
            here = away.gather(1, least).squeeze(1)
            chosen = normals.gather(1, least[:, :, None].expand(-1, -1, normals.shape[2])).squeeze(1)
            normal = where_rows(here < nearest, chosen, normal)
            nearest = torch.minimum(here, nearest)
        assert seen is not None  # there is a class at least
        self.note(state, point, seen)
        found = state.nearest < torch.inf
        length = norm.dual.length(normal).clamp_min(1e-12)[:, None]
        # The shortest way in L2 is along the normal, in L∞ along its signs.
        direction = normal.sign() if norm.is_box else normal / length
        size = (1 + self.overshoot) * (nearest + _PAST)
        moved = (state.offset + size[:, None] * direction).clamp(state.low, state.high)
        state.offset = where_rows(found, state.offset, moved)
        if self.within_eps:  # in a stream, what has had its first point frees its row
            state.step = torch.where(found, self.max_steps, state.step)


deepfool = as_function(DeepFool, "deepfool", "DeepFool (Moosavi-Dezfooli et al. 2016): a near adversarial example, quickly.")
