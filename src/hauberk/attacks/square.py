"""Square attack (Andriushchenko et al. 2020): random search by squares, without gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.losses import fooled, make_loss
from hauberk.attacks.passes import Passes
from hauberk.attacks.rows import Clock, Rows, Task, fresh, replace_rows, where_rows
from hauberk.attacks.windows import image_shape, pick_windows
from hauberk.errors import UserError
from hauberk.threat import Region

_PROPOSALS = 2  # for each pass in L∞, as long as they change nothing


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

    def advance(self, rows: Rows, passes: Passes, clock: Clock) -> None:
        """Ask the model about one change of each row.

        In L∞ a proposal often changes nothing, because the square has that sign already. Its answer is known: it counts as a
        query without a pass, and the next proposal takes its place.
        """
        fresh_rows = rows.tick == 0
        asked, changed = _propose(rows, clock)
        if rows.region.norm == "Linf":
            for _ in range(_PROPOSALS - 1):
                waiting = ~fresh_rows & ~changed & (rows.tick < self.steps)
                rows.tick = rows.tick + waiting
                proposed, changes = _propose(rows, clock)
                asked = replace_rows(waiting, proposed, asked)
                changed = changed | changes
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
        up = rows.noise.uniform(columns, rows.tag) < 0.5
        return _corner(region, up.expand(-1, *shape))
    return _place(region, pick_windows(shape, region.norm).tiles(rows.noise, rows.tag, region.x))


def _propose(rows: Rows, clock: Clock) -> tuple[Tensor, Tensor]:
    """The next change of each row, at its own query, and which rows it changes, (B,)."""
    region = rows.region
    shape = image_shape(region.x)
    windows = pick_windows(shape, region.norm).to(region.x.device)
    draws = rows.noise.uniform(region.x.new_empty(len(region.x), 5 + shape[0]), rows.tag + rows.tick)
    size = windows.size_at(rows.tick - 1)
    up = (draws[:, 5:] < 0.5)[:, :, None]
    if region.norm == "Linf":
        largest = windows.largest_from(int(clock.min()) - 1)
        cells = windows.cells(draws[:, 0], draws[:, 1], size, largest)[:, None].expand(-1, shape[0], -1)
        best, upper, lower = (value.reshape(len(size), shape[0], -1) for value in (rows.best, region.upper, region.lower))
        corner = torch.where(up, upper.gather(2, cells), lower.gather(2, cells))
        changes = (best.gather(2, cells) != corner).flatten(1).any(1)
        return best.scatter(2, cells, corner).view_as(rows.best), changes
    here, there = windows.mask(draws[:, 0], draws[:, 1], size), windows.mask(draws[:, 2], draws[:, 3], size)
    sign = torch.where(up[..., None], 1.0, -1.0).to(region.x.dtype)
    pattern = windows.pattern(draws[:, 0], draws[:, 1], size, draws[:, 4] < 0.5)[:, None] * sign
    moved = _move_mass(_offsets(region, rows.best), pattern, here[:, None], there[:, None], region)
    return _place(region, moved), torch.ones_like(rows.found)


def _move_mass(offset: Tensor, pattern: Tensor, here: Tensor, there: Tensor, region: Region) -> Tensor:
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


def _offsets(region: Region, point: Tensor) -> Tensor:
    scale = torch.where(region.radius > 0, region.radius, torch.ones_like(region.radius))
    return ((point - region.x) / scale).view(-1, *image_shape(point))


def _place(region: Region, offset: Tensor) -> Tensor:
    """Bring offsets in units of ε, (B, C, H, W), to the length ε (L2) or into the ball (L1), and into the box."""
    offset = offset.view_as(region.x)
    if region.norm == "L1":
        return region.project(region.x + region.radius * offset)
    free = torch.where(region.radius > 0, offset, torch.zeros_like(offset))
    length = free.flatten(1).norm(dim=1).view(-1, *[1] * (offset.ndim - 1))
    point = region.x + region.radius * free / length.clamp_min(1e-12)
    return torch.minimum(torch.maximum(point, region.lower), region.upper)


def _corner(region: Region, up: Tensor) -> Tensor:
    """The corner of the L∞ set on the side that ``up`` (broadcastable to (B, C, H, W)) says."""
    shape = image_shape(region.x)
    corner = torch.where(up, region.upper.view(-1, *shape), region.lower.view(-1, *shape))
    return corner.view_as(region.x)
