"""APGD for L1 (Croce and Hein 2021, "Mind the box"): sparse steps, whose sparsity adapts, in the ball cut with the box."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.apgd import APGDConfig
from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh, where_rows
from hauberk.attacks.targets import pick_target
from hauberk.objectives.functional import fooled, make_loss
from hauberk.threat import FeasibleSet
from hauberk.threat.projections import onto_l1

SHRINK = 1.5  # of step size and support
LEAST_STEP = 0.1  # of the present radius
STILL_SPARSER = 0.95
_WIDEST = 3.0  # radius in ε that a search begins with
FIRST_SUPPORT = 0.2  # share of the coordinates in the first step, where there is no schedule of radii


@dataclass(frozen=True)
class APGDL1(APGDConfig):
    """APGD in L1, with AutoAttack's numbers; see :func:`hauberk.attacks.apgd`.

    Attributes as in :class:`APGDConfig`, and:
        wide: begin with 3ε and 2ε for 30 % of the steps each, as AutoAttack does in L1; only points within ε count.
    """

    wide: bool = True
    stride = 4

    @property
    def length(self) -> int:
        """Looks in a turn: one more than steps, for each radius."""
        return len(self._plan)

    def begin(self, task: Task) -> "APGDL1State":
        """Draw the starts: a normal draw as wide as the box, projected."""
        region, x = task.region, task.region.x
        lowest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        width = (region.high - region.low).nan_to_num(posinf=1.0)
        start = (task.rng.normal(x, task.tag) * width / region.scale).flatten(1)
        ones = torch.ones_like(lowest)
        return APGDL1State(
            *fresh(task),
            target=pick_target(task, self.loss, self.targets),
            offset=start,
            grad=torch.zeros_like(start),
            step=ones,
            support=ones,
            nonzero=ones,
            high_offset=start,
            high_grad=torch.zeros_like(start),
            high_loss=lowest,
        )

    def advance(self, rows: "APGDL1State", passes: ModelQueries, clock: Clock) -> None:
        """Step, look, and adapt steps and sparsity; offsets are in units of ε."""
        region = rows.region
        low, high = (_in_eps(region, side) for side in (region.low, region.high))
        plan = torch.from_numpy(self._plan[np.minimum(clock, self.length - 1)]).to(rows.y.device)
        radius, first, check = plan[:, 0].to(low.dtype)[:, None], plan[:, 1] > 0, plan[:, 2] > 0
        begun = _onto(rows.high_offset, radius, low, high)
        self._begin_radius(rows, first, begun)
        ahead = _onto(rows.offset + radius * rows.step[:, None] * _sparse_direction(rows), radius, low, high)
        moved = where_rows(first, begun, ahead)
        point = region.x + moved.view_as(region.x) * region.radius
        loss, grad = self._look(rows, point, passes, counts=radius[:, 0] <= 1)
        rows.offset = moved
        rows.grad = (grad * region.radius).flatten(1)
        higher = loss > rows.high_loss
        rows.high_offset = where_rows(higher, moved, rows.high_offset)
        rows.high_grad = where_rows(higher, rows.grad, rows.high_grad)
        rows.high_loss = torch.where(higher, loss, rows.high_loss)
        _check(rows, check)

    def _begin_radius(self, rows: "APGDL1State", first: Tensor, begun: Tensor) -> None:
        dims = begun.shape[1]
        nonzero = (begun != 0).sum(1).to(begun.dtype)
        support = nonzero / dims / SHRINK if self.wide else torch.full_like(nonzero, FIRST_SUPPORT)
        rows.offset = where_rows(first, begun, rows.offset)
        rows.step = torch.where(first, 1.0, rows.step)
        rows.support = torch.where(first, support, rows.support)
        rows.nonzero = torch.where(first, nonzero if self.wide else torch.full_like(nonzero, dims), rows.nonzero)
        rows.high_loss = torch.where(first, -torch.inf, rows.high_loss)

    def _look(self, rows: "APGDL1State", point: Tensor, passes: ModelQueries, counts: Tensor) -> tuple[Tensor, Tensor]:
        chosen = make_loss(self.loss)
        logits, loss, grad = passes.gradient(point, lambda z: chosen(z, rows.y, rows.target))
        loss = loss.to(point.dtype)
        inside = rows.region.project(point)  # mends rounding only, where the point counts
        wrong = fooled(logits, rows.y, self.evading)
        rows.offer(inside, logits, torch.where(counts, loss, -torch.inf), wrong & counts)
        return loss, grad

    @cached_property
    def _plan(self) -> np.ndarray:
        """For each tick: radius in ε, is it the first look of its radius, is it a checkpoint."""
        part = math.ceil(0.3 * self.steps)
        stages = [(_WIDEST, part), (2.0, part), (1.0, self.steps - 2 * part)] if self.wide else [(1.0, self.steps)]
        plan = []
        for radius, steps in stages:
            interval = max(int(0.04 * steps), 1)
            for i in range(steps + 1):
                plan.append((radius, i == 0, i > 0 and i % interval == 0))
        return np.array(plan, dtype=np.float64)


@dataclass
class APGDL1State(Rows):
    """L1-APGD under way; offsets from the clean input in units of ε, (B, D)."""

    target: Tensor
    offset: Tensor
    grad: Tensor
    step: Tensor  # in units of the present radius
    support: Tensor  # share of the coordinates that a step moves
    nonzero: Tensor  # how many coordinates the best point had moved at the last checkpoint
    high_offset: Tensor
    high_grad: Tensor
    high_loss: Tensor


def _in_eps(region: FeasibleSet, side: Tensor) -> Tensor:
    """How far a side of the box is, in units of ε, (B, D): 0 where frozen, and no further than any radius, if it is open."""
    return torch.where(region.radius > 0, (side - region.x) / region.scale, 0.0).clamp(-_WIDEST, _WIDEST).flatten(1)


def _onto(offset: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return radius * onto_l1(offset / radius, low / radius, high / radius)


def _sparse_direction(rows: APGDL1State) -> Tensor:
    """A step of length 1, spread over the coordinates where the gradient is largest."""
    size = rows.grad.abs()
    dims = size.shape[1]
    place = ((1 - rows.support) * dims).clamp(0, dims - 1).long()
    least = size.sort(dim=1).values.gather(1, place[:, None])
    sign = rows.grad.sign() * (size >= least)
    return sign / (sign.abs().sum(1, keepdim=True) + 1e-10)


def _check(rows: APGDL1State, check: Tensor) -> None:
    """Where the best point has become much sparser: large steps again, from there; otherwise smaller steps."""
    moved = (rows.high_offset != 0).sum(1).to(rows.step.dtype)
    sparser = moved / rows.nonzero.clamp_min(1) < STILL_SPARSER
    step = torch.where(sparser, 1.0, rows.step / SHRINK).clamp(LEAST_STEP, 1.0)
    rows.step = torch.where(check, step, rows.step)
    rows.support = torch.where(check, moved / rows.offset.shape[1] / SHRINK, rows.support)
    rows.nonzero = torch.where(check, moved, rows.nonzero)
    back = check & sparser
    rows.offset = where_rows(back, rows.high_offset, rows.offset)
    rows.grad = where_rows(back, rows.high_grad, rows.grad)
