"""Does training in bfloat16 change the result? Robust accuracy in float32 and bfloat16, several seeds, a part of CIFAR-10.

    python benchmarks/precision.py --data-dir FOLDER

Prints a table for docs/performance.md; finished cells are kept in --out.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from cells import evaluated, first, trained

import hauberk as hb
from hauberk.core.environment import machine, versions
from hauberk.data import load_data

ATTACKS = ("pgd-20", "apgd-ce", "apgd-t")


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    """Folder with CIFAR-10."""
    out: Path = Path("runs/benchmark-precision")
    """Folder of the runs."""
    model: str = "small-cnn"
    """Network."""
    method: str = "trades"
    """Method."""
    train: int = 5_000
    """Training images."""
    test: int = 1_000
    """Test images."""
    epochs: int = 15
    """Passes over them."""
    lr: float = 0.05
    """Peak of the one-cycle schedule."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the trainings."""
    threads: int = 1
    """CPU threads."""


def main() -> None:
    """Train, evaluate, print."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    train_set = first("cifar10", "train", options.data_dir, options.train)
    test_set = load_data("cifar10", "test", options.data_dir)
    threat = hb.Linf("8/255")
    print(f"{options}, {machine(torch.device('cpu'))}, {versions()}")
    print("| precision | seed | NAT | PGD-20 | after APGD-CE and APGD-T | s |\n|---|---|---|---|---|---|")
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
            cells = 100 * found["clean_accuracy"], 100 * found["by_attack"]["pgd-20"], kept[-1], card["metrics"]["seconds"]
            print(f"| {precision} | {seed} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)
    for precision, kept in robust.items():
        print(f"{precision}: {mean(kept):.2f} ± {stdev(kept):.2f} (mean ± standard deviation)")


if __name__ == "__main__":
    main()
