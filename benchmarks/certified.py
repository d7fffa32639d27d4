"""Adversarial and certified training side by side: clean, attacked by AutoAttack, certified; a table for docs/results.md.

    python benchmarks/certified.py
    python benchmarks/certified.py --data mnist --data-dir FOLDER --train 60000 --epochs 20 --lr 0.05

Finished runs are not made again: they are kept in --out, one folder each.
"""

from dataclasses import dataclass
from pathlib import Path

from common import Options, evaluated, first, kept, parse, print_head, print_row, trained, when, with_interval

import hauberk as hb
from hauberk.data import load_data

METHODS = ("at", "mail-trades", "ibp", "crown-ibp", "sabr")


@dataclass(frozen=True)
class Certified(Options):
    """What to run."""

    data: str = "digits"
    """Name of the data set."""
    out: Path = Path("runs/benchmark-certified")
    """Folder of the runs."""
    model: str = "mlp"
    """Network."""
    eps: str = "0.1"
    """ε, in L∞."""
    epochs: int = 40
    """Passes over the training data, with SGD's one-cycle schedule; ε grows over the first half of them, for every method."""
    lr: float = 0.1
    """Peak learning rate."""
    batch_size: int = 64
    """Examples a step."""
    seeds: int = 1
    """Trainings of each method."""


def main() -> None:
    options = parse(Certified)
    train_set = first(options.data, "train", options.data_dir, options.train)
    test_set = load_data(options.data, "test", options.data_dir)
    threat = hb.Linf(options.eps)
    n = min(options.test, len(test_set))
    print(f"{options.data}, {options.model}, {threat}, n = {n}; {when(options.threads)}\n")
    print_head("method", "seed", "clean", "AutoAttack", "certified by intervals", "by CROWN, α-CROWN too", "undecided", "s")
    for name in METHODS:
        for seed in range(options.seeds):
            folder = options.out / f"{options.data}-{name}-{seed}"
            how = {"epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size, "eps_warmup": 0.5}
            card = trained(folder, options.model, train_set, threat, method=name, seed=seed, threads=options.threads, **how)
            attacked = evaluated(folder, "autoattack", test_set, threat, n, suite="standard")
            proved = kept(folder / "certified.json", lambda folder=folder: certified(folder, test_set, threat, n))
            shares = [100 * proved[way] for way in ("ibp", "all")]
            undecided = 100 * attacked["robust_accuracy"] - shares[1]
            clean, seconds = 100 * attacked["clean_accuracy"], round(card["metrics"]["seconds"])
            print_row(f"`{name}`", seed, clean, with_interval(attacked), *shares, undecided, seconds)


def certified(folder: Path, test_set: hb.data.IndexedDataset, threat: hb.ThreatModel, n: int) -> dict[str, float]:
    """Return the shares that intervals prove, and all bounds together."""
    found = hb.certify(hb.load(folder), test_set, threat=threat, n=n, quiet=True)
    by_intervals = sum(way == "ibp" for way in found.proved_by) / found.n
    return {"ibp": by_intervals, "all": found.certified_accuracy}


if __name__ == "__main__":
    main()
