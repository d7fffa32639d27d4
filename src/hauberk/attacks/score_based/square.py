"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.score_based.square_windows import Cells, Windows, image_shape, pick_windows
from hauberk.attacks.state import RUN_TAGS, AttackState, where_rows
from hauberk.objectives.functional import LossLike
from hauberk.threat import FeasibleSet, expand_to
from hauberk.threat.norms import Norm

_OTHER_VALUES = RUN_TAGS // 2  # draws of the values of one-hot groups
_MOST_CELLS = 64  # L∞: a proposal in a larger window is asked about without a look at whether it changes anything


@dataclass(frozen=True)
class Square(Attack[AttackState]):
    """Square attack (Andriushchenko et al. 2020), as in AutoAttack: random search on the margin, forward passes only.

    Each query changes one random window, ever smaller, and keeps the change if the margin falls. Vectors are taken as images of
    one row, (B, H, W) as one channel. Each example has its own windows (in the official code a batch shares them). As there,
    windows smaller than an image never touch its last row and column. In L∞, proposals that change nothing count as queries
    but cost no pass. In L∞ a one-hot group that a window changes gets another value, drawn at random.

    Attributes:
        steps: queries; AutoAttack has 5,000.
        restarts: independent runs.
        loss: the larger, the better a point: "cw" (margin), "evade" for a model whose last output is a class of adversarial
            inputs, or a function of outputs and labels.
    """

    steps: int = 5000
    restarts: int = 1
    loss: LossLike = "cw"
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
        asked = propose(state, int(host_steps.min()), self.steps)
        if bool((host_steps == 0).any()):
            asked = where_rows(begun == 0, _first(state), asked)
        if (groups := state.feasible.one_hot) is not None and state.feasible.norm.is_box:
            draws = state.rng.uniform(asked, state.tag + begun + _OTHER_VALUES)
            asked = groups.redrawn(asked, state.best, draws, state.feasible.lower, state.feasible.upper)
        logits = queries.logits(asked)
        loss = self.attack_loss(logits, state.y)
        wrong = state.criterion(logits, state.y)
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


def _draw(state: AttackState, windows: Windows, queries: int, numbers: int) -> Tensor:
    """Uniform draws for the next queries of each row, (B, queries, numbers)."""
    steps = state.step[:, None] if queries == 1 else state.step[:, None] + windows.ahead[:queries]
    return state.rng.uniform(state.best_loss.new_empty(*steps.shape, numbers), steps + state.tag[:, None])


def _flip(state: AttackState, soonest: int, last: int) -> Tensor:
    """L∞: a square at the corner that its draws say; where that changes nothing, the next one, and the first is passed over.

    Args:
        state: what there is; its steps go on where a proposal is passed over.
        soonest: the first query, counted from 1, that any row may be at; 0 where one looks at its start.
        last: the last query.
    """
    feasible, shape = state.feasible, image_shape(state.best)
    windows = pick_windows(shape, feasible.norm, state.best.device)
    largest = windows.largest_from(soonest)
    looks = soonest > 0 and prod(windows.host_sizes[largest]) <= _MOST_CELLS
    draws = _draw(state, windows, 1 + looks, 2 + shape[0])
    drawn = draws[:, 0]
    if looks:
        passed = _changes_nothing(state, windows, windows.cells(largest), drawn) & (state.step < last)
        drawn = where_rows(passed, draws[:, 1], drawn)
        state.step = state.step + passed
    size = windows.size_at(state.step)
    rows, columns = windows.bands(windows.first(drawn[:, :2], size), size)
    # Far enough for any point between the bounds to be beyond one of them; nothing outside the window.
    reach = 3 * (feasible.radius.amax() if feasible.radius.ndim else feasible.radius)
    far = (torch.copysign(reach, 0.5 - drawn[:, 2:])[:, :, None] * rows[:, None]).to(state.best.dtype)
    point = torch.addcmul(state.best.reshape(-1, *shape), far[..., None], columns.to(far.dtype)[:, None, None])
    return point.view_as(state.best).clamp_(feasible.lower, feasible.upper)


def _changes_nothing(state: AttackState, windows: Windows, cells: Cells, drawn: Tensor) -> Tensor:
    """Whether all pixels of the window that is drawn, (B, 2 + C), are already where its draws send them. (B,) bool."""
    size, channels = windows.size_at(state.step), drawn.shape[1] - 2
    places = windows.places(windows.first(drawn[:, :2], size)) + cells.offsets[size]
    index = places[:, None].expand(-1, channels, -1)
    images = (state.best, state.feasible.upper, state.feasible.lower)
    now, high, low = (image.reshape(len(drawn), channels, -1).gather(2, index) for image in images)
    return (now == torch.where((drawn[:, 2:] <= 0.5)[..., None], high, low)).flatten(1).all(1)


def _move(state: AttackState, soonest: int, last: int) -> Tensor:
    """L2, L1: mass moved from two windows into one of them, as a pattern; arguments as of :func:`_flip`."""
    feasible = state.feasible
    shape = channels, *_ = image_shape(state.best)
    windows = pick_windows(shape, feasible.norm, state.best.device)
    cells = windows.cells(windows.largest_from(soonest))
    draws = _draw(state, windows, 1, 5 + channels)[:, 0]
    size = windows.size_at(state.step)
    first = windows.first(draws[:, :4].unflatten(1, (2, 2)), size[:, None])
    here, there = (windows.places(first) + cells.offsets[size][:, None]).unbind(1)
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
