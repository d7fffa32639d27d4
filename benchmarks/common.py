"""What benchmarks share: options, runs that are kept and never made twice, and how results are printed."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

import hauberk as hb
from hauberk.core.io import machine, make_folder, read_json, versions, write_json
from hauberk.data import Subset, load_data

DOCS = Path(__file__).parents[1] / "docs"
STOPPED = "stopped; run the same command to go on"
T = TypeVar("T", bound="Options")


@dataclass(frozen=True)
class Options:
    """What every benchmark on a data set takes."""

    data: str = "cifar10"
    """Name of the data set."""
    data_dir: Path = Path("data")
    """Folder of its files."""
    out: Path = Path("runs/benchmark")
    """Folder of the runs."""
    model: str = "small-cnn"
    """Network."""
    train: int = 5_000
    """Training images."""
    test: int = 1_000
    """Test images."""
    threads: int = 1
    """CPU threads; 0 leaves torch's choice."""


def parse(kind: type[T]) -> T:
    """Read the command line, and set the number of threads."""
    options = tyro.cli(kind)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def where(device: str = "cpu") -> str:
    """Return machine and versions, for what is printed."""
    return f"{machine(torch.device(device))}, {versions()}"


def when(threads: int) -> str:
    """Return date, versions and machine, for a page."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, Hauberk {hb.__version__}, torch {torch.__version__.split('+')[0]}, Python "
        f"{platform.python_version()}, {threads} thread(s) of a 2-core x86-64 CPU"
    )


def print_head(*names: str) -> None:
    """Print the head of a table."""
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def print_row(*cells: Any) -> None:
    """Print a row of a table, a float with one digit."""
    texts = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(texts)} |", flush=True)


def write_page(name: str, lines: list[str]) -> None:
    """Write a page of the docs."""
    (DOCS / name).write_text("\n".join(lines) + "\n")


def kept(path: Path, make: Callable[[], Any], stop_at: float = inf) -> Any:
    """Return what was found before, or find it and keep it as JSON; not after ``stop_at``, by the monotonic clock."""
    if not path.exists():
        if time.monotonic() > stop_at:
            raise SystemExit(STOPPED)
        make_folder(path.parent)
        write_json(path, make())
    return read_json(path)


def with_interval(found: dict[str, Any]) -> str:
    """Return the robust accuracy of an evaluation in percent, with its interval and what marks a doubted one."""
    low, high = (100 * end for end in found["interval"])
    doubt = " !" if any(d["verdict"] != "ok" for d in found["diagnostics"]) else ""
    return f"{100 * found['robust_accuracy']:.1f} [{low:.1f}, {high:.1f}]{doubt}"


def first(data: str, split: str, folder: Path, count: int) -> Subset:
    """Return the first examples of a named data set."""
    whole = load_data(data, split, folder)
    return Subset(whole, torch.arange(min(count, len(whole))))


def trained(folder: Path, model: str, train_set: Any, threat: hb.ThreatModel, **how: Any) -> dict[str, Any]:
    """Train into the folder, or go on with what is in it; returns the card of the last epoch."""
    card, begun = folder / "last.json", folder / "run.json"
    if not card.exists() or read_json(card)["epoch"] < read_json(begun)["settings"]["epochs"]:
        resume = begun.exists()
        run = hb.train(model, train_set, threat=threat, out=folder, resume=resume, quiet=True, **how)
        if run.interrupted:
            raise SystemExit(STOPPED)
    return read_json(card)


def method_at_once(name: str, threat: hb.ThreatModel, **how: Any) -> hb.Method:
    """Return a method that reweights and perturbs weights from the first step on, as the steps that are timed need it."""
    burn_in = {} if hb.method(name, threat).weighting is None else {"burn_in": 0}
    return hb.method(name, threat, awp_warmup=0, **burn_in, **how)


def evaluated(
    folder: Path, name: str, test_set: Any, threat: hb.ThreatModel, n: int, device: str = "cpu", which: str = "best", **how: Any
) -> dict[str, Any]:
    """Evaluate the best network of the folder, or the last, on the device, or return what was found before."""
    kept = folder / f"{name}.json"
    if not kept.exists():
        model = hb.load(folder, device=device, which=which)
        hb.evaluate(model, test_set, threat=threat, n=n, out=folder / name, quiet=True, **how).save(kept)
    return read_json(kept)
