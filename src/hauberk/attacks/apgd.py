"""APGD: projected gradient ascent that chooses its step sizes by itself (Croce and Hein 2020)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh, replace_rows, where_rows
from hauberk.attacks.targets import count_targets, pick_target
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import make_loss
from hauberk.threat import FeasibleSet

RHO = 0.75  # share of rising steps below which a step size is halved
MOMENTUM = 0.75
FIRST_STEP = 2.0  # times ε


@dataclass(frozen=True)
class APGDConfig:
    """What an APGD maximises, how long, and from how many starts; the defaults are AutoAttack's.

    Attributes:
        steps: iterations of each start.
        loss: "ce", "dlr", "cw", "evade"; or, with a target in turn, "ce-targeted", "cw-targeted", "dlr-targeted",
            "evade-targeted".
        targets: how many of the most likely wrong classes are targets in turn.
        restarts: independent starts, for each target.
    """

    steps: int = 100
    loss: str = "ce"
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 1:
            numbers = f"{self.steps}, {self.restarts} and {self.targets}"
            raise UserError(f"apgd needs at least 1 step, restart and target, got {numbers}")
        make_loss(self.loss)

    @property
    def evading(self) -> bool:
        """Whether the model's last output is a class of adversarial inputs."""
        return self.loss.startswith("evade")

    def turns(self, classes: int) -> int:
        """Starts, times targets."""
        return self.restarts * count_targets(self.loss, self.targets, classes)


@dataclass(frozen=True)
class APGD(APGDConfig):
    """APGD in L∞ and L2, with AutoAttack's numbers; see :func:`hauberk.attacks.apgd`.

    Attributes as in :class:`APGDConfig`.
    """

    stride = 4

    @property
    def length(self) -> int:
        """Looks in a turn."""
        return self.steps + 1

    def begin(self, task: Task) -> "APGDState":
        """Draw the starts."""
        x = task.region.x
        start = far_start(task.region, task.rng, task.tag)
        step = FIRST_STEP * torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device) * task.region.radius
        lowest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        yes = torch.ones_like(task.y, dtype=torch.bool)
        nothing = torch.zeros_like(x)
        return APGDState(
            *fresh(task),
            target=pick_target(task, self.loss, self.targets),
            point=start,
            previous=start,
            grad=nothing,
            loss=lowest,
            step=step,
            high_point=start,
            high_grad=nothing,
            high_loss=lowest,
            rises=torch.zeros_like(task.y) - 1,  # the start itself is no rise
            reduced=yes,
            high_before=lowest,
        )

    def advance(self, rows: "APGDState", passes: ModelQueries, clock: Clock) -> None:
        """Step (the first look is at the start, where there is no gradient yet), look, and adapt the step sizes."""
        region, point = rows.region, rows.point
        share = where_rows(rows.tick > 1, torch.full_like(rows.step, MOMENTUM), torch.ones_like(rows.step))
        ahead = region.step(point, rows.grad, rows.step)
        moved = region.project(point + share * (ahead - point) + (1 - share) * (point - rows.previous))
        clock = np.minimum(clock, self.steps)
        loss, grad = self._look(rows, moved, passes, last=bool((clock == self.steps).all()))
        rows.rises = rows.rises + (loss > rows.loss)
        rows.previous, rows.point, rows.grad, rows.loss = point, moved, grad, loss
        higher = loss > rows.high_loss
        rows.high_point = replace_rows(higher, moved, rows.high_point)
        rows.high_grad = replace_rows(higher, grad, rows.high_grad)
        rows.high_loss = torch.where(higher, loss, rows.high_loss)
        interval = self._intervals[clock]
        if interval.any():
            _checkpoint(rows, torch.from_numpy(interval).to(rows.y.device))

    def _look(self, rows: "APGDState", point: Tensor, passes: ModelQueries, last: bool) -> tuple[Tensor, Tensor]:
        chosen = make_loss(self.loss)
        if last:
            logits = passes.look(point)
            loss, grad = chosen(logits, rows.y, rows.target), torch.zeros_like(point)
        else:
            logits, loss, grad = passes.gradient(point, lambda z: chosen(z, rows.y, rows.target))
        loss = loss.to(point.dtype)
        rows.see(point, logits, loss, self.evading)
        return loss, grad

    @cached_property
    def _intervals(self) -> np.ndarray:
        """For each tick, the number of steps since the last checkpoint if it is one, otherwise 0."""
        table = np.zeros(self.length, dtype=np.int64)
        interval = max(int(0.22 * self.steps), 1)
        tick = interval
        while tick < self.steps:  # after the last step there is nothing to adapt
            table[tick] = interval
            interval = max(interval - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
            tick += interval
        return table


@dataclass
class APGDState(Rows):
    """APGD under way."""

    target: Tensor
    point: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    step: Tensor
    high_point: Tensor  # where the loss was highest
    high_grad: Tensor
    high_loss: Tensor
    rises: Tensor  # since the last checkpoint
    reduced: Tensor  # whether the last checkpoint halved the step
    high_before: Tensor  # highest loss at the last checkpoint


def _checkpoint(rows: APGDState, interval: Tensor) -> None:
    """Halve the step, and go back to the highest point, where progress has stalled; for rows whose interval is not 0."""
    here = interval > 0
    seldom = rows.rises <= RHO * interval
    no_better = ~rows.reduced & (rows.high_before >= rows.high_loss)
    stalled = here & (seldom | no_better)
    rows.step = where_rows(stalled, rows.step / 2, rows.step)
    rows.point = replace_rows(stalled, rows.high_point, rows.point)
    rows.grad = replace_rows(stalled, rows.high_grad, rows.grad)
    rows.reduced = torch.where(here, stalled, rows.reduced)
    rows.high_before = torch.where(here, rows.high_loss, rows.high_before)
    rows.rises = torch.where(here, 0, rows.rises)


def far_start(region: FeasibleSet, rng: ExampleRng, tag: int | Tensor) -> Tensor:
    """A random point with one coordinate at ε (L∞), or on the sphere (L2), as AutoAttack starts."""
    if region.norm == "Linf":
        draws = (2 * rng.uniform(region.x, tag) - 1).flatten(1)
        length = draws.abs().amax(1, keepdim=True)
    else:
        draws = rng.normal(region.x, tag).flatten(1) * (region.radius > 0).expand_as(region.x).flatten(1)
        length = draws.norm(dim=1, keepdim=True)
    direction = (draws / length.clamp_min(1e-12)).view_as(region.x)
    return region.project(region.x + region.radius * direction)
