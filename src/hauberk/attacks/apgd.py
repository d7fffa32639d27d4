"""APGD: projected gradient ascent that chooses its step sizes by itself (Croce and Hein 2020)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.apgd_l1 import APGDL1
from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack, MaximizingAttack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, AttackState, initial_state, replace_rows, where_rows
from hauberk.core.device import send
from hauberk.objectives.functional import LossLike
from hauberk.threat import ThreatModel, expand_to

RHO = 0.75  # fraction of rising steps below which a step size is halved
MOMENTUM = 0.75
FIRST_STEP = 2.0  # times ε


@dataclass(frozen=True)
class APGD(MaximizingAttack["APGDState"]):
    """Auto-PGD, as in AutoAttack (Croce and Hein 2020).

    ``z = Π(x^t + η·steepest ∇ℓ)``, ``x^{t+1} = Π(x^t + 0.75 (z - x^t) + 0.25 (x^t - x^{t-1}))``. The step η starts at 2ε; at
    checkpoints an example whose loss has risen too seldom, or not reached a new best, halves it and returns to its best point.
    In L1 (Croce and Hein 2021) steps are sparse, and 3ε, 2ε and ε are taken in turn.

    Two things differ from the official code: the L2 projection is onto the ball cut with the box exactly, and the first
    checkpoint compares with the loss of the start, where the code compares with 0.

    Attributes:
        steps: iterations of each start; AutoAttack has 100.
        loss: "ce"; "dlr"; or "dlr-targeted", which tries each of the ``targets`` most likely wrong classes in turn;
            "ce-targeted" and "cw-targeted" likewise; or a function of logits and labels.
        targets: how many; AutoAttack has 9, and 5 in L1. Fewer where there are fewer classes.
        restarts: independent starts (for each target); the examples that still stand go on.
    """

    steps: int = 100
    loss: LossLike = "ce"
    targets: int = 9
    restarts: int = 1

    def for_threat(self, threat: ThreatModel) -> Attack[Any]:
        """In L1 the sparse form."""
        super().for_threat(threat)
        return APGDL1(self.steps, self.loss, self.targets, self.restarts) if threat.norm.p == 1 else self

    @property
    def max_steps(self) -> int:
        """Looks in a run."""
        return self.steps + 1

    def init(self, inputs: AttackInputs) -> "APGDState":
        """Draw the starts."""
        feasible, x = inputs.feasible, inputs.feasible.x
        start = feasible.random_far(inputs.rng, inputs.tag)
        lowest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        return APGDState(
            **initial_state(inputs),
            target=inputs.reference(self.attack_loss, self.targets),
            point=start,
            previous=start,
            grad=torch.zeros_like(x),
            loss=lowest,
            step_size=FIRST_STEP * expand_to(torch.ones_like(lowest), x) * feasible.radius,
            high_point=start.clone(),  # on a CPU its rows are replaced in place
            high_grad=torch.zeros_like(x),
            high_loss=lowest,
            rises=torch.zeros_like(inputs.run) - 1,  # the start itself is no rise
            reduced=torch.ones_like(inputs.run, dtype=torch.bool),
            high_before=lowest,
        )

    def step(self, state: "APGDState", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Step (the first look is at the start, where there is no gradient yet), look, and adapt the step sizes."""
        feasible, point, sizes = state.feasible, state.point, state.step_size
        follow = where_rows(state.step > 1, torch.full_like(sizes, MOMENTUM), torch.ones_like(sizes))
        ahead = feasible.step(point, state.grad, sizes)
        moved = feasible.project(point.lerp(ahead, follow).addcmul_(1 - follow, point - state.previous))
        host_steps = np.minimum(host_steps, self.steps)
        if bool((host_steps == self.steps).all()):  # nobody steps any more
            logits, grad = queries.logits(moved), torch.zeros_like(moved)
            loss = self.attack_loss(logits, state.y, state.target)
        else:
            logits, loss, grad = queries.value_and_grad(moved, self.attack_loss, state.y, state.target)
        loss = loss.to(moved.dtype)
        state.observe(moved, logits, loss)
        state.rises = state.rises + (loss > state.loss)
        state.previous, state.point, state.grad, state.loss = point, moved, grad, loss
        higher = loss > state.high_loss
        state.high_point = replace_rows(higher, moved, state.high_point)
        state.high_grad = replace_rows(higher, grad, state.high_grad)
        state.high_loss = torch.where(higher, loss, state.high_loss)
        interval = self._intervals[host_steps]
        if interval.any():
            _checkpoint(state, send(torch.from_numpy(interval), state.y.device))

    @cached_property
    def _intervals(self) -> np.ndarray:
        """For each step, the number of steps since the last checkpoint if it is one, otherwise 0."""
        table = np.zeros(self.max_steps, dtype=np.int64)
        interval = max(int(0.22 * self.steps), 1)
        step = interval
        while step < self.steps:  # after the last step there is nothing to adapt
            table[step] = interval
            interval = max(interval - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
            step += interval
        return table


@dataclass
class APGDState(AttackState):
    """APGD under way."""

    target: Tensor
    point: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    step_size: Tensor
    high_point: Tensor  # where the loss was highest
    high_grad: Tensor
    high_loss: Tensor
    rises: Tensor  # since the last checkpoint
    reduced: Tensor  # whether the last checkpoint halved the step
    high_before: Tensor  # highest loss at the last checkpoint


def _checkpoint(state: APGDState, interval: Tensor) -> None:
    """Halve the step, and go back to the highest point, where progress has stalled; for rows whose interval is not 0."""
    here = interval > 0
    seldom = state.rises <= RHO * interval
    no_better = ~state.reduced & (state.high_before >= state.high_loss)
    stalled = here & (seldom | no_better)
    state.step_size = where_rows(stalled, state.step_size / 2, state.step_size)
    state.point = replace_rows(stalled, state.high_point, state.point)
    state.grad = replace_rows(stalled, state.high_grad, state.grad)
    state.reduced = torch.where(here, stalled, state.reduced)
    state.high_before = torch.where(here, state.high_loss, state.high_before)
    state.rises = torch.where(here, 0, state.rises)


apgd = as_function(APGD, "apgd", "Auto-PGD (Croce and Hein 2020), as in AutoAttack.")
