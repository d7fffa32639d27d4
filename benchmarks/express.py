"""What a short training can do: candidates of a fast schedule beside 100 epochs as in the MAIL paper, on a part of a data set.

    python benchmarks/express.py --data cifar10 --data-dir FOLDER
    python benchmarks/express.py --data fashion-mnist --data-dir FOLDER

Prints a table for docs/performance.md; finished experiments are kept in --out. Seconds are of training, by the clock of each;
relative time is epochs times the seconds of a step, which are measured in turns, as the machine may be shared.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Options, evaluated, first, method_at_once, parse, print_head, print_row, trained, where, with_interval

import hauberk as hb
from hauberk.data import DATASETS, IndexedDataset, load_data
from hauberk.models import ModelSpec

BATCH, ROUNDS = 128, 12
REFERENCE = "mail-trades, 100 epochs"
PAPER = {"epochs": 100, "schedule": "steps", "milestones": (75.0, 90.0)}
SHORT = {"schedule": "one-cycle"}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "mail-trades, 100 epochs": {"method": "mail-trades", **PAPER},
    "at, 20 epochs": {"method": "at", "epochs": 20, **SHORT},
    "trades, 20 epochs": {"method": "trades", "epochs": 20, **SHORT},
    "trades, EMA, 20 epochs": {"method": "trades", "epochs": 20, "ema": 0.99, **SHORT},
    "trades+awp, EMA, 20 epochs": {"method": "trades+awp", "epochs": 20, "ema": 0.99, **SHORT},
    "trades+awp, EMA, 10 epochs": {"method": "trades+awp", "epochs": 10, "ema": 0.99, **SHORT},
    "trades+awp, EMA, 30 epochs": {"method": "trades+awp", "epochs": 30, "ema": 0.99, **SHORT},
    "at, lr 0.2, 20 epochs": {"method": "at", "epochs": 20, "lr": 0.2, **SHORT},
    "at, EMA, lr 0.2, 20 epochs": {"method": "at", "epochs": 20, "ema": 0.99, "lr": 0.2, **SHORT},
    "at+awp, EMA, lr 0.2, 20 epochs": {"method": "at+awp", "epochs": 20, "ema": 0.99, "lr": 0.2, **SHORT},
    "trades+awp, EMA, lr 0.2, 20 epochs": {"method": "trades+awp", "epochs": 20, "ema": 0.99, "lr": 0.2, **SHORT},
    "at, EMA, lr 0.2, 30 epochs": {"method": "at", "epochs": 30, "ema": 0.99, "lr": 0.2, **SHORT},
    "at, EMA, lr 0.1, 10 epochs": {"method": "at", "epochs": 10, "ema": 0.99, "lr": 0.1, **SHORT},
    "at, EMA, lr 0.1, 20 epochs": {"method": "at", "epochs": 20, "ema": 0.99, "lr": 0.1, **SHORT},
    "at+awp, EMA, lr 0.1, 20 epochs": {"method": "at+awp", "epochs": 20, "ema": 0.99, "lr": 0.1, **SHORT},
    "at, EMA, lr 0.1, 30 epochs": {"method": "at", "epochs": 30, "ema": 0.99, "lr": 0.1, **SHORT},
    "mail-trades, EMA, lr 0.1, 40 epochs": {"method": "mail-trades", "epochs": 40, "ema": 0.99, "lr": 0.1, **SHORT},
    "at, EMA, lr 0.1, 40 epochs": {"method": "at", "epochs": 40, "ema": 0.99, "lr": 0.1, **SHORT},
}


@dataclass(frozen=True)
class Express(Options):
    """What to run."""

    out: Path = Path("runs/benchmark-express")
    """Folder of the runs."""
    test: int = 500
    """Test images."""
    only: tuple[str, ...] = ()
    """Names of experiments; all of them by default."""
    lr: float = 0.05
    """Learning rate, at its peak, where an experiment does not say its own."""
    seed: int = 0
    """Seed of the trainings."""


def main() -> None:
    """Train, evaluate, print."""
    options = parse(Express)
    train_set = first(options.data, "train", options.data_dir, options.train)
    test_set = load_data(options.data, "test", options.data_dir)
    threat = hb.Linf(DATASETS[options.data].eps)
    print(f"{options}, {where()}")
    steps = step_seconds(options, train_set, threat)
    whole = EXPERIMENTS[REFERENCE]["epochs"] * steps[EXPERIMENTS[REFERENCE]["method"]]
    print_head("training", "NAT", "AutoAttack", "relative time", "s")
    for name in options.only or EXPERIMENTS:
        how = {"lr": options.lr} | EXPERIMENTS[name] | {"seed": options.seed, "threads": options.threads, "precision": "bf16"}
        if "mnist" in options.data:
            how["eps_warmup"] = 0.3  # as the published settings of these data sets
        folder = options.out / options.data / f"{name.replace(', ', '-').replace(' ', '-')}-{options.seed}"
        card = trained(folder, options.model, train_set, threat, **how)
        found = evaluated(folder, "autoattack", test_set, threat, options.test, suite="standard", precision="bf16")
        relative = f"{how['epochs'] * steps[how['method']] / whole:.2f}"
        print_row(name, 100 * found["clean_accuracy"], with_interval(found), relative, f"{card['metrics']['seconds']:.0f}")


def step_seconds(options: Express, train_set: IndexedDataset, threat: hb.ThreatModel) -> dict[str, float]:
    """Medians of a step of each method, taken in turns."""
    x, y = train_set.fetch(torch.arange(BATCH))
    model = ModelSpec(options.model, tuple(x.shape[1:]), 10).build().train()
    bound = {how["method"]: method_at_once(how["method"], threat, precision="bf16") for how in EXPERIMENTS.values()}
    spent: dict[str, list[float]] = {name: [] for name in bound}
    for _ in range(ROUNDS):
        for name, method in bound.items():
            begun = time.perf_counter()
            method(model, x, y).loss.backward()
            spent[name].append(time.perf_counter() - begun)
    return {name: median(seconds[1:]) for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
