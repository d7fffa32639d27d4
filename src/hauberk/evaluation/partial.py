"""An early answer, with its interval, from the ledger of an evaluation that is still running, or was stopped."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hauberk.attacks.suites import Suite
from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.core.random import ExampleRng
from hauberk.evaluation.interval import wilson_interval
from hauberk.evaluation.records import PLAN, read_records
from hauberk.evaluation.summary import summarize

_MOST = 10**8  # examples: more would not fit into memory


@dataclass(frozen=True)
class PartialResult:
    """What an evaluation knows so far.

    Attributes:
        n: examples in all.
        looked: how many have been looked at without an attack.
        at_most: no more than this share of all can be robust: nothing has broken them yet.
        after: for each attack that has begun, how many examples, the first of a random order, it has finished with, how many of
            these stand it and those before it, and the 95 % interval for all examples.
    """

    n: int
    looked: int
    at_most: float
    after: dict[str, tuple[int, int, tuple[float, float]]]

    def __str__(self) -> str:
        lines = [f"robust accuracy at most {self.at_most:.1%} (n = {self.n}, {self.looked} looked at)"]
        for attack, (done, standing, (low, high)) in self.after.items():
            share = f"{standing / done:.1%} [{100 * low:.1f}, {100 * high:.1f}]" if done else "nothing yet"
            lines.append(f"after {attack}: {share} of {done} examples in random order")
        return "\n".join(lines)


def shuffled_order(seed: int, n: int) -> list[int]:
    """Return the random order in which an evaluation takes its examples."""
    draws = ExampleRng(seed, torch.arange(n)).uniform(torch.empty(n, 1, dtype=torch.float64), 0)
    order: list[int] = draws.squeeze(1).argsort().tolist()
    return order


def partial_result(folder: str | Path) -> PartialResult:
    """Read what the evaluation in a folder knows so far.

    Because examples are taken in a random order, those that an attack has finished with stand for all of them.

    Raises:
        UserError: if there is no evaluation in the folder, or it is damaged.
    """
    suite, seed, n = _read_plan(Path(folder) / PLAN)
    found = summarize(list(read_records(Path(folder))), suite)
    right = found.right
    order = shuffled_order(seed, n)
    after = {}
    for attack, spared in suite.stages.items():
        gone = found.union(spared)
        done = 0
        for i in order:
            if i not in found.clean or (i in right and i not in gone and (attack, i) not in found.verdicts):
                break
            done += 1
        standing = len(set(order[:done]) & right - gone - found.broken[attack])
        if done:
            after[attack] = (done, standing, wilson_interval(standing, done))
    lost = found.n - len(found.standing)
    return PartialResult(n, found.n, (n - lost) / n, after)


def _read_plan(path: Path) -> tuple[Suite, int, int]:
    """Return the suite, the seed and the number of examples."""
    plan = read_json(path)
    stages, seed, n = plan.get("stages"), plan.get("seed"), plan.get("n")
    if not isinstance(stages, dict) or not all(_are_names(spared) for spared in stages.values()):
        raise UserError(f"{path} is not the plan of an evaluation: its stages are {stages!r:.40}")
    if type(seed) is not int or type(n) is not int or not 1 <= n <= _MOST or abs(seed) >= 2**63:
        raise UserError(f"{path} is not the plan of an evaluation: seed {seed!r:.40}, n {n!r:.40}")
    return Suite({name: tuple(spared) for name, spared in stages.items()}, {}, 1, ""), seed, n


def _are_names(spared: object) -> bool:
    return isinstance(spared, list) and all(isinstance(name, str) for name in spared)
