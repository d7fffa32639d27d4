"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.base import Attack, as_function
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.attacks.square_windows import image_shape, pick_windows
from hauberk.attacks.state import AttackState, where_rows
from hauberk.objectives.functional import ATTACK_LOSSES, fooled
from hauberk.threat import FeasibleSet, expand_to
from hauberk.threat.norms import Norm

_MOST_CELLS = 64  # L∞: a proposal in a larger window is asked about without a look at whether it changes anything


@dataclass(frozen=True)
class Square(Attack[AttackState]):
    """Square attack (Andriushchenko et al. 2020), as in AutoAttack: random search on the margin, forward passes only.

    Each query changes one random window, ever smaller, and keeps the change if the margin falls. Vectors are taken as images of
    one row, (B, H, W) as one channel. Each example has its own windows (in the official code a batch shares them). As there,
    windows smaller than an image never touch its last row and column. In L∞, proposals that change nothing count as queries
    but cost no pass.

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

    @property
    def max_steps(self) -> int:
        """Looks in a run: the start and the queries."""
        return self.steps + 1

    def step(self, state: AttackState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Ask the model about one change of each row; in L∞ the next proposal takes the place of one that changes nothing."""
        propose = _flip if state.feasible.norm.is_box else _move
        begun = state.step
        asked = propose(state, int(host_steps.min()) - 1, self.steps)
        if bool((host_steps == 0).any()):
            asked = where_rows(begun == 0, _first(state), asked)
        logits = queries.logits(asked)
        loss = ATTACK_LOSSES["evade" if self.has_reject_class else "cw"](logits, state.y)
        wrong = fooled(logits, state.y, self.has_reject_class)
        state.offer(asked, logits, loss, wrong, allowed=state.step <= self.steps)


def _first(state: AttackState) -> Tensor:
    """L∞: vertical stripes of ± ε; L2 and L1: 5 by 5 tiles of the pattern, of random signs, some turned."""
    feasible = state.feasible
    shape = image_shape(feasible.x)
    if feasible.norm.is_box:
        columns = feasible.x.new_empty(len(feasible.x), shape[0], 1, shape[2])
        up = (state.rng.uniform(columns, state.tag) < 0.5).expand(-1, *shape)
        return torch.where(up.reshape_as(feasible.x), feasible.upper, feasible.lower)
    return _place(feasible, pick_windows(shape, feasible.norm, feasible.x.device).tiles(state.rng, state.tag, feasible.x))


def _draw(state: AttackState, queries: int, numbers: int) -> tuple[Tensor, Tensor]:
    """The next queries of each row, counted from 0, (B, queries); and their uniform draws, (B, queries, numbers)."""
    before = torch.stack([state.step + k for k in range(queries)], 1) if queries > 1 else state.step[:, None]
    like = state.best_loss.new_empty(*before.shape, numbers)
    return before - 1, state.rng.uniform(like, before + state.tag[:, None])


def _flip(state: AttackState, query: int, last: int) -> Tensor:
    """L∞: a square at the corner that its draws say; where that changes nothing, the next one, and the first is passed over.

    Args:
        state: what there is; its steps go on where a proposal is passed over.
        query: the first of the next queries of any row, or an earlier one.
        last: step of the last query.
    """
    feasible = state.feasible
    shape = image_shape(state.best)
    windows = pick_windows(shape, feasible.norm, state.best.device)
    largest = windows.largest_from(query)
    looks = prod(windows.host_sizes[largest]) <= _MOST_CELLS
    queries, draws = _draw(state, 1 + looks, 2 + shape[0])
    size = windows.size_at(queries)
    first = windows.first(draws[..., :2], size)
    up = 0.5 - draws[..., 2:]  # its sign
    if looks:
        cells = windows.places(first[:, :1]) + windows.cells(largest).offsets[size[:, 0]]
        passed = (state.step < last) & (state.step > 0) & ~_changes(state, cells, up[:, 0] >= 0)
        size, first, up = (where_rows(passed, each[:, 1], each[:, 0]) for each in (size, first, up))
        state.step = state.step + passed
    else:
        size, first, up = size[:, 0], first[:, 0], up[:, 0]
    rows, columns = windows.bands(first, size)
    # Far enough for any point between the bounds to be beyond one of them; nothing outside the window.
    reach = 3 * (feasible.radius.amax() if feasible.radius.ndim else feasible.radius)
    far = (torch.copysign(reach, up)[:, :, None] * rows[:, None]).to(state.best.dtype)
    point = torch.addcmul(state.best.reshape(-1, *shape), far[..., None], columns.to(far.dtype)[:, None, None])
    return point.view_as(state.best).clamp_(feasible.lower, feasible.upper)


def _changes(state: AttackState, cells: Tensor, up: Tensor) -> Tensor:
    """Whether pixels ``cells`` (B, N) are not all where they are sent: up or down by channel, (B, C) bool. (B,) bool."""
    index = cells[:, None].expand(-1, up.shape[1], -1)
    images = (state.best, state.feasible.upper, state.feasible.lower)
    now, high, low = (image.reshape(*up.shape, -1).gather(2, index) for image in images)
    return (now != torch.where(up[..., None], high, low)).flatten(1).any(1)


def _move(state: AttackState, query: int, last: int) -> Tensor:
    """L2, L1: mass moved from two windows into one of them, as a pattern; arguments as of :func:`_flip`."""
    feasible = state.feasible
    shape = channels, *_ = image_shape(state.best)
    windows = pick_windows(shape, feasible.norm, state.best.device)
    cells = windows.cells(windows.largest_from(query))
    queries, draws = (each.squeeze(1) for each in _draw(state, 1, 5 + channels))
    size = windows.size_at(queries)
    first = windows.first(draws[:, :4].unflatten(1, (2, 2)), size[:, None])
    here, there = (windows.places(first)[..., None] + cells.offsets[size][:, None]).unbind(1)
    sign = torch.where(draws[:, 5:] < 0.5, 1.0, -1.0)[..., None]
    pattern = cells.patterns[size, (draws[:, 4] < 0.5).long()][:, None] * sign
    offset = ((state.best - feasible.x) / feasible.scale).reshape(-1, channels, shape[1] * shape[2])
    return _place(feasible, _move_mass(offset, pattern.to(offset.dtype), here, there, cells.valid[size], feasible.norm))


def _move_mass(offset: Tensor, pattern: Tensor, here: Tensor, there: Tensor, valid: Tensor, norm: Norm) -> Tensor:
    """Take what there is in two windows, and what is left of the budget, and lay it as the pattern into the first.

    Args:
        offset: in units of ε, (B, C, pixels); changed in place, and returned.
        pattern: (B, C, N).
        here: pixels of the first window, (B, N).
        there: of the second.
        valid: 0 where a pixel is one more time the first, otherwise 1, (B, N).
        norm: L2 or L1.
    """

    def size(part: Tensor) -> Tensor:
        return norm.length(part * valid)[..., None]

    valid = valid.to(offset.dtype)[:, None]
    here, there = (cells[:, None].expand(-1, offset.shape[1], -1) for cells in (here, there))
    spent = norm.length(offset.flatten(1))[:, None, None]
    old = offset.gather(2, here)
    offset.scatter_(2, here, 0.0)
    before, beside = size(old), size(offset.gather(2, there))  # what is in both windows counts once
    mixed = pattern + old / (before + 1e-12)
    mixed = mixed / (size(mixed) + 1e-12)
    left = (1 - spent**norm.p).clamp_min(0) / offset.shape[1]
    budget = (left + before**norm.p + beside**norm.p) ** (1 / norm.p)
    if norm.p == 1:
        budget = budget * offset.shape[1]  # as the official code has it; the projection takes back what is too much
    return offset.scatter_(2, there, 0.0).scatter_(2, here, mixed * budget)


def _place(feasible: FeasibleSet, offset: Tensor) -> Tensor:
    """Bring offsets in units of ε, (B, C, ...), to the length ε (L2) or into the ball (L1), and into the box."""
    offset = offset.view_as(feasible.x)
    if feasible.norm.p == 1:
        return feasible.project(feasible.x + feasible.radius * offset)
    if feasible.radius.ndim:
        offset = offset * (feasible.radius > 0)
    length = expand_to(feasible.norm.length(offset.flatten(1)), offset)
    return torch.addcmul(feasible.x, offset, feasible.radius / length.clamp_min(1e-12)).clamp_(feasible.lower, feasible.upper)


square = as_function(Square, "square", "Square attack (Andriushchenko et al. 2020), as in AutoAttack.")
