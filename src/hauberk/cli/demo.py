"""hauberk demo: the first minute."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hauberk.cli.options import parse, program

METHODS = ("at", "mart", "trades")


@dataclass(frozen=True)
class Demo:
    """Train at, mart and trades on scikit-learn's handwritten digits, attack each, and compare them in one table."""

    out: Path = Path("runs")
    """Folder for the runs; each gets a subfolder digits-METHOD."""
    epochs: int | None = None
    """ModelQueries over the training data; by default what is recommended for digits."""
    quiet: bool = False
    """Print only the table."""


def demo(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Demo, "demo", arguments)
    from rich.console import Console

    from hauberk import Linf, evaluate, train
    from hauberk.cli.train import free_folder
    from hauberk.data import DATASETS, load_data
    from hauberk.evaluation import table

    train_set, test_set = load_data("digits", "train"), load_data("digits", "test")
    threat = Linf(DATASETS["digits"].eps)
    given: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    results = {}
    for method in METHODS:
        out = free_folder(options.out / f"digits-{method}")
        if not options.quiet:
            print(f"Training {method} on digits under {threat}, into {out}")
        run = train(
            "small-cnn", train_set, method=method, threat=threat, out=out, quiet=options.quiet, report_every=10, **given
        )
        if run.interrupted:
            print(f"Stopped and saved. Go on with: {program()} train --resume {out}")
            return 1
        results[method] = evaluate(run.model, test_set, threat=threat, quiet=options.quiet)
        results[method].save(out / "evaluation.json")
    Console().print(table(results))
    for method, result in results.items():
        for found in result.warnings:
            print(f"{method}: {found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    print(f"Runs, weights and verdicts are in {options.out}. Next, for example:")
    print(f"  {program()} evaluate {out} --eps 0.15")
    print(f"  {program()} train --method mart --epochs 100 --ema 0.99")
    print(f"  {program()} --help")
    return 0
