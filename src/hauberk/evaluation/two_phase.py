"""The suite "fast" under way: first attacks on all examples, the others on a random sample of those that stand."""

import numpy as np

from hauberk.attacks import Suite
from hauberk.core.distributed import World
from hauberk.evaluation.estimate import Sampled, expected_sample, next_sample
from hauberk.evaluation.records import Records
from hauberk.evaluation.runner import EvaluationRunner


def run_two_phases(runner: EvaluationRunner, suite: Suite, world: World, order: np.ndarray, half_width: float) -> Sampled:
    """Run a suite that has ``sampled`` attacks.

    Args:
        runner: after the clean pass.
        suite: what runs.
        world: the processes, each of which has some of the examples; all come to the same samples.
        order: a random order of all examples, (n,) int64.
        half_width: half the width that the interval may have, as a fraction of all examples; 0 for no estimate.
    """
    records, wanted = runner.records, half_width * runner.records.n
    first = [name for name in suite.stages if name not in suite.sampled]
    rest = [name for name in suite.sampled if runner.runs[name]]

    def ahead(known: int) -> dict[str, float]:
        standing = int(records.robust[runner.shard].sum())
        return dict.fromkeys(rest, max(expected_sample(standing, wanted / world.size) - known, 0))

    runner.run_attacks(first, ahead=ahead(0))
    records.share(world)
    survivors = order[survivors_of(records, suite)[order]]
    margin = records.least_margin(survivors, first)
    while True:
        broken = _verdicts(records, survivors, rest)
        asked, estimate = next_sample(margin, broken, wanted)
        if estimate is not None:
            break
        runner.run_attacks(rest, survivors[asked], ahead(int(np.isfinite(broken).sum()) + len(asked)))
        records.share(world)
    weights = np.ones(records.n)
    weights[survivors] = estimate.weights
    return Sampled(estimate, weights, int(records.spared.sum()))


def survivors_of(records: Records, suite: Suite) -> np.ndarray:
    """Which examples stand after the attacks that all get, and are not proved robust: what is sampled from, (n,) bool."""
    first = (name for name in suite.stages if name not in suite.sampled)
    return np.asarray(records.right & ~records.broken(first) & ~records.spared)


def _verdicts(records: Records, examples: np.ndarray, attacks: list[str]) -> np.ndarray:
    """1 for the examples (b,) that any of the attacks broke, 0 for those that all of them left, NaN for the others."""
    left = np.logical_and.reduce([np.ones(len(examples), bool), *(records[name]["known"][examples] for name in attacks)])
    return np.where(records.broken(attacks, examples), 1.0, np.where(left, 0.0, np.nan))
