"""The campaign: takes this process's examples through the clean pass and all attacks of a suite."""

import time
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, AttackInputs, AttackState, ModelQueries, run_attack
from hauberk.attacks.checks import check_logits
from hauberk.attacks.scheduler import ContinuousBatcher
from hauberk.attacks.suites import Suite
from hauberk.core.errors import UserError
from hauberk.core.io import SCHEMA_ERRORS, read_state, write_state
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import IndexedDataset, fetch_for
from hauberk.evaluation.interval import wilson_interval
from hauberk.evaluation.records import CLEAN, DETECTION, RecordStore
from hauberk.evaluation.verify import finite_margin, judge
from hauberk.objectives.functional import ATTACK_LOSSES, logit_margin
from hauberk.threat import ThreatModel
from hauberk.threat.checks import check_inputs

SAVE_EVERY = 20.0  # seconds between two states of an attack under way
SHOW_EVERY = 1.0
_NARROWEST = 16  # rows


@dataclass
class EvaluationRunner:
    """An evaluation under way, as one process sees it.

    Attributes:
        model: lent by ``frozen_model``.
        source: the examples.
        threat: what the adversary may do.
        suite: what to run.
        ledger: where verdicts go.
        share: this process's examples, in the order they are attacked.
        seed: of all random draws, which are keyed by the content of each example.
        width: how many examples are attacked at a time, in passes of that one shape.
        outputs: how many logits the model must have, if known.
        evading: whether the last of them is a class of adversarial inputs.
        exact: the fastest form of the model in its own precision, for attacks that need it; verdicts are by the model itself.
        quick: the same in the precision of the attacks with gradients.
        surrogate: for transfer attacks.
        state_path: where the attack under way is saved; None for nowhere.
    """

    model: nn.Module
    source: IndexedDataset
    threat: ThreatModel
    suite: Suite
    ledger: RecordStore
    share: list[int]
    seed: int
    width: int
    outputs: int | None
    evading: bool
    exact: nn.Module
    quick: nn.Module
    surrogate: nn.Module | None
    display: ProgressBar
    state_path: Path | None = None
    # Of the clean inputs, a row for each of ``share``; memory set aside at once, which many small pieces would scatter.
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    fragile: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chunk = max(1, self.width // 8)
        self._row = {example: row for row, example in enumerate(self.share)}
        self.eyes = ModelQueries(self.model, self.suite.eot_iter)  # clean pass and verdicts
        self.exact_sight = ModelQueries(self.exact, self.suite.eot_iter)
        self.sight = ModelQueries(self.quick, self.suite.eot_iter)
        self._saved = time.monotonic()
        self._shown = time.monotonic()
        self._costs = {name: preset.attack.cost() for name, preset in self.suite.attacks.items()}
        self._total = max(sum(self._costs.values()) * len(self.share), 1)
        self._done = 0
        self._begun = time.monotonic()
        self._session = time.time_ns()

    def attack(self) -> None:
        """Run all attacks, after the clean pass, as far as the ledger does not know them yet."""
        for attack, spared in self.suite.stages.items():
            standing = [i for i in self.right() if not any(self._broken(i, before) for before in spared)]
            self._skip(attack, len(self.share) - len(standing))
            self._attack(attack, standing)

    @property
    def passes(self) -> dict[str, int]:
        """Examples that went forward and backward in this process."""
        return {
            "forwards": sum(passes.forwards for passes in (self.eyes, self.exact_sight, self.sight)),
            "backwards": sum(passes.backwards for passes in (self.eyes, self.exact_sight, self.sight)),
        }

    def right(self) -> list[int]:
        """This process's examples that are classified right without an attack."""
        return [i for i in self.share if self.ledger.records[CLEAN, i]["right"]]

    def _broken(self, example: int, attack: str) -> bool:
        return bool(self.ledger.records.get((attack, example), {}).get("broken", False))

    def _fetch(self, examples: list[int]) -> tuple[Tensor, Tensor]:
        x, y = fetch_for(self.model, self.source, torch.tensor(examples))
        check_inputs(x, y, self.threat, self.source.classes)
        return x, y

    def clean_pass(self) -> None:
        """Look at all clean inputs, and, where the model recognises adversarial inputs, at some that do not hide."""
        for start in range(0, len(self.share), self.width):
            mine = self.share[start : start + self.width]
            x, y = self._fetch(mine + mine[:1] * (self.width - len(mine)))
            logits = self.eyes.logits(x)
            check_logits(logits, y, self.outputs, probabilities=True)
            seen = _verdicts_of(logits, y)
            ids = content_ids(x)
            if not start:
                self.logits = logits.new_zeros(len(self.share), logits.shape[1])
                self.ids = ids.new_zeros(len(self.share))
            self.logits[start : start + len(mine)] = logits[: len(mine)]
            self.ids[start : start + len(mine)] = ids[: len(mine)]
            if self.evading:
                self._detect(mine, x, y, ExampleRng(self.seed, ids.to(x.device), _stage(DETECTION)))
            for place, example in enumerate(mine):
                record = {"i": example, "attack": CLEAN, "id": int(ids[place]), "label": int(y[place]), **seen[place]}
                if not self.ledger.has(CLEAN, example):
                    self.ledger.keep_point(example, x[place])
                    self.ledger.write(record)
                elif any(self.ledger.records[CLEAN, example][key] != record[key] for key in ("id", "label")):
                    raise UserError(
                        f"example {example} is another one than when this evaluation was begun (its input or label differs); "
                        "choose another folder"
                    )

    @cached_property
    def _narrower(self) -> list[int]:
        """Smaller numbers of rows for which the model computes the same bits, so that nothing depends on which is taken."""
        x, y = self._fetch(self.share[:1] * self.width)
        rng = ExampleRng(self.seed, torch.arange(self.width, device=x.device))
        x = self.threat.around(x).random(rng)

        def bits(form: nn.Module, width: int) -> tuple[Tensor, Tensor]:
            part = ModelQueries(form).value_and_grad(x[:width], ATTACK_LOSSES["cw"], y[:width])
            return part[0], part[2]

        sizes = [self.width * k // 8 for k in range(7, 0, -1) if self.width * k // 8 >= _NARROWEST]
        for form in (self.exact, self.quick):
            whole = bits(form, self.width)
            same = {size: zip(bits(form, size), whole, strict=True) for size in sizes}
            sizes = [size for size in sizes if all(torch.equal(part, full[:size]) for part, full in same[size])]
        return sizes

    def _detect(self, mine: list[int], x: Tensor, y: Tensor, rng: ExampleRng) -> None:
        """Note which adversarial inputs are recognised when they only try to be misclassified."""
        if all(self.ledger.has(DETECTION, example) for example in mine):
            return
        found = run_attack(PGD(20, loss="cw"), self.model, x, y, self.threat, seed=rng, trusted=True)
        assert found.logits is not None  # the best point was looked at
        recognised = found.logits.isfinite().all(1) & (found.logits.argmax(1) == found.logits.shape[1] - 1)
        for place, example in enumerate(mine):
            self.ledger.write({"i": example, "attack": DETECTION, "recognised": bool(recognised[place])})

    def _attack(self, attack: str, standing: list[int]) -> None:
        todo = [i for i in standing if not self.ledger.has(attack, i)]
        self._skip(attack, len(standing) - len(todo))
        if not todo:
            return
        program, _ = self.suite.attacks[attack].adapted(self.threat, self._classes, self.evading, self.surrogate)

        def fetch(examples: list[int], turns: list[int]) -> AttackInputs:
            x, y = self._fetch(examples)
            rows = torch.tensor([self._row[i] for i in examples])
            rng = ExampleRng(self.seed, self.ids[rows].to(x.device), _stage(attack))
            return AttackInputs(self.threat.around(x), y, self.logits[rows], torch.tensor(turns, device=x.device), rng)

        def verdicts(rows: AttackState, places: Tensor, examples: list[int], turns: list[int]) -> np.ndarray:
            return self._verdicts(attack, rows, places, examples, turns)

        def leave(rows: AttackState, place: int, example: int) -> None:
            assert rows.best_logits is not None  # there were looks
            margin = float(finite_margin(rows.best_logits[place, None], rows.y[place, None]))
            self._note(attack, example, {"broken": False, "margin": margin})

        turns = program.n_runs(self._classes)
        # Square lives on small differences of the margin, which bfloat16 does not resolve.
        passes = self.exact_sight if program.exact else self.sight
        queue = ContinuousBatcher(program, passes, fetch, verdicts, leave, turns, self.width, self.chunk, self._narrower)
        self._resume(attack, queue, set(todo))
        self._saved = time.monotonic()
        queue.run(lambda: self._pause(attack, queue))
        if self.state_path is not None:
            self.state_path.unlink(missing_ok=True)

    def _verdicts(self, attack: str, rows: AttackState, places: Tensor, examples: list[int], turns: list[int]) -> np.ndarray:
        """Look at claimed successes again; write down those that hold."""
        seen = judge(self.eyes, rows.feasible.index_select(places), rows.best[places], rows.y[places], self.chunk, self.evading)
        holds = (seen.wrong & seen.inside).numpy()
        steps = rows.found_at[places].tolist()
        for k, example in enumerate(examples):
            if not holds[k]:
                self.fragile.add((attack, example))
                continue
            verdict = {
                "broken": True, "turn": turns[k], "step": steps[k], "predicted": int(seen.predicted[k]),
                "margin": float(seen.margin[k]), "norm": float(seen.norm[k]),
            }  # fmt: skip
            if not seen.finite[k]:
                verdict["finite"] = False
            if not any(self._broken(example, other) for other in self.suite.stages):
                self.ledger.keep_point(example, rows.best[places[k]])
            self._note(attack, example, verdict)
        return holds

    def _note(self, attack: str, example: int, verdict: dict[str, Any]) -> None:
        fragile = {"fragile": True} if (attack, example) in self.fragile else {}
        self.ledger.write({"i": example, "attack": attack, **verdict, **fragile})
        self._skip(attack, 1)

    @property
    def _classes(self) -> int:
        return self.logits.shape[1]

    # Progress, and what survives a crash.

    def _skip(self, attack: str, examples: int) -> None:
        self._done += self._costs[attack] * examples
        self.display.reach(self._done / self._total)

    def _pause(self, attack: str, queue: ContinuousBatcher[Any]) -> None:
        now = time.monotonic()
        if now - self._shown > SHOW_EVERY:
            under_way = self._done + self._costs[attack] * queue.part_done()
            standing = len(self.standing())
            low, high = wilson_interval(standing, len(self.share))
            self.display.reach(
                under_way / self._total,
                f"{attack}: {queue.left()} left, robust ≤ {standing / len(self.share):.1%} [{100 * low:.1f}, {100 * high:.1f}]",
            )
            self._shown = now
        if self.state_path is not None and now - self._saved > SAVE_EVERY:
            fragile = [[name, example] for name, example in sorted(self.fragile)]
            write_state(self.state_path, {"attack": attack, "fragile": fragile, **queue.state_dict()})
            self.write_cost()
            self._saved = now

    def write_cost(self) -> None:
        """Note in the ledger what this session has cost so far."""
        self.ledger.write_cost(self._session, time.monotonic() - self._begun, self.passes)

    def standing(self) -> list[int]:
        """This process's examples that nothing has broken yet."""
        return [i for i in self.right() if not any(self._broken(i, attack) for attack in self.suite.stages)]

    def _resume(self, attack: str, queue: ContinuousBatcher[Any], todo: set[int]) -> None:
        """Go on with the saved state of this attack, if there is one; examples that it does not know start anew."""
        known: set[int] = set()
        if self.state_path is not None and self.state_path.exists():
            try:
                state, _ = read_state(self.state_path)
            except UserError:  # cut short: whatever it held is done again
                state = {"attack": None}
            try:
                if state["attack"] == attack:
                    self.fragile |= {(name, example) for name, example in state["fragile"]}
                    known = queue.load_state_dict(state, todo, self.threat)
            except SCHEMA_ERRORS as error:
                raise UserError(f"{self.state_path} is of another version; without it, what it held is done again") from error
        queue.add([i for i in self.share if i in todo and i not in known])


def _verdicts_of(logits: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """What a look at clean inputs showed, for each."""
    predicted, margin = logits.argmax(1), logit_margin(logits, y)
    return [
        {"right": p == label, "predicted": p, "margin": m}
        for p, label, m in zip(predicted.tolist(), y.tolist(), margin.tolist(), strict=True)
    ]


def _stage(attack: str) -> int:
    """Give each attack its own random draws, whatever the others are."""
    return zlib.crc32(attack.encode())
