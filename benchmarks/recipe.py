"""What each part of a recipe brings: a plain training, the same with one part more, with all of them, and the presets whole.

    python benchmarks/recipe.py --data cifar10 --data-dir FOLDER

Chosen by images that are held out of the training set, never by test images: PGD-20 and CW-20 on them, at the best and at the
last epoch. Prints a table for docs/performance.md; finished runs are kept in --out.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from common import Options, evaluated, first, parse, print_head, print_row, trained, when

import hauberk as hb
from hauberk.data import DATASETS, Subset

PARTS: dict[str, tuple[str, dict[str, Any]]] = {  # method and settings
    "plain": ("trades", {}),
    "moving average": ("trades", {"ema": -1.0}),
    "crop-shift": ("trades", {"augment": "crop-shift"}),
    "idbh-weak": ("trades", {"augment": "idbh-weak"}),
    "label smoothing 0.1": ("trades", {"label_smoothing": 0.1}),
    "AWP": ("trades+awp", {}),
    "average, label smoothing": ("trades", {"ema": -1.0, "label_smoothing": 0.1}),
    "average, AWP": ("trades+awp", {"ema": -1.0}),
    "average, AWP, label smoothing": ("trades+awp", {"ema": -1.0, "label_smoothing": 0.1}),
    "average, AWP, crop-shift": ("trades+awp", {"ema": -1.0, "augment": "crop-shift"}),
    "average, AWP, idbh-weak": ("trades+awp", {"ema": -1.0, "augment": "idbh-weak"}),
    "average, AWP, idbh-weak, label smoothing": (
        "trades+awp", {"ema": -1.0, "augment": "idbh-weak", "label_smoothing": 0.1}),
    "preset express, at": ("at", {"schedule_preset": "express"}),
    "preset express, trades+awp": ("trades+awp", {"schedule_preset": "express"}),
    "preset robust, at": ("at", {"schedule_preset": "robust", "label_smoothing": 0.1}),
    "preset robust, trades+awp": ("trades+awp", {"schedule_preset": "robust", "label_smoothing": 0.1}),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe(Options):
    """What to run."""

    out: Path = Path("runs/benchmark-recipe")
    """Folder of the runs."""
    train: int = 3_000
    """Training images; so few that a network learns them by heart, as larger ones do with all images."""
    held_out: int = 1_000
    """Images of the training set that the rows are compared on."""
    epochs: int = 30
    """Of each training; presets have their own, as batches and rates."""
    batch_size: int = 64
    """Of the training."""
    lr: float = 0.05
    """Peak of the learning rate."""
    eps: str = ""
    """ε in L∞; by default the usual one of the data. A smaller one makes small networks learn by heart sooner."""
    steps: int = 10
    """PGD steps of the training."""
    seeds: int = 2
    """Trainings of each."""
    only: tuple[str, ...] = ()
    """Names of rows; all of them by default."""


def main() -> None:
    """Train, evaluate on held-out images, print."""
    options = parse(Recipe)
    threat = hb.Linf(options.eps or DATASETS[options.data].eps)
    images = first(options.data, "train", options.data_dir, options.train + options.held_out)
    train_set = Subset(images, torch.arange(options.train))
    held_out = Subset(images, torch.arange(options.train, options.train + options.held_out))
    print(
        f"{options.model}, {options.data}, {threat}, {options.train} images, {options.epochs} epochs, "
        f"PGD-{options.steps}, {when(options.threads)}"
    )
    print_head("recipe", "clean", "robust, best epoch", "robust, last epoch", "seeds")
    for name in options.only or PARTS:
        method, settings = PARTS[name]
        made = hb.method(method, threat, steps=options.steps, label_smoothing=settings.get("label_smoothing", 0.0))
        found = [row(options, name, made, settings, train_set, held_out, seed) for seed in range(options.seeds)]
        print_row(name, *(spread(values) for values in zip(*found, strict=True)), options.seeds)


def row(
    options: Recipe, name: str, method: hb.Method, settings: dict[str, Any], train_set: Subset, held_out: Subset, seed: int
) -> tuple[float, float, float]:
    """Clean accuracy and robust accuracy at the best epoch, and robust accuracy at the last, in percent of held-out images."""
    folder = options.out / options.data / options.model / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    how: dict[str, Any] = {"seed": seed, "threads": options.threads}
    if "schedule_preset" not in settings:
        how |= {name: getattr(options, name) for name in ("epochs", "batch_size", "lr")} | {"augment": "auto"}
    more = {key: value for key, value in settings.items() if key != "label_smoothing"}
    trained(folder, options.model, train_set, method.threat, method=method, **{**how, **more})
    suite = {"attacks": ("pgd-20", "cw-20"), "diagnostics": "cheap"}
    best, last = (
        evaluated(folder, f"held-out-{which}", held_out, method.threat, options.held_out, which=which, **suite)
        for which in ("best", "last")
    )
    return 100 * best["clean_accuracy"], 100 * best["robust_accuracy"], 100 * last["robust_accuracy"]


def spread(values: tuple[float, ...]) -> str:
    """Mean and, of several, deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
