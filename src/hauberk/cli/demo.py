"""hauberk demo: the first minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.cli.options import command, free_folder, parse, program, say

if TYPE_CHECKING:
    from rich.table import Table

    from hauberk.evaluation import Evaluation

DATA, MODEL = "digits", "small-cnn"
METHODS = ("standard", "at", "trades", "mail-trades")  # the last one gets the report
_TESTED = 100  # images that are attacked and certified


@dataclass(frozen=True)
class Demo:
    """Train robust classifiers of scikit-learn's handwritten digits, bound how robust they are from both sides, write a report.

    Trained are a standard network, and others by at, trades and mail-trades. Attacks show how many of 100 test images stay
    right at most, proofs how many at least.
    """

    out: Path = Path("runs")
    """Folder for the runs; each gets a subfolder digits-METHOD."""
    epochs: int = 25
    """Number of passes over the training data: fewer than are recommended for digits, so that it takes under 3 minutes."""
    quiet: bool = False
    """Print only the results."""


def demo(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Demo, "demo", arguments)
    from rich.console import Console

    from hauberk import Linf, evaluate
    from hauberk import train as train_model
    from hauberk.data import DATASETS, load_data
    from hauberk.report import make_report

    train_set, test_set = load_data(DATA, "train"), load_data(DATA, "test")
    threat = Linf(DATASETS[DATA].eps)
    same: dict[str, Any] = {"threat": threat, "quiet": options.quiet, "report_every": 5, "epochs": options.epochs}
    results: dict[str, Evaluation] = {}
    for count, method in enumerate(METHODS, 1):
        out = free_folder(options.out / f"{DATA}-{method}")
        if not options.quiet:
            say(f"{count}/{len(METHODS)} Training {method} on {DATA} under {threat}, into {out}")
        run = train_model(MODEL, train_set, method=method, out=out, **same)
        if run.interrupted:
            say(f"Stopped and saved. Go on with: {command('train', '--resume', out)}")
            return 1
        if not options.quiet:
            say(f"{count}/{len(METHODS)} Attacking {method} on {_TESTED} test images, and proving what no attack can break")
        folder = out / "evaluations" / f"quick-{_TESTED}-certified"
        asked: dict[str, Any] = {"threat": threat, "n": _TESTED, "certify": True, "out": folder, "quiet": options.quiet}
        results[method] = evaluate(run.model, test_set, **asked)
    Console().print(bounds_table(results))
    for method, result in results.items():
        for found in result.warnings:
            say(f"{method}: {found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    say(f"Report with pictures: {make_report(out)} (open it in any browser)")
    say(f"Runs, weights and verdicts are in {options.out}. Next, for example:")
    say(f"  {command('evaluate', out, '--suite', 'standard', '--n', '100')}")
    say(f"  {command('train', '--config', out / 'config.toml', '--measure', 'pm-nat')}")
    say(f"  {program()} --help")
    return 0


def bounds_table(results: "Mapping[str, Evaluation]") -> "Table":
    """Lay out, for each network, the share of test images it is right on, and the bounds of that under attack."""
    from rich.table import Table
    from rich.text import Text

    from hauberk.evaluation.finding import warning_mark

    some = next(iter(results.values()))
    attacks = ", ".join(some.by_attack)
    shown = Table(
        title=f"Right on so many of {some.n} test images, in %, with 95 % intervals",
        caption=f"Under attack by {some.threat}. At most: the worst case of {attacks}; a stronger attack may find more. "
        "At least: proved, whatever the attack.",
    )
    shown.add_column("trained by")
    columns = {"clean": "not attacked", "worst case": "attacked, at most", "certified": "at least"}
    for title in columns.values():
        shown.add_column(title, justify="right")
    for method, result in results.items():
        found = (result.accuracies[name] for name in columns)
        cells = (f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for share, (low, high) in found)
        shown.add_row(method + warning_mark(result.diagnostics), *map(Text, cells))
    return shown
