"""APGD for L1 (Croce and Hein 2021, "Mind the box"): sparse steps, whose sparsity adapts, in the ball cut with the box."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.base import MaximizingAttack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, AttackState, initial_state, replace_rows, where_rows
from hauberk.core.device import send
from hauberk.objectives.functional import LossLike
from hauberk.threat import FeasibleSet
from hauberk.threat.projections import project_l1_box

SHRINK = 1.5  # of step size and support
LEAST_STEP = 0.1  # of the present radius
STILL_SPARSER = 0.95
_WIDEST = 3.0  # radius in ε that a search begins with
_FIRST, _CHECK = 1, 2  # columns of the plan


@dataclass(frozen=True)
class APGDL1(MaximizingAttack["APGDL1State"]):
    """APGD in L1, with AutoAttack's numbers; see :func:`hauberk.attacks.apgd`.

    It begins with 3ε and 2ε for 30 % of the steps each; only points within ε count.

    Attributes:
        steps: iterations of each start, over all radii.
        loss: as in :class:`hauberk.attacks.APGD`.
        targets: how many classes to aim at, for a loss with a target.
        restarts: independent starts, for each target.
    """

    steps: int = 100
    loss: LossLike = "ce"
    targets: int = 9
    restarts: int = 1

    @property
    def max_steps(self) -> int:
        """Looks in a run: one more than steps, for each radius."""
        return len(self._plan)

    def init(self, inputs: AttackInputs) -> "APGDL1State":
        """Draw the starts: a normal draw as wide as the box, projected."""
        feasible, x = inputs.feasible, inputs.feasible.x
        lowest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        width = (feasible.high - feasible.low).nan_to_num(posinf=1.0)
        start = (inputs.rng.normal(x, inputs.tag) * width / feasible.scale).flatten(1)
        ones = torch.ones_like(lowest)
        return APGDL1State(
            **initial_state(inputs),
            target=inputs.reference(self.attack_loss, self.targets),
            below=_in_eps(feasible, feasible.low),
            above=_in_eps(feasible, feasible.high),
            offset=start,
            grad=torch.zeros_like(start),
            step_size=ones,
            support=ones,
            nonzero=ones,
            high_offset=start.clone(),  # on a CPU its rows are replaced in place
            high_grad=torch.zeros_like(start),
            high_loss=lowest,
        )

    def step(self, state: "APGDL1State", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Step, look, and adapt steps and sparsity; offsets are in units of ε."""
        feasible, plan = state.feasible, self._plan[np.minimum(host_steps, self.max_steps - 1)]
        radius, first, check = send(torch.from_numpy(plan), state.y.device).unbind(1)
        radius, first, check = radius.to(state.offset.dtype)[:, None], first > 0, check > 0
        if plan[:, _FIRST].any():
            begun = project_l1_box(state.high_offset, state.below, state.above, radius)
            _begin_radius(state, first, begun)
        moved = state.offset
        if not plan[:, _FIRST].all():
            ahead = state.offset.addcmul(radius * state.step_size[:, None], _sparse_direction(state))
            moved = project_l1_box(ahead, state.below, state.above, radius)
            moved = where_rows(first, state.offset, moved) if plan[:, _FIRST].any() else moved
        point = feasible.moved_by(moved)
        logits, loss, grad = queries.value_and_grad(point, self.attack_loss, state.y, state.target)
        loss, counts = loss.to(point.dtype), radius[:, 0] <= 1
        wrong = state.criterion(logits, state.y) & counts
        state.offer(point, logits, torch.where(counts, loss, -torch.inf), wrong)
        state.offset = moved
        state.grad = (grad * feasible.radius).flatten(1)
        higher = loss > state.high_loss
        state.high_offset = replace_rows(higher, moved, state.high_offset)
        state.high_grad = replace_rows(higher, state.grad, state.high_grad)
        state.high_loss = torch.where(higher, loss, state.high_loss)
        if plan[:, _CHECK].any():
            _check(state, check)

    @cached_property
    def _plan(self) -> np.ndarray:
        """For each step: radius in ε, is it the first look of its radius, is it a checkpoint."""
        part = math.ceil(0.3 * self.steps)
        plan = []
        for radius, steps in ((_WIDEST, part), (2.0, part), (1.0, self.steps - 2 * part)):
            interval = max(int(0.04 * steps), 1)
            for i in range(steps + 1):
                plan.append((radius, i == 0, i > 0 and i % interval == 0))
        return np.array(plan, dtype=np.float64)


@dataclass
class APGDL1State(AttackState):
    """L1-APGD under way; offsets from the clean input in units of ε, (B, D)."""

    target: Tensor
    below: Tensor  # bounds of the box
    above: Tensor
    offset: Tensor
    grad: Tensor
    step_size: Tensor  # in units of the present radius
    support: Tensor  # fraction of the coordinates that a step moves
    nonzero: Tensor  # how many coordinates the best point had moved at the last checkpoint
    high_offset: Tensor
    high_grad: Tensor
    high_loss: Tensor


def _in_eps(feasible: FeasibleSet, side: Tensor) -> Tensor:
    """How far a side of the box is, in units of ε, (B, D): 0 where frozen, and no further than any radius, if it is open."""
    return torch.where(feasible.radius > 0, (side - feasible.x) / feasible.scale, 0.0).clamp(-_WIDEST, _WIDEST).flatten(1)


def _begin_radius(state: APGDL1State, first: Tensor, begun: Tensor) -> None:
    """Where the radius is new, (B,), start from the best point, with steps as long as the radius and sparse as that point."""
    nonzero = (begun != 0).sum(1).to(begun.dtype)
    state.offset = where_rows(first, begun, state.offset)
    state.step_size = torch.where(first, 1.0, state.step_size)
    state.support = torch.where(first, nonzero / begun.shape[1] / SHRINK, state.support)
    state.nonzero = torch.where(first, nonzero, state.nonzero)
    state.high_loss = torch.where(first, -torch.inf, state.high_loss)


def _sparse_direction(state: APGDL1State) -> Tensor:
    """A step of length 1, spread over the coordinates where the gradient is largest."""
    size = state.grad.abs()
    dims = size.shape[1]
    place = ((1 - state.support) * dims).clamp(0, dims - 1).long()
    least = _sorted(size).gather(1, place[:, None])
    chosen = (size - least).sign_().add_(1).clamp_max_(1)  # on a CPU faster than comparing
    sign = chosen.mul_(state.grad.sign())
    return sign.div_(torch.linalg.vector_norm(sign, ord=1, dim=1, keepdim=True) + 1e-10)


def _sorted(values: Tensor) -> Tensor:
    """Sort rows (B, D); on a CPU NumPy does it ten times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _check(state: APGDL1State, check: Tensor) -> None:
    """Where the best point has become much sparser: large steps again, from there; otherwise smaller steps."""
    moved = (state.high_offset != 0).sum(1).to(state.step_size.dtype)
    sparser = moved / state.nonzero.clamp_min(1) < STILL_SPARSER
    step = torch.where(sparser, 1.0, state.step_size / SHRINK).clamp(LEAST_STEP, 1.0)
    state.step_size = torch.where(check, step, state.step_size)
    state.support = torch.where(check, moved / state.offset.shape[1] / SHRINK, state.support)
    state.nonzero = torch.where(check, moved, state.nonzero)
    back = check & sparser
    state.offset = where_rows(back, state.high_offset, state.offset)
    state.grad = where_rows(back, state.high_grad, state.grad)
