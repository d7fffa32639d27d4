"""Everything that docs/performance.md wants from a GPU, in one command that goes on where it was stopped.

    python benchmarks/gpu.py --data-dir FOLDER --minutes 8      (again and again, until it says that all is done)

Steps beside the public code's and beside the passes alone; seconds per epoch for each method; the MAIL paper's training of
MAIL-TRADES (ResNet-18, 100 epochs) and its evaluation; the schedule preset express. Results go to benchmarks/results/gpu.md.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import STOPPED, Options, evaluated, first, method_at_once, parse, trained, where

import hauberk as hb
from hauberk.core.io import read_json, write_json
from hauberk.data import load_data

METHODS = ("standard", "at", "mart", "mail-at", "trades", "mail-trades", "gairat", "fat", "at+awp", "trades+awp", "mma", "alp")


@dataclass(frozen=True)
class Gpu(Options):
    """What to run; smaller numbers try the command itself on a CPU."""

    out: Path = Path("runs/gpu")
    """Folder of the runs."""
    minutes: float = 8.0
    """Stop and save after so many."""
    model: str = "resnet18"
    """Network."""
    train: int = 50_000
    """Training images."""
    test: int = 10_000
    """Test images."""
    epochs: int = 100
    """Epochs of the MAIL paper's training."""
    batch: int = 128
    """Examples of a step."""
    rounds: int = 20
    """Times each step is made."""
    device: str = "cuda"
    """Where."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


def main() -> None:
    """Measure until the time is over."""
    options = parse(Gpu)
    # Training and evaluation save and stop when they are asked to.
    alarm = threading.Timer(60 * options.minutes, lambda: os.kill(os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        measure(options)
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None


def measure(options: Gpu) -> None:
    """Measure what is missing."""
    parts = [f"{options}\n{where(options.device)}", steps(options), epochs(options)]
    results = Path(__file__).parent / "results" / "gpu.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text("\n\n".join(parts) + "\n")
    parts += [paper(options), express(options)]
    results.write_text("\n\n".join(parts) + "\n")
    print("all is done:", results)


def steps(options: Gpu) -> str:
    """Steps beside the public code's."""
    kept = options.out / "steps.md"
    if not kept.exists():
        forms = ["fp32", "bf16", "bf16+compile"]
        words = [
            sys.executable,
            str(Path(__file__).with_name("steps.py")),
            "--device",
            options.device,
            "--model",
            options.model,
        ]
        words += ["--batch", str(options.batch), "--rounds", str(options.rounds), "--forms", *forms]
        kept.write_text(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return kept.read_text()


def epochs(options: Gpu) -> str:
    """Seconds of the second epoch of each method: the first one warms up."""
    rows = ["| method | seconds per epoch |", "|---|---|"]
    for method in METHODS:
        kept = options.out / f"epoch-{method}.json"
        if not kept.exists():
            train_set = first(options.data, "train", options.data_dir, options.train)
            how: dict[str, Any] = {"epochs": 2, "batch_size": options.batch, "val_size": 0, "schedule": "one-cycle"}
            how |= {"precision": "bf16", "compile": "auto", "device": options.device}
            bound = method_at_once(method, hb.Linf("8/255"))
            run = hb.train(options.model, train_set, method=bound, quiet=True, **how)
            if run.interrupted:
                raise SystemExit(STOPPED)
            spent = [row["seconds"] for row in run.metrics]
            write_json(kept, {"seconds": spent[1] - spent[0]})
        rows.append(f"| `{method}` | {read_json(kept)['seconds']:.2f} |")
    return "\n".join(rows)


def paper(options: Gpu) -> str:
    """MAIL-TRADES as in the MAIL paper, and what it reaches."""
    return _run(options, "mail-trades", {"method": "mail-trades", "epochs": options.epochs}, "81.84 / 53.68 / 52.89 / 50.60")


def express(options: Gpu) -> str:
    """The fast schedule."""
    return _run(options, "express", {"schedule_preset": "express"}, "the row above, in less time")


def _run(options: Gpu, name: str, how: dict[str, Any], aim: str) -> str:
    folder, threat = options.out / name, hb.Linf("8/255")
    train_set = first(options.data, "train", options.data_dir, options.train)
    begun = time.perf_counter()
    card = trained(folder, options.model, train_set, threat, device=options.device, precision="bf16", compile="auto", **how)
    test_set = load_data(options.data, "test", options.data_dir)
    found = evaluated(folder, "papers", test_set, threat, options.test, suite="papers", batch_size=500)
    numbers = [
        found["clean_accuracy"],
        *(found["by_attack"][column] for column in ("pgd-100-last", "cw-20-last", "autoattack")),
    ]
    cells = " / ".join(f"{100 * number:.2f}" for number in numbers)
    seconds = card["metrics"]["seconds"]
    print(f"{name}: {cells}, {time.perf_counter() - begun:.0f} s of this sitting", flush=True)
    return f"{name}: NAT / PGD-100 / CW-30 / AutoAttack {cells} after {seconds:.0f} s of training (beside {aim})"


if __name__ == "__main__":
    main()
