"""The evaluation runner: takes one process's examples through the clean pass and all attacks of a suite."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, AttackInputs, AttackState, ModelQueries
from hauberk.attacks.base import attack_batch
from hauberk.attacks.model.check_model import check_logits, has_gradient
from hauberk.attacks.scheduler import ContinuousBatcher
from hauberk.core.device import send
from hauberk.core.errors import SCHEMA_ERRORS, UserError
from hauberk.core.intervals import wilson_interval
from hauberk.core.io import read_state, write_state
from hauberk.core.numerics import Precision, float32_mode
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import IndexedDataset, Subset, fetch_for, to_device
from hauberk.evaluation.records import CLEAN, RecordStore
from hauberk.evaluation.verify import finite_margin, margin, predicted_class, read_columns, verify_adversarial
from hauberk.objectives.functional import AttackLoss, fooled
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs

SAVE_EVERY = 20.0  # seconds between two states of an attack under way
SHOW_EVERY = 1.0
_SHARE = 50  # times as long as it took to show the progress, nothing is shown again


@dataclass
class EvaluationRunner:
    """An evaluation under way, as one process sees it. What is not described here is as in ``evaluate``.

    Attributes:
        reference_model: the caller's model, lent by ``frozen_model``, for the clean pass and verdicts.
        fp32_model: the fastest form of it in its own precision, for attacks without gradients.
        attack_model: the form of it that attacks with gradients see.
        source: the examples.
        attacks: what runs, by name, adapted to model and threat model.
        runs: which of its runs each of them has.
        draws: the name that the random draws of each belong to.
        stages: for each of them, in order, those whose victims it leaves alone.
        store: where verdicts go.
        shard: this process's examples, in the order they are attacked, (m,) int64.
        batch_size: how many examples are attacked at a time, in passes of that one shape.
        outputs: how many logits the model has.
        goal: what the adversary is after.
        display: shows the progress.
        precision: that attacks with gradients run in.
        state_path: where the attack under way is saved; None for nowhere.
    """

    reference_model: ModelQueries
    fp32_model: ModelQueries
    attack_model: ModelQueries
    source: IndexedDataset
    threat: ThreatModel
    attacks: Mapping[str, Attack[Any]]
    runs: Mapping[str, range]
    draws: Mapping[str, str]
    stages: Mapping[str, tuple[str, ...]]
    store: RecordStore
    shard: np.ndarray
    seed: int
    batch_size: int
    outputs: int
    goal: AttackLoss
    display: ProgressBar
    precision: Precision = "fp32"
    state_path: Path | None = None

    def __post_init__(self) -> None:
        self.records = self.store.records
        self.init_batch_size, self.verify_batch_size = max(1, self.batch_size // 2), max(1, self.batch_size // 8)
        self._shown = self._saved = time.monotonic()
        self._begun: tuple[float, int] | None = None  # when the attacks began, and what had been done before
        self._ahead: Callable[[], float] = float  # what is to do after the attack under way
        # Logits of the clean inputs, a row for each of ``shard``; and which row an example has.
        self._logits = torch.zeros(0)
        self._row = np.zeros(self.records.n, dtype=np.int64)
        self._row[self.shard] = np.arange(len(self.shard))
        # This process's examples, by row: on the device where there is room, so that a refill waits for no copy.
        device = next((p.device for p in self.reference_model.model.parameters()), torch.device("cpu"))
        self._mine = to_device(Subset(self.source, torch.from_numpy(self.shard)), device)

    @property
    def passes(self) -> dict[str, int]:
        """Examples that went forward and backward in this process."""
        forms = (self.reference_model, self.fp32_model, self.attack_model)
        return {"forwards": sum(q.forwards for q in forms), "backwards": sum(q.backwards for q in forms)}

    @property
    def full_precision(self) -> Precision:
        """What attacks without gradients run in, as they live on small differences of the margin, which rounding hides."""
        return "model" if self.precision == "model" else "fp32"

    def right(self) -> np.ndarray:
        """This process's examples that are classified right without an attack."""
        return np.asarray(self.shard[self.records.right[self.shard]])

    def clean_pass(self) -> None:
        """Look at all clean inputs, and, where there is a class of adversarial inputs, at some that do not try to hide.

        Raises:
            UserError: if an example is another one than in an earlier session.
        """
        for start in range(0, len(self.shard), self.batch_size):
            mine = self.shard[start : start + self.batch_size]
            x, y = self._fetch_batch(mine)
            logits, ids = self.reference_model.logits(x), send(content_ids(x), x.device)
            check_logits(logits, y, self.outputs, probabilities=True, of_classes=self.goal.of_classes)
            if not start:
                self._logits = logits.new_zeros(len(self.shard), *logits.shape[1:])  # at once: small pieces would scatter
            self._logits[start : start + len(mine)] = logits[: len(mine)]
            seen = {
                "id": ids, "label": y if self.goal.of_classes else torch.full_like(ids, -1),
                "predicted": predicted_class(logits, self.goal), "margin": margin(logits, y, self.goal),
                "right": ~self._mistaken(logits, y),
            }  # fmt: skip
            if self.goal.extra_outputs and not self.records[CLEAN]["known"][mine].all():
                seen["recognised"] = self._recognised(x, y, ExampleRng(self.seed, ids, _stage("detection")))
            found = {key: column[: len(mine)] for key, column in read_columns(seen).items()}
            before = self.records[CLEAN][mine]
            other = before["known"] & ((before["id"] != found["id"]) | (before["label"] != found["label"]))
            if other.any():
                what = f"example {mine[other][0]} is another one than when this evaluation was begun"
                raise UserError(f"{what} (its input or label differs); choose another folder")
            new = ~before["known"]
            self.store.keep_points(mine, x[: len(mine)], new)
            self.store.write(CLEAN, mine[new], **{key: column[new] for key, column in found.items()})

    def _mistaken(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which clean inputs are mistaken, (b,) bool: to take one for adversarial is a mistake, too."""
        return (fooled if self.goal.extra_outputs else self.goal.criterion)(logits, y)

    def _recognised(self, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
        """Which adversarial inputs are recognised when they only try to be misclassified, (b,) bool."""
        attack = PGD(20, loss="cw")
        logits = attack_batch(attack, self.reference_model.model, x, y, self.threat, seed=rng).logits
        assert logits is not None  # the best point was looked at
        return logits.isfinite().all(1) & (logits.argmax(1) == logits.shape[1] - 1)

    def run_attacks(
        self, names: Iterable[str], among: np.ndarray | None = None, ahead: Mapping[str, float] | None = None
    ) -> None:
        """Run some of the attacks, after the clean pass, as far as the records do not know them yet.

        Examples come in the order of the margin that is left, the least first, because these are the ones that are broken: so
        what is known early is near to what is known at the end.

        Args:
            names: which attacks, in order.
            among: on which examples, (m,) int64; None for all.
            ahead: for how many examples attacks are expected to run later, by name; for the time that is left.
        """
        right = self.right() if among is None else np.intersect1d(self.right(), among)
        self._begun = self._begun or (time.monotonic(), self._work_done)
        names = tuple(names)
        for k, name in enumerate(names):
            todo = self._todo(name, right)
            if len(todo):
                margin = self.records.least_margin(todo)
                self._ahead = partial(self._work_ahead, names[k + 1 :], right, ahead or {})
                self._run_attack(name, todo[np.argsort(np.nan_to_num(margin, nan=-np.inf), kind="stable")])
        self.records.check_certified()

    def _todo(self, name: str, among: np.ndarray) -> np.ndarray:
        """Those of some examples that are right which an attack has still to be run on."""
        done = self.records[name]["known"] | self.records.spared
        todo = ~self.records.broken(self.stages[name], among) & ~done[among]
        return among[todo] if self.runs[name] else among[:0]

    def _run_attack(self, name: str, todo: np.ndarray) -> None:
        attack = self.attacks[name]
        model = self.attack_model if attack.uses_gradients else self.fp32_model
        model = self.reference_model if attack.sees_original else model
        device = self._logits.device
        ids = send(torch.from_numpy(self.records[CLEAN]["id"][self.shard]), device)
        draws = ExampleRng(self.seed, ids, _stage(self.draws[name]))

        def fetch(examples: list[int], runs: list[int]) -> AttackInputs:
            rows = torch.from_numpy(self._row[examples])
            x, y = fetch_for(self.reference_model.model, self._mine, rows)
            row, run = send(torch.stack([rows, torch.tensor(runs)]), device)
            region, logits, rng = self.threat.around(x), self._logits[row], draws.index_select(row)
            return AttackInputs(region, y, logits, run, rng, criterion=self.goal.criterion)

        verify, leave = partial(self._verify, name), partial(self._leave, name)
        sizes = self.batch_size, self.init_batch_size, self._smaller_batch_sizes
        queue = ContinuousBatcher(attack, model, fetch, verify, leave, self.runs[name], *sizes)
        known = self._resume(name, queue, todo)
        queue.add(i for i in todo.tolist() if i not in known)
        self._saved = time.monotonic()
        with float32_mode(self.precision if attack.uses_gradients else self.full_precision):
            queue.run(lambda: self._pause(name, queue, todo))
        if self.state_path is not None:
            self.state_path.unlink(missing_ok=True)

    def _verify(self, attack: str, states: AttackState, places: Tensor, examples: list[int], runs: list[int]) -> np.ndarray:
        """Check claimed successes again, and keep those that hold."""
        points, sets, index = states.best[places], states.feasible.index_select(places), np.array(examples)
        y, size = states.y[places], self.verify_batch_size
        with float32_mode("fp32"):
            seen = verify_adversarial(self.reference_model, sets, points, y, size, self.goal)
        found = read_columns({**seen, "step": states.found_at[places]})
        holds = found.pop("holds")
        self.records[attack]["unverified"][index[~holds]] = True
        first = holds & ~self.records.broken(self.stages, index)
        self.store.keep_points(index, points, first)
        columns = {**found, "run": np.array(runs)}
        self.store.write(attack, index[holds], broken=True, **{key: column[holds] for key, column in columns.items()})
        return holds

    def _leave(self, attack: str, states: AttackState, places: Tensor, examples: list[int]) -> None:
        """Keep that an attack has not broken some examples."""
        assert states.best_logits is not None  # there were looks
        margin = finite_margin(states.best_logits[places], states.y[places], self.goal).cpu().numpy()
        self.store.write(attack, np.array(examples), broken=False, margin=margin)

    def _fetch_batch(self, examples: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fetch examples and check them; copies of the first fill the batch."""
        full = np.concatenate([examples, examples[:1].repeat(self.batch_size - len(examples))])
        x, y = fetch_for(self.reference_model.model, self._mine, torch.from_numpy(self._row[full]))
        check_inputs(x, y, self.threat, self.source.classes, self.goal.of_classes)
        return x, y

    @cached_property
    def _smaller_batch_sizes(self) -> list[int]:
        """Numbers of rows at which the model's forms compute the same bits as with the whole batch, the largest first.

        Eighths of the batch size, and powers of two below the least of them: an example that is left does not fill many rows.
        """
        x, y = self._fetch_batch(self.shard[:1])
        x = self.threat.around(x).random(ExampleRng(self.seed, torch.arange(len(x), device=x.device)))

        def bits(form: nn.Module, size: int) -> tuple[Tensor, Tensor]:
            if not has_gradient(form):
                return (logits := ModelQueries(form).logits(x[:size])), logits
            logits, _, grad = ModelQueries(form).value_and_grad(x[:size], self.goal, y[:size])
            return logits, grad

        eighths = [len(y) * k // 8 for k in range(7, 0, -1)]
        sizes = sorted({n for n in (*eighths, *(1 << k for k in range(eighths[-1].bit_length()))) if n}, reverse=True)
        for form, precision in {(self.fp32_model.model, self.full_precision), (self.attack_model.model, self.precision)}:
            with float32_mode(precision):
                whole = bits(form, len(y))
                sizes = [n for n in sizes if all(torch.equal(a, b[:n]) for a, b in zip(bits(form, n), whole, strict=True))]
        return sizes

    def _pause(self, attack: str, queue: ContinuousBatcher[Any], todo: np.ndarray) -> None:
        """Show the progress, and save the state of the attack under way, once in a while."""
        table, now = self.records[attack], time.monotonic()
        if not self.display.hidden and now > self._shown:
            self._show(attack, int((~table["known"][todo]).sum()), queue.part_done())
            shown = time.monotonic()
            self._shown = shown + max(SHOW_EVERY, _SHARE * (shown - now))  # all examples are counted for a line
        if self.state_path is not None and now - self._saved > SAVE_EVERY:
            unverified = np.flatnonzero(table["unverified"] & ~table["known"]).tolist()
            write_state(self.state_path, {"attack": attack, "unverified": unverified, **queue.state_dict()})
            self.store.write_cost(self.passes)
            self._saved = time.monotonic()

    def _show(self, attack: str, left: int, part_done: float) -> None:
        """Show the progress: how many examples are left of an attack, and how much of them is done, in examples."""
        assert self._begun is not None  # by run_attacks
        robust, n = int(self.records.robust[self.shard].sum()), len(self.shard)
        low, high = wilson_interval(robust, n)
        rest = self._cost(attack) * self._rows(left) * (1 - part_done / max(left, 1)) + self._ahead()
        seconds, done = time.monotonic() - self._begun[0], self._work_done - self._begun[1]
        said = f"{attack}: {left} left, robust ≤ {robust / n:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        self.display.reach(done / (done + rest), said, left=seconds * rest / done if done else None)

    @property
    def _work_done(self) -> int:
        """What passes have cost so far, in forward passes of an example: one backward takes as long as two of them."""
        return self.passes["forwards"] + 2 * self.passes["backwards"]

    def _cost(self, attack: str) -> float:
        """What an attack costs for an example that stands, likewise."""
        form = self.attacks[attack]
        return len(self.runs[attack]) * form.max_steps * (form.passes_per_step + form.uses_gradients)

    def _rows(self, examples: float) -> float:
        """How many rows go through the passes that so many examples need: no fewer than a batch has."""
        narrow = (size for size in self._smaller_batch_sizes if size >= examples)
        return examples and max(examples, min(narrow, default=self.batch_size))

    def _work_ahead(self, later: Sequence[str], among: np.ndarray, expected: Mapping[str, float]) -> float:
        """What later attacks will cost, likewise, on those of some examples that stand, and on those that are expected."""
        known = sum(self._cost(name) * self._rows(len(self._todo(name, among))) for name in later)
        return known + sum(self._cost(name) * self._rows(count) for name, count in expected.items())

    def _resume(self, attack: str, queue: ContinuousBatcher[Any], todo: np.ndarray) -> set[int]:
        """Go on with the saved state of this attack, if there is one; return the examples that it knows."""
        if self.state_path is None or not self.state_path.exists():
            return set()
        try:
            state, _ = read_state(self.state_path)
        except UserError:  # cut short: whatever it held is done again
            return set()
        try:
            if state["attack"] != attack:
                return set()
            self.records[attack]["unverified"][state["unverified"]] = True
            return queue.load_state_dict(state, set(todo.tolist()), self.threat)
        except SCHEMA_ERRORS as error:
            raise UserError(f"{self.state_path} is of another version; without it, what it held is done again") from error


def _stage(attack: str) -> int:
    """Give each attack its own random draws, whatever the others are."""
    return zlib.crc32(attack.encode())
