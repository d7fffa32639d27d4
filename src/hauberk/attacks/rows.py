"""Examples under attack, one row each, every row at its own step of its own attack."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.model_queries import ModelQueries
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import fooled
from hauberk.threat import FeasibleSet, ThreatModel

Clock = np.ndarray  # (B,) int64: the tick that each row is at, as the host knows it

TURN_TAGS = 100_000  # random draws of different turns never share a tag


@dataclass
class Task:
    """Examples about to be attacked.

    Attributes:
        region: where their adversarial examples must stay; ``region.x`` are the clean inputs, (b, ...).
        y: labels, (b,).
        clean: logits of the clean inputs, (b, C).
        turn: which of the attack's turns (targets, restarts) each is at, (b,) int64.
        rng: random draws, keyed by example.
    """

    region: FeasibleSet
    y: Tensor
    clean: Tensor
    turn: Tensor
    rng: ExampleRng

    @property
    def tag(self) -> Tensor:
        """First tag of the turn's random draws, (b,)."""
        return self.turn * TURN_TAGS


@dataclass
class Rows:
    """What every attack keeps of each example; attacks add their own.

    Attributes:
        region, y, clean, noise: as in :class:`Task`.
        tag: first tag of this turn's random draws, (B,) int64.
        tick: how many looks there have been, (B,) int64.
        best: best point so far, (B, ...): misclassified before not, then the larger loss, a loss that is NaN last.
        best_logits: (B, C) there.
        best_loss: (B,) there.
        found: (B,) bool, whether it is misclassified.
        found_at: (B,) int64, the tick of the first misclassified point, -1 for none.
    """

    region: FeasibleSet
    y: Tensor
    clean: Tensor
    rng: ExampleRng
    tag: Tensor
    tick: Tensor
    best: Tensor
    best_logits: Tensor
    best_loss: Tensor
    found: Tensor
    found_at: Tensor

    def offer(self, point: Tensor, logits: Tensor, loss: Tensor, wrong: Tensor) -> None:
        """Keep what a look showed, where it is better; and count the look."""
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        better = (wrong & ~self.found) | ((wrong == self.found) & (loss > self.best_loss))
        self.best = replace_rows(better, point, self.best)
        self.best_logits = replace_rows(better, logits.to(self.best_logits.dtype), self.best_logits)
        self.best_loss = torch.where(better, loss.to(self.best_loss.dtype), self.best_loss)
        self.found_at = torch.where(wrong & (self.found_at < 0), self.tick, self.found_at)
        self.found = self.found | wrong
        self.tick = self.tick + 1

    def see(self, point: Tensor, logits: Tensor, loss: Tensor, evading: bool = False) -> Tensor:
        """Note a look at points inside the threat model; returns which are misclassified, (B,)."""
        wrong = fooled(logits, self.y, evading)
        self.offer(point, logits, loss, wrong)
        return wrong

    def doubt(self, rows: Tensor) -> None:
        """Forget what was found for some rows (b,), because it did not hold when checked; they go on."""
        self.found = self.found.index_fill(0, rows, False)
        self.found_at = self.found_at.index_fill(0, rows, -1)
        self.best_loss = self.best_loss.index_fill(0, rows, -torch.inf)


def fresh(task: Task) -> tuple[FeasibleSet, Tensor, Tensor, ExampleRng, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of :class:`Rows` before the first look."""
    x, y = task.region.x, task.y
    lowest = torch.full((len(y),), -torch.inf, dtype=x.dtype, device=x.device)
    none = torch.zeros_like(y)
    return (
        task.region, y, task.clean, task.rng, task.tag, none,
        x, task.clean.to(x.dtype), lowest, torch.zeros_like(y, dtype=torch.bool), none - 1,
    )  # fmt: skip


SomeRows = TypeVar("SomeRows", bound=Rows)


def select(rows: SomeRows, index: Tensor) -> SomeRows:
    """Keep some rows. index: (b,) int64."""
    values: dict[str, Any] = {f.name: _part(getattr(rows, f.name), index) for f in fields(rows)}
    return type(rows)(**values)


def put(rows: SomeRows, places: Tensor, new: SomeRows) -> None:
    """Replace the rows at ``places`` (b,) by ``new`` ones (b rows)."""
    for f in fields(rows):
        old, value = getattr(rows, f.name), getattr(new, f.name)
        whole = old.index_copy(0, places, value) if isinstance(old, Tensor) else old.put(places, value)
        setattr(rows, f.name, whole)


def dump(rows: Rows) -> dict[str, Tensor]:
    """Return all there is to know about rows, as tensors."""
    values = {f.name: getattr(rows, f.name) for f in fields(rows)}
    region, rng = values.pop("region"), values.pop("rng")
    return {"x": region.x, "rng": rng.keys, **values}


def load(like: SomeRows, state: dict[str, Tensor], threat: ThreatModel) -> SomeRows:
    """Make rows of the same kind as ``like``, on its device, from what :func:`dump` returned."""
    values: dict[str, Any] = {name: value.to(like.y.device) for name, value in state.items()}
    region = threat.around(values.pop("x"))
    return type(like)(region=region, rng=ExampleRng.of_keys(values.pop("rng")), **values)


def _part(value: Tensor | FeasibleSet | ExampleRng, index: Tensor) -> Tensor | FeasibleSet | ExampleRng:
    return value[index] if isinstance(value, Tensor) else value.rows(index)


def where_rows(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose per example. rows: (B,) bool; one, other: (B, ...)."""
    return torch.where(rows.view(-1, *[1] * (one.ndim - 1)), one, other)


def replace_rows(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose as :func:`where_rows`; on a CPU in place of ``other``, because few rows change there."""
    if other.device.type != "cpu":
        return where_rows(rows, one, other)
    index = rows.nonzero().squeeze(1)
    return other.index_copy_(0, index, one.index_select(0, index)) if len(index) else other


class Program(Protocol[SomeRows]):
    """An iterative attack, as a program that any number of rows run, each at its own tick.

    A turn is one run from a start, towards a target; an example takes its turns one after the other until one succeeds.
    No row may see another: every operation is by row.
    """

    @property
    def stride(self) -> int:
        """How many ticks to run between looks at what was found."""
        ...

    @property
    def evading(self) -> bool:
        """Whether the model's last output is a class of adversarial inputs, which is to be avoided too."""
        ...

    @property
    def length(self) -> int:
        """How many looks a turn takes at most."""
        ...

    def turns(self, classes: int) -> int:
        """How many turns an example takes against a model of so many outputs; raises UserError where undefined."""
        ...

    def begin(self, task: Task) -> SomeRows:
        """Set up rows at tick 0, without looking at the model."""
        ...

    def advance(self, rows: SomeRows, passes: ModelQueries, clock: Clock) -> None:
        """Run one tick: at least one look at the model, noted by ``rows.see``."""
        ...
