"""A stream of examples through an attack: they wait, take a row, and leave when they are broken or have had all their runs."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.base import Attack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, AttackState, State, from_state_dict, scatter, select, state_dict
from hauberk.core.device import send
from hauberk.threat import ThreatModel

_FREE = -1
_IDLE = 1 << 40  # the step of a row that nobody owns

Fetch = Callable[[list[int], list[int]], AttackInputs]  # examples and their runs -> inputs
# state, places of its rows, the examples there, their runs -> which successes hold, (b,) bool on the host
Verify = Callable[[AttackState, Tensor, list[int], list[int]], np.ndarray]
Leave = Callable[[AttackState, Tensor, list[int]], None]  # state, places, the examples there, which have had all their runs


@dataclass
class ContinuousBatcher(Generic[State]):
    """An attack on a stream of examples, by rows of one fixed number.

    A row that is freed is refilled, and passes always have the same shape, so that what is found for an example depends on
    nothing but the example, whatever shares the batch with it, to the last bit if the model's kernels are deterministic.

    Attributes:
        attack: what runs.
        queries: the model.
        fetch: gives the inputs of some examples.
        verify: is shown the examples that claim success, and says for which it holds; the others go on.
        leave: is told of the examples that have had all their runs.
        runs: which of the runs of the attack each example has at most.
        batch_size: number of rows.
        init_batch_size: how many examples are set up at once, in a fixed shape likewise; they wait until rows are free.
        smaller_batch_sizes: smaller numbers of rows, to fall back on when there are too few examples to fill them;
            only such for which the model computes the same bits for an example.
    """

    attack: Attack[State]
    queries: ModelQueries
    fetch: Fetch
    verify: Verify
    leave: Leave
    runs: range
    batch_size: int
    init_batch_size: int
    smaller_batch_sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.waiting: deque[tuple[int, int]] = deque()  # (example, run)
        self.ready: deque[tuple[int, int]] = deque()  # those set up already, the last of ``ready_state``
        self.ready_state: State | None = None
        self.owner = np.full(self.batch_size, _FREE)
        self.run_of = np.zeros(self.batch_size, dtype=np.int64)
        self.host_steps = np.full(self.batch_size, _IDLE)
        self.state: State | None = None

    def add(self, examples: Iterable[int]) -> None:
        """Let examples wait for their first run."""
        self.waiting.extend((example, self.runs.start) for example in examples)

    def run(self, pause: Callable[[], None] = lambda: None) -> None:
        """Run until everybody has left. ``pause`` is called whenever the rows are at rest."""
        while True:
            self._refill()
            busy = self.owner != _FREE
            if not busy.any():
                return
            assert self.state is not None  # somebody owns a row
            left = self.attack.max_steps - self.host_steps[busy]
            for _ in range(int(min(self.attack.check_every, left.min()))):
                self.attack.step(self.state, self.queries, self.host_steps)
                self.host_steps += 1
            self._settle(self.state)
            pause()

    def part_done(self) -> float:
        """How much of those that have not left is done, in examples."""
        busy = self.owner != _FREE
        runs = [*self.run_of[busy].tolist(), *(run for _, run in (*self.ready, *self.waiting))]
        steps = float(np.minimum(self.host_steps[busy] / self.attack.max_steps, 1.0).sum())
        return float(steps + sum(run - self.runs.start for run in runs)) / len(self.runs)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as tensors and plain types."""
        assert self.state is not None  # it has begun
        return {
            "waiting": [list(pair) for pair in (*self.ready, *self.waiting)],
            "owner": self.owner.tolist(),
            "run": self.run_of.tolist(),
            "host_steps": self.host_steps.tolist(),
            "state": state_dict(self.state),
        }

    def load_state_dict(self, saved: dict[str, Any], todo: set[int], threat: ThreatModel) -> set[int]:
        """Go on from a state; examples that are not to do any more are left out.

        Returns:
            The examples that the state knew.
        """
        owner = np.array(saved["owner"])
        self.batch_size = len(owner)
        self.waiting.extend((example, run) for example, run in saved["waiting"] if example in todo)
        self.owner, self.run_of, self.host_steps = owner, np.array(saved["run"]), np.array(saved["host_steps"])
        some = next(iter(todo))
        template = self.attack.init(self.fetch([some], [0]))
        self.state = from_state_dict(template, saved["state"], threat)
        gone = np.array([o != _FREE and int(o) not in todo for o in owner])
        self._free(np.flatnonzero(gone))
        return {example for example, _ in self.waiting} | set(self.owner[self.owner != _FREE].tolist())

    def _refill(self) -> None:
        free = np.flatnonzero(self.owner == _FREE)
        coming = len(self.ready) + len(self.waiting)
        if len(free) > coming:
            self._narrow(self.batch_size - len(free) + coming)
            free = np.flatnonzero(self.owner == _FREE)[:coming]
        while len(free):
            if not self.ready:
                self._set_up()
            places, free = free[: len(self.ready)], free[len(self.ready) :]
            self._begin(places)

    def _set_up(self) -> None:
        """Set up the next examples that wait, padded to the fixed shape by copies of the first."""
        self.ready.extend(self.waiting.popleft() for _ in range(min(self.init_batch_size, len(self.waiting))))
        padding = [self.ready[0]] * (self.init_batch_size - len(self.ready))
        examples, runs = zip(*padding, *self.ready, strict=True)
        self.ready_state = self.attack.init(self.fetch(list(examples), list(runs)))

    def _begin(self, places: np.ndarray) -> None:
        """Let the next examples that are set up own some rows."""
        assert self.ready_state is not None
        device = self.ready_state.y.device
        if self.state is None:  # all rows at first belong to copies of one example
            self.state = select(self.ready_state, torch.zeros(self.batch_size, dtype=torch.long, device=device))
        new = self.ready_state
        if len(places) < self.init_batch_size:
            first = self.init_batch_size - len(self.ready)
            new = select(new, torch.arange(first, first + len(places), device=device))
        scatter(self.state, send(torch.from_numpy(places), device), new)
        self.owner[places], self.run_of[places] = zip(*(self.ready.popleft() for _ in places), strict=True)
        self.host_steps[places] = 0
        if not self.ready:
            self.ready_state = None  # its memory is free for the steps

    def _settle(self, state: State) -> None:
        """Let those who are broken leave, and those whose run has ended."""
        found, steps = torch.stack([state.found.long(), state.step]).cpu().numpy()
        busy = self.owner != _FREE
        claims = np.flatnonzero(busy & (found > 0))
        if len(claims):
            places = send(torch.from_numpy(claims), state.y.device)
            holds = self.verify(state, places, self.owner[claims].tolist(), self.run_of[claims].tolist())
            self._free(claims[holds])
            if not holds.all():
                state.reject(send(torch.from_numpy(claims[~holds]), state.y.device))
        self.host_steps[busy] = steps[busy]
        ended = np.flatnonzero((self.owner != _FREE) & (steps >= self.attack.max_steps))
        last = self.run_of[ended] + 1 >= self.runs.stop
        for place in ended[~last].tolist():
            # First in the queue, so that examples leave in the order they came: a partial result needs that.
            self.waiting.appendleft((int(self.owner[place]), int(self.run_of[place]) + 1))
        if last.any():
            self.leave(state, send(torch.from_numpy(ended[last]), state.y.device), self.owner[ended[last]].tolist())
        self._free(ended)

    def _free(self, places: np.ndarray) -> None:
        self.owner[places] = _FREE
        self.host_steps[places] = _IDLE

    def _narrow(self, needed: int) -> None:
        """Drop free rows, if a smaller number of rows is allowed and enough."""
        batch_size = min((w for w in self.smaller_batch_sizes if needed <= w < self.batch_size), default=self.batch_size)
        if batch_size == self.batch_size or needed == 0:
            return
        places = np.argsort(self.owner == _FREE, kind="stable")[:batch_size]  # the busy ones first
        if self.state is not None:
            self.state = select(self.state, send(torch.from_numpy(places), self.state.y.device))
        self.owner, self.run_of, self.host_steps = self.owner[places], self.run_of[places], self.host_steps[places]
        self.batch_size = batch_size
