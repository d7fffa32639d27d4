"""The suite "fast" beside "standard": how often its interval covers, and what it costs and says on networks.

    python benchmarks/fast_suite.py --checkpoints FOLDER --data-dir FOLDER

Two tables for docs/results.md. First, ten populations of survivors that are made up, and many samples of each: how often the
interval covers what the whole protocol would break, how many are sampled, and what all costs as a part of AutoAttack's passes.
Then networks: published ones, and two trained here; each is evaluated with both suites. What ``fast`` would cost for 10,000
examples is simulated: survivors are drawn, with replacement, from those that were attacked. Results are kept in ``--out``; a
command that is stopped goes on.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import first, kept, print_head, print_row, trained, where
from networks import CHECKPOINTS, load_checkpoint
from torch import nn

import hauberk as hb
from hauberk.attacks import find_suite
from hauberk.data import load_data
from hauberk.evaluation.estimate import Estimate, next_sample

N = 10_000
SUITE = find_suite("fast")
# Of each: survivors of 10,000 examples, and how likely the rest breaks one, by its rank of margin (0 to 1).
POPULATIONS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "nothing more is broken": (5100, lambda rank: 0 * rank),
    "ten, anywhere": (5100, lambda rank: 0.002 + 0 * rank),
    "few of the lowest": (5100, lambda rank: 0.05 * (rank < 0.05)),
    "as an honest network": (5100, lambda rank: np.where(rank < 0.1, 0.08, 0.001)),
    "masked in part (Wong)": (8600, lambda rank: np.where(rank < 0.1, 0.46, 0.03)),
    "weak first attacks (GAIRAT)": (5500, lambda rank: 0.75 * (1 - rank) + 0.03),
    "weak, whatever the margin": (5500, lambda rank: 0.4 + 0 * rank),
    "margins that say the opposite": (5000, lambda rank: 0.5 * (rank > 0.95)),
    "nearly all is broken": (9000, lambda rank: 0.93 + 0 * rank),
    "few survivors": (300, lambda rank: np.where(rank < 0.1, 0.3, 0.01)),
}
# Checkpoint or, of those trained here, method; data set; ε.
EVALUATED: dict[str, tuple[str, str, str]] = {
    "MNIST, Wong et al. (masked in part)": ("wong", "mnist", "0.3"),
    "MNIST, TRADES": ("trades", "mnist", "0.3"),
    "MNIST, convex (certified)": ("convex", "mnist", "0.1"),
    "CIFAR-10, CNN-A": ("cnn-a", "cifar10", "2/255"),
    "MNIST, MAIL-TRADES, trained here": ("mail-trades", "mnist", "0.2"),
    "MNIST, GAIRAT, trained here": ("gairat", "mnist", "0.2"),
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    checkpoints: Path
    """Folder of the published networks' files."""
    data_dir: Path = Path("data")
    """Folder of MNIST and CIFAR-10."""
    out: Path = Path("runs/fast-suite")
    """Folder for what is found."""
    draws: int = 2000
    """Samples of each population."""
    n: int = 500
    """Test examples."""
    to: float = 1.5
    """Half-width that is asked of ``fast`` on the networks, in points; in all simulations it is 1."""
    train: int = 6000
    """Training examples of the networks that are trained here."""
    only: tuple[str, ...] = ()
    """Names of populations and networks; all by default."""
    threads: int = 1
    """CPU threads."""


def costs() -> tuple[int, int]:
    """Passes of an example that stands: of the first attacks, and of the rest."""
    threat = hb.Linf(0.1)
    total = {False: 0, True: 0}
    for name, preset in SUITE.attacks.items():
        attack, _ = preset.adapted(threat, 10)
        runs = len(range(attack.n_runs(10))[slice(*preset.runs)])
        total[name in SUITE.sampled] += runs * attack.max_steps * attack.passes_per_step
    return total[False], total[True]


def sample(margin: np.ndarray, truth: np.ndarray, wanted: float, draws: np.random.Generator) -> Estimate:
    """Sample as ``fast`` does, where it is known what the rest breaks: margins and truth (M,)."""
    order, known = draws.permutation(len(truth)), np.full(len(truth), np.nan)
    while True:
        asked, found = next_sample(margin[order], known, wanted)
        if found is not None:
            return found
        known[asked] = truth[order][asked]


def price(found: dict[str, Any]) -> str:
    """Passes of ``fast`` as a part of AutoAttack's, both on survivors alone."""
    begin, rest = costs()
    return f"{(begin + rest * found['sampled'] / found['survivors']) / (begin + rest):.2f}"


def simulated(margin: np.ndarray, truth: np.ndarray, n: int, draws: int) -> dict[str, float]:
    """Draw many samples of one population of n examples: how often the interval covers, its size, and its price."""
    generator, count = np.random.default_rng(0), truth.sum()
    found = [sample(margin, truth, 0.01 * n, generator) for _ in range(draws)]
    sampled = float(np.mean([one.sampled for one in found]))
    return {
        "broken": int(count), "sampled": sampled, "survivors": len(truth),
        "covered": float(np.mean([one.low <= count <= one.high for one in found])),
        "half": float(np.mean([(one.high - one.low) / 2 for one in found])) / n,
        "error": float(np.sqrt(np.mean([(one.broken - count) ** 2 for one in found]))) / n,
    }  # fmt: skip


def of_population(name: str, draws: int) -> dict[str, Any]:
    """Simulate one of the populations."""
    survivors, chance = POPULATIONS[name]
    rank = np.arange(survivors) / survivors
    truth = (np.random.default_rng(1).random(survivors) < chance(rank)).astype(float)
    return simulated(rank, truth, N, draws)


def network(name: str, options: Options) -> nn.Module:
    """Load a published network, or train one."""
    kind, data, eps = EVALUATED[name]
    if kind in CHECKPOINTS:
        return load_checkpoint(kind, options.checkpoints)
    folder = options.out / kind
    train_set = first(data, "train", options.data_dir, options.train)
    trained(folder, "small-cnn", train_set, hb.Linf(eps), method=kind, epochs=8, eps_warmup=0.3, threads=options.threads)
    return hb.load(folder, which="last")


def of_network(name: str, options: Options) -> dict[str, Any]:
    """Evaluate with both suites."""
    _, data, eps = EVALUATED[name]
    model, test_set = network(name, options), load_data(data, "test", options.data_dir)
    how = {"threat": hb.Linf(eps), "n": options.n, "quiet": True, "diagnostics": "cheap", "batch_size": 64}
    results, seconds = {}, {}
    for suite in ("fast", "standard"):
        begun = time.process_time()
        results[suite] = hb.evaluate(model, test_set, suite=suite, to=options.to, **how)
        seconds[suite] = time.process_time() - begun
    fast, whole = results["fast"], results["standard"]
    robust = [np.array([one is None for one in result.broken_by]) for result in (fast, whole)]
    attacked = fast.sampled.weights > 0
    begin = [attack for attack in SUITE.stages if attack not in SUITE.sampled]
    standing = fast.records.right & ~fast.records.broken(begin)
    truth, margin = 1.0 - robust[1][standing], fast.records.least_margin(standing, begin)
    more = np.random.default_rng(0).integers(len(truth), size=round(standing.mean() * N))  # survivors of 10,000 examples
    return {
        "clean": whole.clean_accuracy, "standard": whole.robust_accuracy, "fast": fast.robust_accuracy,
        "interval": fast.sampled.interval, "estimate": asdict(fast.sampled.estimate) | {"weights": None},
        "agree": int((robust[0] == robust[1])[attacked].sum()), "attacked": int(attacked.sum()),
        "passes": {suite: sum(result.provenance["passes"].values()) for suite, result in results.items()},
        "seconds": seconds, "large": simulated(margin[more], truth[more], N, 100),
    }  # fmt: skip


def main() -> None:
    """Run, or read, all of it."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    print(f"{options}, {where()}, first attacks {costs()[0]} passes, the rest {costs()[1]}\n")
    some = set(options.only) or {*POPULATIONS, *EVALUATED}
    print_head("population", "survivors", "the rest breaks", "covered, %", "± points", "error", "sampled", "of the price")
    for name in filter(some.__contains__, POPULATIONS):
        found = kept(options.out / f"{name}-{options.draws}.json", lambda name=name: of_population(name, options.draws))
        half, error = (f"{100 * found[key]:.2f}" for key in ("half", "error"))
        covered = f"{100 * found['covered']:.1f}"
        sampled = f"{found['sampled']:,.0f}"
        print_row(name, POPULATIONS[name][0], found["broken"], covered, half, error, sampled, price(found))
    print()
    print_head("network", "clean", "standard", "fast", "sampled", "agree", "passes", "CPU s", "price at n = 10,000 and ± 1")
    for name in filter(some.__contains__, EVALUATED):
        found = kept(options.out / f"{name}-{options.n}-{options.to}.json", lambda name=name: of_network(name, options))
        low, high = (100 * end for end in found["interval"])
        passes, seconds = (f"{found[key]['fast'] / found[key]['standard']:.2f}" for key in ("passes", "seconds"))
        counts = f"{found['estimate']['sampled']} of {found['estimate']['survivors']}"
        clean, whole, fast = (f"{100 * found[key]:.1f}" for key in ("clean", "standard", "fast"))
        large = found["large"]
        of_10000 = f"{price(large)} (± {100 * large['half']:.2f}, covered {100 * large['covered']:.0f} %)"
        agree = f"{found['agree']} of {found['attacked']}"
        print_row(name, clean, whole, f"{fast} [{low:.1f}, {high:.1f}]", counts, agree, passes, seconds, of_10000)


if __name__ == "__main__":
    main()
