"""hauberk demo: the first minutes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hauberk.cli.options import command, free_folder, parse, program, say


@dataclass(frozen=True)
class Demo:
    """Train at, mart and trades on scikit-learn's handwritten digits, attack each, and compare them in one table."""

    out: Path = Path("runs")
    """Folder for the runs; each gets a subfolder digits-METHOD."""
    epochs: int | None = None
    """Number of passes over the training data; by default what is recommended for digits."""
    quiet: bool = False
    """Print only the table."""


def demo(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Demo, "demo", arguments)
    from rich.console import Console

    from hauberk import Linf, evaluate
    from hauberk import train as train_model
    from hauberk.data import DATASETS, load_data
    from hauberk.evaluation import table

    train_set, test_set = load_data("digits", "train"), load_data("digits", "test")
    threat = Linf(DATASETS["digits"].eps)
    same: dict[str, Any] = {"threat": threat, "quiet": options.quiet, "report_every": 10}
    same |= {} if options.epochs is None else {"epochs": options.epochs}
    results = {}
    for method in ("at", "mart", "trades"):
        out = free_folder(options.out / f"digits-{method}")
        if not options.quiet:
            say(f"Training {method} on digits under {threat}, into {out}")
        run = train_model("small-cnn", train_set, method=method, out=out, **same)
        if run.interrupted:
            say(f"Stopped and saved. Go on with: {command('train', '--resume', out)}")
            return 1
        results[method] = evaluate(run.model, test_set, threat=threat, quiet=options.quiet)
        results[method].save(out / "evaluation.json")
    Console().print(table(results))
    for method, result in results.items():
        for found in result.warnings:
            say(f"{method}: {found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    say(f"Runs, weights and verdicts are in {options.out}. Next, for example:")
    say(f"  {command('evaluate', out, '--eps', '0.15')}")
    say(f"  {program()} train --method mart --epochs 100 --ema 0.99")
    say(f"  {program()} --help")
    return 0
