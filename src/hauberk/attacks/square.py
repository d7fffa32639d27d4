"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.base import Attack, as_function
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.attacks.state import AttackState, where_rows
from hauberk.core.device import send
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import LossLike
from hauberk.threat import FeasibleSet, expand_to
from hauberk.threat.norms import Norm

P_INIT = 0.8  # fraction of the pixels in the first windows
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries; the paper's schedule for 10,000
_TILES = 5
_CPU = torch.device("cpu")
_PROPOSALS = 2  # prepared for each pass in L∞: the first that changes anything is asked about


def image_shape(x: Tensor) -> tuple[int, int, int]:
    """View an example as an image (C, H, W): a vector as one row, a matrix as one channel, leading dimensions as channels."""
    *lead, height, width = (1, *x.shape[1:]) if x.ndim == 2 else x.shape[1:]
    return prod(lead), height, width


@lru_cache(maxsize=8)
def pick_windows(shape: tuple[int, int, int], norm: Norm, device: torch.device = _CPU) -> "Windows":
    """Prepare the windows for images (C, H, W) on a device.

    Each window has a fraction p of the pixels, p = 0.8, halved after so many queries; a square, unless one side of the image is
    too short. In L2 and L1 its sides are odd and at least 3, where the image allows.
    """
    _, height, width = shape
    sizes = []
    for halvings in range(len(HALVED_AFTER) + 1):
        area = P_INIT / 2**halvings * height * width
        side = max(round(sqrt(area)), 1)
        short = min(height, width)
        long = max(round(area / short), 1) if side > short else side
        side = min(side, short)
        if not norm.is_box:
            side, long = _odd(side, short), _odd(long, max(height, width))
        sizes.append((side, long) if height <= width else (long, side))
    return Windows(shape, norm, sizes, device)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows for images of one shape; rows may be at different queries.

    Attributes:
        shape: (C, H, W).
        norm: of the threat model.
        host_sizes: heights and widths, one more than there are halvings.
        device: where the tables are.
    """

    shape: tuple[int, int, int]
    norm: Norm
    host_sizes: Sequence[tuple[int, int]]
    device: torch.device

    @cached_property
    def after(self) -> Tensor:
        """Queries after which p is halved, (K,)."""
        return send(torch.tensor(HALVED_AFTER), self.device)

    @cached_property
    def sizes(self) -> Tensor:
        """``host_sizes`` on the device, (K + 1, 2)."""
        return send(torch.tensor(self.host_sizes), self.device)

    @cached_property
    def patterns(self) -> Tensor:
        """Patterns of each size in the top left corner, as they are and turned, (K + 1, 2, H, W)."""
        patterns = torch.zeros(len(self.host_sizes), 2, *self.shape[1:])
        for k, (high, wide) in enumerate(self.host_sizes):
            for turned in (0, 1):
                patterns[k, turned, :high, :wide] = _pattern(high, wide, self.norm, bool(turned))
        return send(patterns, self.device)

    @cached_property
    def tiling(self) -> Tensor:
        """The pattern of a tile, repeated over the image, 0 in what is left over: (H, W)."""
        high, wide, tall, broad = self._tiles
        whole = torch.zeros(self.shape[1:])
        whole[: tall * high, : broad * wide] = _pattern(high, wide, self.norm, False).repeat(tall, broad)
        return send(whole, self.device)

    @property
    def _tiles(self) -> tuple[int, int, int, int]:
        """Height and width of the tiles, and how many there are below and beside each other."""
        _, height, width = self.shape
        high, wide = max(height // _TILES, 1), max(width // _TILES, 1)
        return high, wide, height // high, width // wide

    def size_at(self, query: Tensor) -> Tensor:
        """Which size belongs to the queries (B,), counted from 0; (B,) int64."""
        return (query[:, None] > self.after).sum(1)

    def largest_from(self, query: int) -> tuple[int, int]:
        """Height and width of the largest window from a query on."""
        return self.host_sizes[bisect_left(HALVED_AFTER, query)]

    def cells(self, down: Tensor, right: Tensor, size: Tensor, largest: tuple[int, int]) -> Tensor:
        """Pixels of the windows of these sizes (B,), as places in the flattened image: (B, largest height · width).

        Where a window is smaller than the largest, its first pixel is repeated.
        """
        top, left = self._first(down, 1, size), self._first(right, 2, size)
        rows = torch.arange(largest[0], device=down.device)
        columns = torch.arange(largest[1], device=down.device)
        inside = (rows < self.sizes[size, 0, None])[:, :, None] & (columns < self.sizes[size, 1, None])[:, None]
        places = (top[:, None] + rows)[:, :, None] * self.shape[2] + (left[:, None] + columns)[:, None]
        first = (top * self.shape[2] + left)[:, None, None]
        return torch.where(inside, places, first).flatten(1)

    def mask(self, down: Tensor, right: Tensor, size: Tensor) -> Tensor:
        """Windows of these sizes (B,) at random places, from uniform draws (B,): (B, H, W) bool."""
        rows, columns = self._inside(down, 1, size), self._inside(right, 2, size)
        high, wide = (rows >= 0) & (rows < self.sizes[size, 0, None]), (columns >= 0) & (columns < self.sizes[size, 1, None])
        return high[:, :, None] & wide[:, None, :]

    def pattern(self, down: Tensor, right: Tensor, size: Tensor, turned: Tensor) -> Tensor:
        """The patterns in the same windows, 0 outside: (B, H, W)."""
        rows, columns = self._inside(down, 1, size), self._inside(right, 2, size)
        which = size[:, None, None], turned.long()[:, None, None]
        values = self.patterns[*which, rows.clamp_min(0)[:, :, None], columns.clamp_min(0)[:, None, :]]
        return values.to(down.dtype) * self.mask(down, right, size)

    def tiles(self, rng: ExampleRng, tag: Tensor, like: Tensor) -> Tensor:
        """Tiles over the whole image, each the pattern with a random sign for each channel: (B, C, H, W)."""
        channels, height, width = self.shape
        high, wide, tall, broad = self._tiles
        up = rng.uniform(like.new_empty(len(like), channels, tall, broad), tag) < 0.5
        sign = torch.where(up, 1.0, -1.0).repeat_interleave(high, 2).repeat_interleave(wide, 3)
        padded = torch.nn.functional.pad(sign, (0, width - broad * wide, 0, height - tall * high))
        return padded.to(like.dtype) * self.tiling.to(like.dtype)

    def _inside(self, draw: Tensor, side: int, size: Tensor) -> Tensor:
        """Coordinates counted from the window's edge: (B, H) or (B, W)."""
        return torch.arange(self.shape[side], device=draw.device) - self._first(draw, side, size)[:, None]

    def _first(self, draw: Tensor, side: int, size: Tensor) -> Tensor:
        """First row or column of windows, from uniform draws: (B,)."""
        return (draw.double() * (self.shape[side] - self.sizes[size, side - 1] + 1)).long()


def _odd(side: int, most: int) -> int:
    side = max(side, 3)
    return min(side + (side % 2 == 0), most)


def _pattern(high: int, wide: int, norm: Norm, turned: bool) -> Tensor:
    """Two hills side by side, one up and one down, of unit length: (high, wide)."""
    if high == 1 and wide == 1:
        return torch.ones(1, 1)
    if (turned and wide > 1) or high == 1:
        return _pattern(wide, high, norm, False).T
    first = high // 2
    both = torch.cat([_hill(first, wide, norm), -_hill(high - first, wide, norm)])
    unit: Tensor = both / both.norm(p=norm.p)
    return unit


def _hill(high: int, wide: int, norm: Norm) -> Tensor:
    """``Σ_{m ≥ distance} (m + 1)^{-2}`` (L2; -4 in L1) by the distance (of the larger coordinate) from the middle."""
    top, left = high // 2, wide // 2
    reach = max(top, left) + 1
    terms = torch.arange(1, reach + 1, dtype=torch.float64) ** (-4.0 if norm.p == 1 else -2.0)
    tail = terms.flip(0).cumsum(0).flip(0)
    rows, columns = (torch.arange(high) - top).abs(), (torch.arange(wide) - left).abs()
    hill = tail[torch.maximum(rows[:, None], columns[None])].float()
    unit: Tensor = hill / hill.norm(p=norm.p)
    return unit


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
        fresh_rows = state.step == 0
        if state.feasible.norm.is_box:
            asked, passed_over = _flip(state, host_steps, (self.steps - state.step).clamp_min(0) * ~fresh_rows)
            state.step = state.step + passed_over
        else:
            asked = _move(state)
        if bool((host_steps == 0).any()):
            asked = where_rows(fresh_rows, _first(state), asked)
        logits = queries.logits(asked)
        loss = self.attack_loss(logits, state.y).to(asked.dtype)
        counts = state.step <= self.steps
        wrong = state.criterion(logits, state.y) & counts
        state.offer(asked, logits, torch.where(counts, loss, -torch.inf), wrong)


def _first(state: AttackState) -> Tensor:
    """L∞: vertical stripes of ± ε; L2 and L1: 5 by 5 tiles of the pattern, of random signs."""
    feasible = state.feasible
    shape = image_shape(feasible.x)
    if feasible.norm.is_box:
        columns = feasible.x.new_empty(len(feasible.x), shape[0], 1, shape[2])
        up = (state.rng.uniform(columns, state.tag) < 0.5).expand(-1, *shape)
        return torch.where(up.reshape_as(feasible.x), feasible.upper, feasible.lower)
    return _place(feasible, pick_windows(shape, feasible.norm, feasible.x.device).tiles(state.rng, state.tag, feasible.x))


def _draw(state: AttackState, steps: Tensor) -> Tensor:
    """Uniform draws for each row's queries at steps (B, P): (B · P, 5 + C)."""
    of = torch.arange(len(steps), device=steps.device).repeat_interleave(steps.shape[1])
    like = state.best.new_empty(steps.numel(), 5 + image_shape(state.best)[0])
    return state.rng.index_select(of).uniform(like, (state.tag[:, None] + steps).flatten())


def _flip(state: AttackState, host_steps: np.ndarray, most: Tensor) -> tuple[Tensor, Tensor]:
    """L∞: a square at the corner that its draws say; the first of the next proposals that changes anything.

    most: how many proposals may be passed over, (B,). Returns the points, and how many were.
    """
    feasible, count = state.feasible, len(state.y)
    channels, *_ = shape = image_shape(state.best)
    windows = pick_windows(shape, feasible.norm, state.best.device)
    steps = state.step[:, None] + torch.arange(_PROPOSALS, device=state.step.device)
    draws = _draw(state, steps)
    size = windows.size_at(steps.flatten() - 1)
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
    windows = pick_windows(image_shape(state.best), feasible.norm, state.best.device)
    draws = _draw(state, state.step[:, None])
    size = windows.size_at(state.step - 1)
    here, there = windows.mask(draws[:, 0], draws[:, 1], size), windows.mask(draws[:, 2], draws[:, 3], size)
    sign = torch.where(draws[:, 5:] < 0.5, 1.0, -1.0).to(feasible.x.dtype)[..., None, None]
    pattern = windows.pattern(draws[:, 0], draws[:, 1], size, draws[:, 4] < 0.5)[:, None] * sign
    offset = ((state.best - feasible.x) / feasible.scale).view(len(pattern), *windows.shape)
    return _place(feasible, _move_mass(offset, pattern, here[:, None], there[:, None], feasible.norm.p))


def _move_mass(offset: Tensor, pattern: Tensor, here: Tensor, there: Tensor, p: float) -> Tensor:
    """Take what there is in two windows, and what is left of the budget, and lay it as the pattern into the first.

    offset: (B, C, H, W) in units of ε, pattern likewise, here and there: (B, 1, H, W) bool.
    """

    def size(part: Tensor) -> Tensor:
        length: Tensor = part.flatten(2).norm(p=p, dim=2)
        return length[:, :, None, None]

    channels, old = offset.shape[1], offset * here
    mixed = pattern + old / (size(old) + 1e-12)
    mixed = mixed / (size(mixed) + 1e-12)
    spent = offset.flatten(1).norm(p=p, dim=1)[:, None, None, None]
    window = size(offset * (here | there))
    if p == 2:
        budget = ((1 - spent**2).clamp_min(0) / channels + window**2).sqrt()
    else:
        budget = ((1 - spent).clamp_min(0) / channels + window) * channels
    return torch.where(here, mixed * budget, torch.where(there, 0.0, offset))


def _place(feasible: FeasibleSet, offset: Tensor) -> Tensor:
    """Bring offsets in units of ε, (B, C, H, W), to the length ε (L2) or into the ball (L1), and into the box."""
    offset = offset.view_as(feasible.x)
    if feasible.norm.p == 1:
        return feasible.project(feasible.x + feasible.radius * offset)
    free = torch.where(feasible.radius > 0, offset, torch.zeros_like(offset))
    length = expand_to(free.flatten(1).norm(dim=1), offset)
    point = feasible.x + feasible.radius * free / length.clamp_min(1e-12)
    return torch.minimum(torch.maximum(point, feasible.lower), feasible.upper)


square = as_function(Square, "square", "Square attack (Andriushchenko et al. 2020), as in AutoAttack.")
