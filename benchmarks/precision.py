"""Does training in bfloat16 change the result? Robust accuracy in float32 and bfloat16, several seeds, a part of CIFAR-10.

    python benchmarks/precision.py --data-dir FOLDER

Prints a table for docs/performance.md; finished experiments are kept in --out.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from common import Options, evaluated, first, parse, print_head, print_row, trained, where

import hauberk as hb
from hauberk.data import DATASETS, load_data

ATTACKS = ("pgd-20", "apgd-ce", "apgd-t")


@dataclass(frozen=True)
class Precision(Options):
    """What to run."""

    out: Path = Path("runs/benchmark-precision")
    """Folder of the runs."""
    method: str = "trades"
    """Method."""
    epochs: int = 15
    """Passes over the training images."""
    lr: float = 0.05
    """Peak of the one-cycle schedule."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""


def main() -> None:
    """Train, evaluate, print."""
    options = parse(Precision)
    train_set = first(options.data, "train", options.data_dir, options.train)
    test_set = load_data(options.data, "test", options.data_dir)
    threat = hb.Linf(DATASETS[options.data].eps)
    print(f"{options}, {where()}")
    print_head("precision", "seed", "NAT", "PGD-20", "after APGD-CE and APGD-T", "s")
    robust: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for seed in options.seeds:
        for precision, kept in robust.items():
            folder = options.out / f"{options.model}-{options.method}-{precision}-{seed}"
            how = {"epochs": options.epochs, "lr": options.lr, "threads": options.threads}
            card = trained(
                folder, options.model, train_set, threat, method=options.method, precision=precision, seed=seed, **how
            )
            found = evaluated(folder, "evaluation", test_set, threat, options.test, attacks=ATTACKS)
            kept.append(100 * found["robust_accuracy"])
            pgd = 100 * found["by_attack"]["pgd-20"]
            print_row(precision, seed, 100 * found["clean_accuracy"], pgd, kept[-1], card["metrics"]["seconds"])
    for precision, kept in robust.items():
        print(f"{precision}: {mean(kept):.2f} ± {stdev(kept):.2f} (mean ± standard deviation)")


if __name__ == "__main__":
    main()
