"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh, where_rows
from hauberk.attacks.square_windows import image_shape, pick_windows
from hauberk.core.errors import UserError
from hauberk.objectives.functional import fooled, make_loss
from hauberk.threat import FeasibleSet

_PROPOSALS = 2  # prepared for each pass in L∞: the first that changes anything is asked about


@dataclass(frozen=True)
class Square:
    """The Square attack with AutoAttack's numbers; see :func:`hauberk.attacks.square`.

    Attributes:
        steps: queries.
        restarts: independent runs.
        evading: the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    steps: int = 5000
    restarts: int = 1
    evading: bool = False
    stride = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"square needs at least 1 query and restart, got {self.steps} and {self.restarts}")

    @property
    def length(self) -> int:
        """Looks in a turn: the start and the queries."""
        return self.steps + 1

    def turns(self, classes: int) -> int:
        """Restarts."""
        return self.restarts

    def begin(self, task: Task) -> Rows:
        """Set up; the first look is at a pattern of stripes or tiles."""
        return Rows(*fresh(task))

    def advance(self, rows: Rows, passes: ModelQueries, clock: Clock) -> None:
        """Ask the model about one change of each row.

        In L∞ a proposal often changes nothing, because the square has that sign already. Its answer is known: it counts as a
        query without a pass, and the next proposal takes its place.
        """
        fresh_rows = rows.tick == 0
        if rows.region.norm == "Linf":
            asked, passed_over = _flip(rows, clock, (self.steps - rows.tick).clamp_min(0) * ~fresh_rows)
            rows.tick = rows.tick + passed_over
        else:
            asked = _move(rows)
        if bool((clock == 0).any()):
            asked = where_rows(fresh_rows, _first(rows), asked)
        logits = passes.look(asked)
        loss = make_loss("evade" if self.evading else "cw")(logits, rows.y, None).to(asked.dtype)
        counts = rows.tick <= self.steps
        wrong = fooled(logits, rows.y, self.evading) & counts
        rows.offer(asked, logits, torch.where(counts, loss, -torch.inf), wrong)


def _first(rows: Rows) -> Tensor:
    """L∞: vertical stripes of ± ε; L2 and L1: 5 by 5 tiles of the pattern, of random signs."""
    region = rows.region
    shape = image_shape(region.x)
    if region.norm == "Linf":
        columns = region.x.new_empty(len(region.x), shape[0], 1, shape[2])
        up = rows.rng.uniform(columns, rows.tag) < 0.5
        return _corner(region, up.expand(-1, *shape))
    return _place(region, pick_windows(shape, region.norm).tiles(rows.rng, rows.tag, region.x))


def _draw(rows: Rows, ticks: Tensor) -> Tensor:
    """Uniform draws for each row's queries at ticks (B, P): (B · P, 5 + C)."""
    of = torch.arange(len(ticks), device=ticks.device).repeat_interleave(ticks.shape[1])
    like = rows.best.new_empty(ticks.numel(), 5 + image_shape(rows.best)[0])
    return rows.rng.rows(of).uniform(like, (rows.tag[:, None] + ticks).flatten())


def _flip(rows: Rows, clock: Clock, most: Tensor) -> tuple[Tensor, Tensor]:
    """L∞: a square at the corner that its draws say; the first of the next proposals that changes anything.

    most: how many proposals may be passed over, (B,). Returns the points, and how many were.
    """
    region, count = rows.region, len(rows.y)
    channels, *_ = shape = image_shape(rows.best)
    windows = pick_windows(shape, "Linf").to(rows.best.device)
    ticks = rows.tick[:, None] + torch.arange(_PROPOSALS, device=rows.tick.device)
    draws = _draw(rows, ticks)
    size = windows.size_at(ticks.flatten() - 1)
    cells = windows.cells(draws[:, 0], draws[:, 1], size, windows.largest_from(int(clock.min()) - 1))
    cells = cells.view(count, 1, -1).expand(-1, channels, -1)
    best, upper, lower = (value.reshape(count, channels, -1) for value in (rows.best, region.upper, region.lower))
    up = (draws[:, 5:] < 0.5).view(count, _PROPOSALS, channels).transpose(1, 2)
    by_proposal = (count, channels, _PROPOSALS, -1)
    corner = torch.where(up[..., None], upper.gather(2, cells).view(by_proposal), lower.gather(2, cells).view(by_proposal))
    changes = (best.gather(2, cells).view(by_proposal) != corner).any(3).any(1)
    changes[:, -1] = True  # the last is asked about in any case
    chosen = torch.minimum(changes.int().argmax(1), most)
    pick = chosen.view(-1, 1, 1, 1).expand(-1, channels, 1, corner.shape[3])
    place, value = (part.view(by_proposal).gather(2, pick).squeeze(2) for part in (cells, corner))
    return best.scatter(2, place, value).view_as(rows.best), chosen


def _move(rows: Rows) -> Tensor:
    """L2, L1: mass moved from two windows into one of them, as a pattern."""
    region = rows.region
    windows = pick_windows(image_shape(rows.best), region.norm).to(rows.best.device)
    draws = _draw(rows, rows.tick[:, None])
    size = windows.size_at(rows.tick - 1)
    here, there = windows.mask(draws[:, 0], draws[:, 1], size), windows.mask(draws[:, 2], draws[:, 3], size)
    sign = torch.where(draws[:, 5:] < 0.5, 1.0, -1.0).to(region.x.dtype)[..., None, None]
    pattern = windows.pattern(draws[:, 0], draws[:, 1], size, draws[:, 4] < 0.5)[:, None] * sign
    return _place(region, _move_mass(_offsets(region, rows.best), pattern, here[:, None], there[:, None], region))


def _move_mass(offset: Tensor, pattern: Tensor, here: Tensor, there: Tensor, region: FeasibleSet) -> Tensor:
    """Take what there is in two windows, and what is left of the budget, and lay it as the pattern into the first.

    offset: (B, C, H, W) in units of ε, pattern likewise, here and there: (B, 1, H, W) bool.
    """
    p = 2 if region.norm == "L2" else 1
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


def _offsets(region: FeasibleSet, point: Tensor) -> Tensor:
    return ((point - region.x) / region.scale).view(-1, *image_shape(point))


def _place(region: FeasibleSet, offset: Tensor) -> Tensor:
    """Bring offsets in units of ε, (B, C, H, W), to the length ε (L2) or into the ball (L1), and into the box."""
    offset = offset.view_as(region.x)
    if region.norm == "L1":
        return region.project(region.x + region.radius * offset)
    free = torch.where(region.radius > 0, offset, torch.zeros_like(offset))
    length = free.flatten(1).norm(dim=1).view(-1, *[1] * (offset.ndim - 1))
    point = region.x + region.radius * free / length.clamp_min(1e-12)
    return torch.minimum(torch.maximum(point, region.lower), region.upper)


def _corner(region: FeasibleSet, up: Tensor) -> Tensor:
    """The corner of the L∞ set on the side that ``up`` (broadcastable to (B, C, H, W)) says."""
    shape = image_shape(region.x)
    corner = torch.where(up, region.upper.view(-1, *shape), region.lower.view(-1, *shape))
    return corner.view_as(region.x)
