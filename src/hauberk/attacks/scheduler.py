"""The queue: examples wait, take a row, are attacked, and leave when they are broken or have had all their turns."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Program, Rows, SomeRows, Task, dump, load, put, select
from hauberk.threat import ThreatModel

_FREE = -1
_IDLE = 1 << 40  # the clock of a row that nobody owns

Fetch = Callable[[list[int], list[int]], Task]  # examples and their turns -> task
# rows, their places, the examples there, their turns -> which successes hold, (b,) bool on the host
Judge = Callable[[Rows, Tensor, list[int], list[int]], np.ndarray]
Leave = Callable[[Rows, Tensor, list[int]], None]  # rows, their places, the examples there, which have had all their turns


@dataclass
class Queue(Generic[SomeRows]):
    """An attack on a stream of examples, by rows of one fixed number.

    A row that is freed is refilled, and passes always have the same shape, so that what is found for an example depends on
    nothing but the example, whatever shares the batch with it, to the last bit.

    Attributes:
        program: the attack.
        passes: the model.
        fetch: gives the task of some examples.
        judge: is shown the examples that claim success, and says for which it holds; the others go on.
        leave: is told of the examples that have had all their turns.
        turns: how many turns each example has.
        width: number of rows.
        chunk: how many examples are set up at once, in a fixed shape likewise.
        narrower: smaller numbers of rows, to fall back on when there are too few examples to fill them;
            only such for which the model computes the same bits for an example.
    """

    program: Program[SomeRows]
    passes: ModelQueries
    fetch: Fetch
    judge: Judge
    leave: Leave
    turns: int
    width: int
    chunk: int
    narrower: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.waiting: deque[tuple[int, int]] = deque()  # (example, turn)
        self.owner = np.full(self.width, _FREE)
        self.turn = np.zeros(self.width, dtype=np.int64)
        self.clock = np.full(self.width, _IDLE)
        self.rows: SomeRows | None = None

    def add(self, examples: Iterable[int]) -> None:
        """Let examples wait for their first turn."""
        self.waiting.extend((example, 0) for example in examples)

    def run(self, pause: Callable[[], None] = lambda: None) -> None:
        """Run until everybody has left. ``pause`` is called whenever the rows are at rest."""
        while True:
            self._refill()
            busy = self.owner != _FREE
            if not busy.any():
                return
            assert self.rows is not None  # somebody owns a row
            left = self.program.length - self.clock[busy]
            for _ in range(int(min(self.program.stride, left.min()))):
                self.program.advance(self.rows, self.passes, self.clock)
                self.clock += 1
            self._settle(self.rows)
            pause()

    def left(self) -> int:
        """How many examples have not left yet."""
        return len({example for example, _ in self.waiting} | set(self.owner[self.owner != _FREE].tolist()))

    def part_done(self) -> float:
        """How much of those that have not left is done, in examples."""
        busy = self.owner != _FREE
        work = self.turn[busy] + np.minimum(self.clock[busy] / self.program.length, 1.0)
        return float(work.sum() + sum(turn for _, turn in self.waiting)) / self.turns

    def state(self) -> dict[str, Any]:
        """Return everything, as tensors and plain types."""
        assert self.rows is not None  # it has begun
        return {
            "waiting": [list(pair) for pair in self.waiting],
            "owner": self.owner.tolist(),
            "turn": self.turn.tolist(),
            "clock": self.clock.tolist(),
            "rows": dump(self.rows),
        }

    def restore(self, state: dict[str, Any], todo: set[int], threat: ThreatModel) -> set[int]:
        """Go on from a state; examples that are not to do any more are left out.

        Returns:
            The examples that the state knew.
        """
        owner = np.array(state["owner"])
        self.width = len(owner)
        self.waiting.extend((example, turn) for example, turn in state["waiting"] if example in todo)
        self.owner, self.turn, self.clock = owner, np.array(state["turn"]), np.array(state["clock"])
        some = next(iter(todo))
        template = self.program.begin(self.fetch([some], [0]))
        self.rows = load(template, state["rows"], threat)
        gone = np.array([o != _FREE and int(o) not in todo for o in owner])
        self._free(np.flatnonzero(gone))
        return {example for example, _ in self.waiting} | set(self.owner[self.owner != _FREE].tolist())

    def _refill(self) -> None:
        free = np.flatnonzero(self.owner == _FREE)
        if len(free) > len(self.waiting):
            self._narrow(self.width - len(free) + len(self.waiting))
            free = np.flatnonzero(self.owner == _FREE)
        free = free[: len(self.waiting)]
        for start in range(0, len(free), self.chunk):
            places = free[start : start + self.chunk]
            picked = [self.waiting.popleft() for _ in places]
            self._begin(places, picked)

    def _begin(self, places: np.ndarray, picked: list[tuple[int, int]]) -> None:
        full = picked + [picked[0]] * (self.chunk - len(picked))
        begun = self.program.begin(self.fetch([e for e, _ in full], [t for _, t in full]))
        device = begun.y.device
        if self.rows is None:  # all rows at first belong to copies of the first example
            self.rows = select(begun, torch.zeros(self.width, dtype=torch.long, device=device))
        put(self.rows, torch.from_numpy(places).to(device), select(begun, torch.arange(len(picked), device=device)))
        self.owner[places] = [e for e, _ in picked]
        self.turn[places] = [t for _, t in picked]
        self.clock[places] = 0

    def _settle(self, rows: SomeRows) -> None:
        """Let those who are broken leave, and those whose turn has ended."""
        found, ticks = torch.stack([rows.found.long(), rows.tick]).cpu().numpy()
        busy = self.owner != _FREE
        claims = np.flatnonzero(busy & (found > 0))
        if len(claims):
            places = torch.from_numpy(claims).to(rows.y.device)
            holds = self.judge(rows, places, self.owner[claims].tolist(), self.turn[claims].tolist())
            self._free(claims[holds])
            if not holds.all():
                rows.doubt(torch.from_numpy(claims[~holds]).to(rows.y.device))
        self.clock[busy] = ticks[busy]
        ended = np.flatnonzero((self.owner != _FREE) & (ticks >= self.program.length))
        last = self.turn[ended] + 1 >= self.turns
        for place in ended[~last].tolist():
            # First in the queue, so that examples leave in the order they came: an early answer needs that.
            self.waiting.appendleft((int(self.owner[place]), int(self.turn[place]) + 1))
        if last.any():
            self.leave(rows, torch.from_numpy(ended[last]).to(rows.y.device), self.owner[ended[last]].tolist())
        self._free(ended)

    def _free(self, places: np.ndarray) -> None:
        self.owner[places] = _FREE
        self.clock[places] = _IDLE

    def _narrow(self, needed: int) -> None:
        """Drop free rows, if a smaller number of rows is allowed and enough."""
        width = min((w for w in self.narrower if needed <= w < self.width), default=self.width)
        if width == self.width or needed == 0:
            return
        places = np.argsort(self.owner == _FREE, kind="stable")[:width]  # the busy ones first
        if self.rows is not None:
            self.rows = select(self.rows, torch.from_numpy(places).to(self.rows.y.device))
        self.owner, self.turn, self.clock = self.owner[places], self.turn[places], self.clock[places]
        self.width = width
