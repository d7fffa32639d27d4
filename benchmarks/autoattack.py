"""Hauberk's AutoAttack beside the official one (PyPI ``pyautoattack``): all of ``standard``, same network, images, machine.

    python benchmarks/autoattack.py --checkpoints FOLDER --data-dir FOLDER --network wong --norm L2 --eps 1.5 --n 100

Networks and data are those of ``components.py``, which compares attack by attack; every run is kept in ``--out``, and the same
command goes on. With one thread and one process, the default, both sides run in this process, in turn, and their CPU time is
compared; with more, Hauberk runs in as many processes of one thread, and the time on the clock is compared. Prints a table
for docs/results.md: means over the seeds ± standard errors, medians of the ratio of seconds, passes of an example.
"""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import components
import torch
import tyro
from common import kept, print_head, print_row, where
from networks import CHECKPOINTS, load_checkpoint
from torch import Tensor, nn

import hauberk as hb
from hauberk.core.distributed import init_distributed


@dataclass(frozen=True)
class Options(components.Options):
    """What is compared, and on what."""

    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """What Hauberk's attacks run in."""
    processes: int = 1
    """Hauberk's processes, and the official code's threads."""
    out: Path = Path("runs/autoattack")
    """Folder of the runs."""
    part_of: Path | None = None
    """Set by this script itself: file that the first of several processes writes to."""


class Counter:
    """Counts the examples that go forward through a model, and backward."""

    def __init__(self, model: nn.Module):
        self.forwards = self.backwards = 0
        self.hook = model.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._backward)

    def _backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def seconds(options: Options) -> float:
    """CPU seconds of this process, or on the clock where there are several."""
    return time.process_time() if options.processes == 1 else time.perf_counter()


def official(options: Options, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[float]:
    """Robust accuracy, seconds and passes of the official code, with its own batch size."""
    from pyautoattack import AutoAttack

    counter, begun = Counter(model), seconds(options)
    attack = AutoAttack(model, eps=options.eps, norm=options.norm, seed=seed, version="standard")
    adversarial, _ = attack.run_standard_evaluation(x, y)
    took = seconds(options) - begun
    counter.hook.remove()
    with torch.no_grad():
        robust = float((model(adversarial).argmax(1) == y).float().mean())
    return [robust, took, counter.forwards, counter.backwards]


def ours(options: Options, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[float]:
    """Robust accuracy, seconds and passes of Hauberk, with the re-check of every success and without diagnostics."""
    threat, begun = getattr(hb, options.norm)(options.eps), seconds(options)
    how: dict[str, Any] = {"suite": "standard", "seed": seed, "precision": options.precision}
    found = hb.evaluate(model, (x, y), threat=threat, diagnostics=[], quiet=True, **how)
    return [found.robust_accuracy, seconds(options) - begun, *found.provenance["passes"].values()]


def ours_in_processes(options: Options, seed: int) -> list[float]:
    """The same in processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        settings = {
            "--checkpoints": options.checkpoints, "--network": options.network, "--data-dir": options.data_dir,
            "--norm": options.norm, "--eps": options.eps, "--n": options.n, "--seeds": seed, "--precision": options.precision,
            "--processes": options.processes, "--part-of": found,
        }  # fmt: skip
        world = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(options.processes), "--", __file__]
        subprocess.run(world + [str(word) for pair in settings.items() for word in pair], check=True, capture_output=True)
        return list(json.loads(found.read_text()))


def part(options: Options, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """What each of several processes does."""
    assert options.part_of is not None
    with init_distributed() as world:
        world.all_gather_object(None)  # all begin at once
        found = ours(options, model, x, y, options.seeds)
        if world.is_main:
            options.part_of.write_text(json.dumps(found))


def both(options: Options, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, list[float]]:
    """Run both sides, which begin in turn."""
    found = {}
    for side in sorted(components.SIDES, reverse=bool(seed % 2)):
        if side == "official":
            found[side] = official(options, model, x, y, seed)
        elif options.processes == 1:
            found[side] = ours(options, model, x, y, seed)
        else:
            found[side] = ours_in_processes(options, seed)
    return found


def main() -> None:
    """Run what is not kept yet, and print the table."""
    options = tyro.cli(Options)
    stop_at = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1 if options.part_of else options.processes)
    logging.basicConfig(level=logging.WARNING)
    model, data = load_checkpoint(options.network, options.checkpoints), CHECKPOINTS[options.network].data
    x, y = hb.data.load_data(data, "test", options.data_dir).fetch(torch.arange(options.n))
    if options.part_of:
        part(options, model, x, y)
        return
    case = f"{options.network}-{options.norm}-{options.eps}-n{options.n}-{options.precision}-{options.processes}"
    runs = [
        kept(options.out / f"{case}-{seed}.json", partial(both, options, model, x, y, seed), stop_at)
        for seed in range(options.seeds)
    ]
    print(f"{options.network}, {options.norm} {options.eps}, first {options.n} images, {options.seeds} seeds, {where()}")
    print_head("", "robust %", "CPU s" if options.processes == 1 else "seconds", "of official", "forwards", "backwards")
    for side in sorted(components.SIDES, reverse=True):
        robust, took, forwards, backwards = zip(*(run[side] for run in runs), strict=True)
        ratio = statistics.median(run[side][1] / run["official"][1] for run in runs)
        passes = (f"{statistics.mean(count) / options.n:,.0f}" for count in (forwards, backwards))
        print_row(side, components.with_error(robust), statistics.mean(took), f"{ratio:.2f}", *passes)


if __name__ == "__main__":
    main()
