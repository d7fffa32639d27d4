"""What attacks share that look for the nearest adversarial example, whatever ε."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hauberk.attacks.base import GOAL, Attack
from hauberk.attacks.state import AttackInputs, AttackState, initial_state, where_rows
from hauberk.objectives.functional import AttackLoss, LossLike
from hauberk.threat import FeasibleSet, ThreatModel

_FAR = 1e12  # instead of infinity, where the box has no bound


@dataclass
class MinimumNormState(AttackState):
    """What every minimum-norm attack keeps besides.

    Attributes:
        offset: (B, D), the change under way, divided by ``scale``.
        low, high: (B, D), how far it may go down (at most 0) and up.
        scale: (B, D), ε of a feature as a part of the largest: 1 where all have one, 0 where frozen; in L0 the box's width.
        unit: (B,), width of the box in units of the offset, the largest; 1 where it has no bounds.
        nearest: (B,), length of the shortest change that was misclassified so far, inside ε or not; infinity for none.
    """

    offset: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    unit: Tensor
    nearest: Tensor

    def point(self, offset: Tensor) -> Tensor:
        """The input at an offset (B, D), (B, ...)."""
        x = self.feasible.x
        return self.feasible.clamp(x + (self.scale * offset).view_as(x))

    def length(self, point: Tensor) -> Tensor:
        """How far inputs (B, ...) are from the clean ones, (B,), as :func:`distance`."""
        return distance(self.feasible, point, self.scale)


MinState = TypeVar("MinState", bound=MinimumNormState)


@dataclass(frozen=True)
class MinimumNormAttack(Attack[MinState]):
    """An attack that looks for the nearest adversarial example.

    Called by itself it goes on to the end; ``x_adv`` is the nearest point that was misclassified (an input that is so without
    an attack is its own), or the clean input, and ``success`` whether there was any. The threat model gives norm, box and
    frozen features; ε counts only where there is one for each feature, for their proportions. In an evaluation an example is
    broken, and leaves, at the first misclassified point within ε.

    Attributes:
        within_eps: whether only points within ε count; set by an evaluation.
        loss: what is above 0 where an input is misclassified, and rises towards there.
    """

    within_eps: bool = field(default=False, kw_only=True)
    loss: LossLike = field(default="cw", kw_only=True)
    confidence = math.inf  # so that the margin has a slope where an input is misclassified, too

    @property
    def stops_at_success(self) -> bool:  # type: ignore[override]
        """Only where points within ε are all that is wanted."""
        return self.within_eps

    @property
    def needs_clean_logits(self) -> bool:  # type: ignore[override]
        """To know which inputs are misclassified without an attack; by itself, the first look says so."""
        return self.within_eps

    def adapted(
        self, threat: ThreatModel, n_classes: int, goal: AttackLoss = GOAL, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack for an evaluation, to which only points within ε count."""
        return super(MinimumNormAttack, replace(self, within_eps=True)).adapted(threat, n_classes, goal, surrogate)

    def start(self, inputs: AttackInputs) -> dict[str, Any]:
        """Return the fields of :class:`MinimumNormState` at the clean input, or, in restarts, at a random point of ε/2."""
        feasible, x = inputs.feasible, inputs.feasible.x
        scale = proportions(feasible)
        free = scale > 0
        low, high = (
            torch.where(free, ((bound - x).flatten(1) / torch.where(free, scale, 1.0)).clamp(-_FAR, _FAR), 0.0)
            for bound in (feasible.low, feasible.high)
        )
        low, high = low.clamp_max(0), high.clamp_min(0)
        width = high - low
        unit = torch.where(width < _FAR, width, 0.0).amax(1)
        offset = torch.zeros_like(low)
        if self.restarts > 1:
            far = (feasible.random_far(inputs.rng, inputs.tag) - x).flatten(1)
            offset = where_rows(inputs.run > 0, torch.where(free, 0.5 * far / torch.where(free, scale, 1.0), 0.0), offset)
        return {
            **initial_state(inputs), "offset": offset, "low": low, "high": high, "scale": scale,
            "unit": torch.where(unit > 0, unit, 1.0), "nearest": torch.full_like(unit, torch.inf),
        }  # fmt: skip

    def note(self, state: MinimumNormState, point: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Note a look at points (B, ...) in the box; returns which are misclassified and how far they are, (B,) each."""
        wrong, length = state.criterion(logits, state.y), state.length(point)
        state.nearest = torch.where(wrong, torch.minimum(state.nearest, length), state.nearest)
        counts = wrong & state.feasible.contains(point) if self.within_eps else wrong
        state.offer(point, logits, torch.where(counts, -length, -torch.inf), counts)
        return wrong, length

    def annealed(self, state: MinimumNormState, first: float, last: float) -> Tensor:
        """Go from the first value to the last along a cosine over the steps of a run, (B,)."""
        turn = (state.step - 1).to(state.unit.dtype) * (math.pi / self.steps)
        return last + (first - last) * (1 + turn.cos()) / 2


def proportions(feasible: FeasibleSet) -> Tensor:
    """ε of each feature as a part of the largest, (B, D); in L0, where there is one ε, widths of the box. 0 where frozen."""
    radius = feasible.radius.expand(feasible.x.shape).flatten(1)
    if feasible.norm.p == 0:
        return radius
    return radius / radius.amax(1, keepdim=True).clamp_min(torch.finfo(radius.dtype).tiny)


def distance(feasible: FeasibleSet, point: Tensor, scale: Tensor) -> Tensor:
    """How far points (B, ...) are from x, (B,), in units of the input along the feature with the largest ε.

    ``scale`` is that of :func:`proportions`; what changes in frozen features is left out.
    """
    change, free = (point - feasible.x).flatten(1), scale > 0
    return feasible.norm.length(torch.where(free, change / torch.where(free, scale, 1.0), 0.0))


def unit_slope(grad: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to offsets, (B, D), of one to inputs (B, ...); 0 where frozen."""
    return grad.flatten(1) * scale


def normalised(slope: Tensor) -> Tensor:
    """Slopes (B, D) at L2 length 1, or 0 where they are 0; of the smallest numbers too."""
    peak = slope / slope.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    unit: Tensor = peak / peak.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit
