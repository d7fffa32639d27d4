"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.base import Attack, as_function
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.attacks.square_windows import image_shape, pick_windows
from hauberk.attacks.state import AttackInputs, AttackState, initial_state, where_rows
from hauberk.core.errors import UserError
from hauberk.objectives.functional import ATTACK_LOSSES, fooled
from hauberk.threat import FeasibleSet, ThreatModel

_PROPOSALS = 2  # prepared for each pass in L∞: the first that changes anything is asked about


@dataclass(frozen=True)
class Square(Attack[AttackState]):
    """Square attack (Andriushchenko et al. 2020), as in AutoAttack: random search on the margin, forward passes only.

    Each query changes one random window, ever smaller, and keeps the change if the margin falls. Vectors are taken as images of
    one row, (B, H, W) as one channel. Each example has its own windows (in the official code a batch shares them), which can
    also touch the last row and column (there they cannot). In L∞, proposals that change nothing count as queries but cost
    no pass.

    Attributes:
        steps: queries; AutoAttack has 5,000.
        restarts: independent runs.
        has_reject_class: the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    steps: int = 5000
    restarts: int = 1
    has_reject_class: bool = False
    check_every = 20
    passes_per_step = 1
    uses_gradients = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"square needs at least 1 query and restart, got {self.steps} and {self.restarts}")

    @property
    def max_steps(self) -> int:
        """Looks in a run: the start and the queries."""
        return self.steps + 1

    def n_runs(self, n_classes: int) -> int:
        """Restarts."""
        return self.restarts

    def adapted(
        self, threat: ThreatModel, n_classes: int, has_reject_class: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack for a model with a class of adversarial inputs, or without."""
        return replace(self, has_reject_class=has_reject_class), ""

    def init(self, inputs: AttackInputs) -> AttackState:
        """Set up; the first look is at a pattern of stripes or tiles."""
        return AttackState(**initial_state(inputs))

    def step(self, state: AttackState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Ask the model about one change of each row.

        In L∞ a proposal often changes nothing, because the square has that sign already. Its answer is known: it counts as a
        query without a pass, and the next proposal takes its place.
        """
        fresh_rows = state.step == 0
        if state.feasible.norm.is_box:
            asked, passed_over = _flip(state, host_steps, (self.steps - state.step).clamp_min(0) * ~fresh_rows)
            state.step = state.step + passed_over
        else:
            asked = _move(state)
        if bool((host_steps == 0).any()):
            asked = where_rows(fresh_rows, _first(state), asked)
        logits = queries.logits(asked)
        loss = ATTACK_LOSSES["evade" if self.has_reject_class else "cw"].function(logits, state.y, None).to(asked.dtype)
        counts = state.step <= self.steps
        wrong = fooled(logits, state.y, self.has_reject_class) & counts
        state.offer(asked, logits, torch.where(counts, loss, -torch.inf), wrong)


def _first(state: AttackState) -> Tensor:
    """L∞: vertical stripes of ± ε; L2 and L1: 5 by 5 tiles of the pattern, of random signs."""
    feasible = state.feasible
    shape = image_shape(feasible.x)
    if feasible.norm.is_box:
        columns = feasible.x.new_empty(len(feasible.x), shape[0], 1, shape[2])
        up = state.rng.uniform(columns, state.tag) < 0.5
        return _corner(feasible, up.expand(-1, *shape))
    return _place(feasible, pick_windows(shape, feasible.norm).tiles(state.rng, state.tag, feasible.x))


def _draw(state: AttackState, ticks: Tensor) -> Tensor:
    """Uniform draws for each row's queries at ticks (B, P): (B · P, 5 + C)."""
    of = torch.arange(len(ticks), device=ticks.device).repeat_interleave(ticks.shape[1])
    like = state.best.new_empty(ticks.numel(), 5 + image_shape(state.best)[0])
    return state.rng.index_select(of).uniform(like, (state.tag[:, None] + ticks).flatten())


def _flip(state: AttackState, host_steps: np.ndarray, most: Tensor) -> tuple[Tensor, Tensor]:
    """L∞: a square at the corner that its draws say; the first of the next proposals that changes anything.

    most: how many proposals may be passed over, (B,). Returns the points, and how many were.
    """
    feasible, count = state.feasible, len(state.y)
    channels, *_ = shape = image_shape(state.best)
    windows = pick_windows(shape, state.feasible.norm).to(state.best.device)
    ticks = state.step[:, None] + torch.arange(_PROPOSALS, device=state.step.device)
    draws = _draw(state, ticks)
    size = windows.size_at(ticks.flatten() - 1)
    cells = windows.cells(draws[:, 0], draws[:, 1], size, windows.largest_from(int(host_steps.min()) - 1))
    cells = cells.view(count, 1, -1).expand(-1, channels, -1)
    best, upper, lower = (value.reshape(count, channels, -1) for value in (state.best, feasible.upper, feasible.lower))
    up = (draws[:, 5:] < 0.5).view(count, _PROPOSALS, channels).transpose(1, 2)
    by_proposal = (count, channels, _PROPOSALS, -1)
    corner = torch.where(up[..., None], upper.gather(2, cells).view(by_proposal), lower.gather(2, cells).view(by_proposal))
    changes = (best.gather(2, cells).view(by_proposal) != corner).any(3).any(1)
    changes[:, -1] = True  # the last is asked about in any case
    chosen = torch.minimum(changes.int().argmax(1), most)
    pick = chosen.view(-1, 1, 1, 1).expand(-1, channels, 1, corner.shape[3])
    place, value = (part.view(by_proposal).gather(2, pick).squeeze(2) for part in (cells, corner))
    return best.scatter(2, place, value).view_as(state.best), chosen


def _move(state: AttackState) -> Tensor:
    """L2, L1: mass moved from two windows into one of them, as a pattern."""
    feasible = state.feasible
    windows = pick_windows(image_shape(state.best), feasible.norm).to(state.best.device)
    draws = _draw(state, state.step[:, None])
    size = windows.size_at(state.step - 1)
    here, there = windows.mask(draws[:, 0], draws[:, 1], size), windows.mask(draws[:, 2], draws[:, 3], size)
    sign = torch.where(draws[:, 5:] < 0.5, 1.0, -1.0).to(feasible.x.dtype)[..., None, None]
    pattern = windows.pattern(draws[:, 0], draws[:, 1], size, draws[:, 4] < 0.5)[:, None] * sign
    return _place(feasible, _move_mass(_offsets(feasible, state.best), pattern, here[:, None], there[:, None], feasible))


def _move_mass(offset: Tensor, pattern: Tensor, here: Tensor, there: Tensor, feasible: FeasibleSet) -> Tensor:
    """Take what there is in two windows, and what is left of the budget, and lay it as the pattern into the first.

    offset: (B, C, H, W) in units of ε, pattern likewise, here and there: (B, 1, H, W) bool.
    """
    p = feasible.norm.p
    channels = offset.shape[1]

    def size(part: Tensor) -> Tensor:
        length: Tensor = part.flatten(2).norm(p=p, dim=2)
        return length[:, :, None, None]

    old = offset * here
    mixed = pattern + old / (size(old) + 1e-12)
    mixed = mixed / (size(mixed) + 1e-12)
    spent = offset.flatten(1).norm(p=p, dim=1)[:, None, None, None]
    window = size(offset * (here | there))
    if p == 2:
        budget = ((1 - spent**2).clamp_min(0) / channels + window**2).sqrt()
    else:
        budget = ((1 - spent).clamp_min(0) / channels + window) * channels
    return torch.where(here, mixed * budget, torch.where(there, 0.0, offset))


def _offsets(feasible: FeasibleSet, point: Tensor) -> Tensor:
    return ((point - feasible.x) / feasible.scale).view(-1, *image_shape(point))


def _place(feasible: FeasibleSet, offset: Tensor) -> Tensor:
    """Bring offsets in units of ε, (B, C, H, W), to the length ε (L2) or into the ball (L1), and into the box."""
    offset = offset.view_as(feasible.x)
    if feasible.norm.p == 1:
        return feasible.project(feasible.x + feasible.radius * offset)
    free = torch.where(feasible.radius > 0, offset, torch.zeros_like(offset))
    length = free.flatten(1).norm(dim=1).view(-1, *[1] * (offset.ndim - 1))
    point = feasible.x + feasible.radius * free / length.clamp_min(1e-12)
    return torch.minimum(torch.maximum(point, feasible.lower), feasible.upper)


def _corner(feasible: FeasibleSet, up: Tensor) -> Tensor:
    """The corner of the L∞ set on the side that ``up`` (broadcastable to (B, C, H, W)) says."""
    shape = image_shape(feasible.x)
    corner = torch.where(up, feasible.upper.view(-1, *shape), feasible.lower.view(-1, *shape))
    return corner.view_as(feasible.x)


square = as_function(Square, "square", "Square attack (Andriushchenko et al. 2020), as in AutoAttack.")
