"""Each attack of AutoAttack beside the official one (PyPI ``pyautoattack``): strength and CPU time, over several seeds.

    python benchmarks/components.py --checkpoints FOLDER --data-dir FOLDER --network wong --norm L2 --eps 1.5

Both sides run in one process on one thread, in turn, each attack alone on the first images. Every run is kept in ``--out``;
interrupted, or stopped after ``--minutes``, the same command goes on. Prints a table for docs/results.md: robust accuracy in %,
means over the seeds ± standard errors, and the median over the seeds of the ratio of CPU seconds.
"""

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from pathlib import Path
from typing import Literal

import torch
import tyro
from common import kept, print_head, print_row, where
from networks import CHECKPOINTS, load_checkpoint
from torch import Tensor, nn

import hauberk as hb
from hauberk.attacks.presets import AUTOATTACK


@dataclass(frozen=True)
class Options:
    """What is compared, and on what."""

    checkpoints: Path
    """Folder of the networks' files."""
    network: Literal["wong", "convex", "trades", "cnn-a"] = "wong"
    """Which of them."""
    data_dir: Path = Path("data")
    """Folder of the data set's files."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Norm of the ball."""
    eps: float = 0.3
    """Its radius."""
    attacks: tuple[str, ...] = AUTOATTACK
    """Names that both sides know."""
    n: int = 150
    """The first so many test images."""
    seeds: int = 8
    """Runs of each attack."""
    out: Path = Path("runs/components")
    """Folder of the runs."""
    minutes: float = 1e9
    """Stop before a run once so much time has passed."""


def official(model: nn.Module, x: Tensor, y: Tensor, options: Options, attack: str, seed: int) -> float:
    """Robust accuracy after the official attack."""
    from pyautoattack import AutoAttack

    found = AutoAttack(model, eps=options.eps, norm=options.norm, seed=seed, version="standard")
    found.attacks_to_run = [attack]
    adversarial, _ = found.run_standard_evaluation(x, y)
    with torch.no_grad():
        return float((model(adversarial).argmax(1) == y).float().mean())


def ours(model: nn.Module, x: Tensor, y: Tensor, options: Options, attack: str, seed: int) -> float:
    """Robust accuracy after Hauberk's, with the re-check of every success."""
    threat = getattr(hb, options.norm)(options.eps)
    found = hb.evaluate(model, (x, y), threat=threat, attacks=[attack], seed=seed, diagnostics=[], quiet=True)
    return found.robust_accuracy


SIDES = {"official": official, "ours": ours}


def both(options: Options, model: nn.Module, x: Tensor, y: Tensor, attack: str, seed: int) -> dict[str, list[float]]:
    """Robust accuracy and CPU seconds of both sides, which begin in turn."""
    found = {}
    for side in sorted(SIDES, reverse=bool(seed % 2)):
        begun = time.process_time()
        robust = SIDES[side](model, x, y, options, attack, seed)
        found[side] = [robust, time.process_time() - begun]
    return found


def with_error(values: Sequence[float]) -> str:
    """Mean ± standard error, in percent."""
    error = statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
    return f"{100 * statistics.mean(values):.1f} ± {100 * error:.1f}"


def main() -> None:
    """Run what is not kept yet, and print the table."""
    options = tyro.cli(Options)
    stop_at = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    model, data = load_checkpoint(options.network, options.checkpoints), CHECKPOINTS[options.network].data
    x, y = hb.data.load_data(data, "test", options.data_dir).fetch(torch.arange(options.n))
    case = f"{options.network}-{options.norm}-{options.eps}-n{options.n}"
    rows = []
    for attack in options.attacks:
        runs = []
        for seed in range(options.seeds):
            run = partial(both, options, model, x, y, attack, seed)
            runs.append(kept(options.out / f"{case}-{attack}-{seed}.json", run, stop_at))
        shares = {side: with_error([run[side][0] for run in runs]) for side in SIDES}
        seconds = {side: statistics.mean(run[side][1] for run in runs) for side in SIDES}
        ratio = statistics.median(run["ours"][1] / run["official"][1] for run in runs)
        rows.append((attack, shares["official"], shares["ours"], seconds["official"], seconds["ours"], f"{ratio:.2f}"))
    print(f"{options.network}, {options.norm} {options.eps}, first {options.n} images, {options.seeds} seeds, {where()}")
    print_head("attack", "official, robust %", "ours, robust %", "official, CPU s", "ours, CPU s", "ratio")
    for row in rows:
        print_row(*row)


if __name__ == "__main__":
    main()
