"""The L2 attack of Carlini and Wagner (2017), in full."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack
from hauberk.attacks.minimum_norm.base import MinimumNormAttack, MinimumNormState, unit_slope
from hauberk.attacks.minimum_norm.sigma_zero import FIRST_MEMORY, SECOND_MEMORY
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs
from hauberk.core.errors import UserError
from hauberk.objectives.functional import AttackLoss, find_attack_loss
from hauberk.threat import Norm, ThreatModel

_INSIDE = 1 - 1e-6  # times the place in the box, so that its inverse tanh is finite
_UNBOUNDED = 1e9  # a constant that nothing has been found with
_STALLED = 0.9999  # times the loss before
_LOOKS_BACK = 10  # times in a search


@dataclass(frozen=True)
class CWL2(MinimumNormAttack["CWL2State"]):
    """The L2 attack of Carlini and Wagner (2017), untargeted.

    Adam descends ``‖δ‖² + c · max(z_y - max_{k≠y} z_k + κ, 0)`` over w, with ``x + δ = tanh(w)`` scaled to the box. The
    constant c of each example is searched for: halfway between the largest with which nothing was found and the smallest with
    which something was, or ten times as large where nothing was found yet. The box must have finite bounds.

    Attributes:
        steps: most steps of a search with one constant; the code has 10,000, the paper's figures come from these.
        searches: how many constants are tried.
        step_size: Adam's.
        first_constant: c of the first search.
        confidence: κ: points count only where their margin is beyond it.
        abort_early: whether a search ends where a tenth of its steps has not brought the loss of the example down.
        within_eps: whether only points within ε count, as in an evaluation, which sets it.
    """

    steps: int = 10_000
    searches: int = 9
    step_size: float = 0.01
    first_constant: float = 1e-3
    confidence: float = 0.0
    abort_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.searches < 1 or self.confidence < 0 or not (self.step_size > 0 and self.first_constant > 0):
            raise UserError("CWL2 needs at least 1 search, a confidence of at least 0, and a positive step and constant")

    needs_clean_logits = True  # the first look is beside the input by the rounding of tanh

    @cached_property
    def attack_loss(self) -> AttackLoss:
        """The loss without a limit: a margin that ended at κ could not say which points lie beyond."""
        return find_attack_loss(self.loss, math.inf)

    @property
    def max_steps(self) -> int:
        """Looks over all searches."""
        return self.searches * self.steps

    def defined_in(self, norm: Norm) -> bool:
        """In L2."""
        return norm.p == 2

    def for_threat(self, threat: ThreatModel) -> Attack[Any]:
        """The attack itself; a UserError where the box has no bounds, too."""
        if not all(bool(torch.as_tensor(bound).isfinite().all()) for bound in (threat.low, threat.high)):
            raise UserError("CWL2 searches in the whole box, which must have finite bounds; give low= and high=, or use DDN")
        return super().for_threat(threat)

    def init(self, inputs: AttackInputs) -> "CWL2State":
        """Begin the first search at the clean input."""
        feasible = inputs.feasible
        middle, half = (feasible.high + feasible.low) / 2, (feasible.high - feasible.low) / 2
        place = torch.where(half > 0, (feasible.x - middle) / torch.where(half > 0, half, 1.0), 0.0)
        start = self.start(inputs)
        zero, one = torch.zeros_like(start["offset"]), torch.ones_like(start["unit"])
        assert inputs.clean_logits is not None  # needs_clean_logits
        state = CWL2State(
            **start, origin=(place * _INSIDE).clamp(-_INSIDE, _INSIDE).atanh().flatten(1), first=zero, second=zero,
            looks=torch.zeros_like(inputs.y), constant=self.first_constant * one, lower=0 * one, upper=torch.inf * one,
            succeeded=torch.zeros_like(inputs.y, dtype=torch.bool), loss_before=torch.inf * one,
        )  # fmt: skip
        self.note(state, feasible.x, inputs.clean_logits)
        state.step = state.step - 1  # that was no look of this attack
        return state

    def step(self, state: "CWL2State", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, take a step of Adam, and go on to the next constant where a search has ended."""
        feasible, free = state.feasible, state.scale > 0
        middle, half = (feasible.high + feasible.low) / 2, (feasible.high - feasible.low) / 2
        curve = torch.tanh(state.origin + state.offset)
        inside = feasible.clamp(middle + half * curve.view_as(feasible.x))
        point = torch.where(free.view_as(inside), inside, feasible.x)
        logits, value, grad = queries.value_and_grad(point, self.attack_loss, state.y)
        value = value.to(state.unit.dtype)
        sure = value > self.confidence if self.confidence else None
        wrong, _ = self.note(state, point, logits) if sure is None else self._note_sure(state, point, logits, sure)
        state.succeeded = state.succeeded | wrong
        change = torch.where(free, (point - feasible.x).flatten(1) / torch.where(free, state.scale, 1.0), 0.0)
        loss = change.square().sum(1) + state.constant * (self.confidence - value).clamp_min(0)
        pull = unit_slope(grad, state.scale) * (state.constant * (value < self.confidence))[:, None]
        slope = (2 * change - pull) / torch.where(free, state.scale, 1.0)  # with respect to the input
        slope = slope * free * half.expand(point.shape).flatten(1) * (1 - curve.square())  # and to w
        state.first = torch.lerp(slope, state.first, FIRST_MEMORY)
        state.second = torch.lerp(slope.square(), state.second, SECOND_MEMORY)
        state.looks = state.looks + 1
        looks = state.looks[:, None].to(slope.dtype)
        mean, spread = state.first / (1 - FIRST_MEMORY**looks), state.second / (1 - SECOND_MEMORY**looks)
        state.offset = state.offset - self.step_size * mean / (spread.sqrt() + 1e-8)
        self._next_constant(state, loss)

    def _note_sure(self, state: "CWL2State", point: Tensor, logits: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
        """Note a look, but count only points beyond the confidence: the others are shown with the clean logits' verdict."""
        own = torch.nn.functional.one_hot(state.y, logits.shape[1]).bool()
        shown = torch.where(own & ~sure[:, None], logits.amax(1, keepdim=True) + 1, logits)
        return self.note(state, point, shown)

    def _next_constant(self, state: "CWL2State", loss: Tensor) -> None:
        """Choose the next constant and begin anew, where a search has had its steps or stalls."""
        every = max(self.steps // _LOOKS_BACK, 1)
        looks_back = (state.looks - 1) % every == 0
        stalled = looks_back & (loss > _STALLED * state.loss_before)
        state.loss_before = torch.where(looks_back, loss, state.loss_before)
        over = state.looks >= self.steps
        if self.abort_early:
            state.step = torch.where(stalled & ~over, state.step + self.steps - state.looks, state.step)
            over = over | stalled
        lower = torch.where(state.succeeded, state.lower, torch.maximum(state.lower, state.constant))
        upper = torch.where(state.succeeded, torch.minimum(state.upper, state.constant), state.upper)
        between = torch.where(upper < _UNBOUNDED, (lower + upper) / 2, torch.where(state.succeeded, state.constant, 10 * lower))
        state.constant = torch.where(over, between, state.constant)
        state.lower, state.upper = torch.where(over, lower, state.lower), torch.where(over, upper, state.upper)
        state.succeeded, state.loss_before = state.succeeded & ~over, torch.where(over, torch.inf, state.loss_before)
        state.looks = torch.where(over, 0, state.looks)
        for name in ("offset", "first", "second"):
            setattr(state, name, torch.where(over[:, None], 0.0, getattr(state, name)))

    def finished(self, state: "CWL2State") -> Tensor:
        """Those whose searches are over, which is sooner where they stall."""
        return (state.found & self.within_eps) | (state.step >= self.max_steps)


@dataclass
class CWL2State(MinimumNormState):
    """CW-L2 under way; ``offset`` is what is added to the inverse tanh of the input."""

    origin: Tensor  # (B, D), inverse tanh of the input's place in the box
    first: Tensor  # Adam's mean of the slopes, (B, D)
    second: Tensor  # and of their squares
    looks: Tensor  # of this search, (B,)
    constant: Tensor  # c, (B,)
    lower: Tensor  # the largest c with which nothing was found
    upper: Tensor  # the smallest with which something was
    succeeded: Tensor  # whether this search has found something
    loss_before: Tensor  # a tenth of the steps ago


cw_l2 = as_function(
    CWL2, "cw_l2", "The L2 attack of Carlini and Wagner (2017), in full: the nearest adversarial example in L2."
)
