"""hauberk compare FOLDER ...: evaluations that are there already, set side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hauberk.cli.options import command, parse, say, usual_folder
from hauberk.experiments.paper_tables import PAPER_TABLES

if TYPE_CHECKING:
    from hauberk.experiments import Comparison


@dataclass(frozen=True)
class CompareResults:
    """Set evaluations side by side that are there already, of networks trained by any loop; nothing is trained or attacked.

    Example: hauberk compare runs/at-0 runs/at-1 runs/mine-0 runs/mine-1 --baseline at

    Example: hauberk compare at=at-0.json,at-1.json mine=mine-0.json,mine-1.json

    With several seeds of each method: means, deviations, and a paired t-test over the seeds. With one of each: McNemar's exact
    test over the test examples, which is about these two networks and says nothing about another training.
    """

    results: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|FILE|NAME=PATH,PATH")]
    """Folders of runs or evaluations, or with such folders in them, or files that Evaluation.save wrote. Method and seed are
    those of the run; without one, those that the file's or folder's name says (mine-0, mine-seed-1, mine/seed-2).
    NAME=PATH,PATH names a method and lists its evaluations in the order of the seeds."""
    baseline: str = ""
    """The method that the others' differences are to; by default the first."""
    out: Path | None = None
    """Folder of table and figure; by default runs/results-METHOD-METHOD..."""


def names_results(arguments: Sequence[str]) -> bool:
    """Whether the arguments of ``hauberk compare`` name evaluations rather than a table of the papers, or what to train."""
    first = next(iter(arguments), "-")
    if first.startswith("-") or first in PAPER_TABLES:
        return False
    return "=" in first or "/" in first or "." in first or Path(first).exists()


def compare_results(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(CompareResults, "compare", arguments)
    from hauberk.experiments import compare_results as compared
    from hauberk.experiments import find_results

    groups, seeds = find_results(options.results)
    found = compared(groups, baseline=options.baseline, seeds=seeds)
    out = options.out or usual_folder("results", *groups)
    sources = [f"{method}: {', '.join(map(str, paths))}" for method, paths in groups.items()]
    show_and_save(found, out, "see 'hauberk report' of these evaluations", sources)
    return 0


def show_and_save(found: "Comparison", out: Path, where: str, sources: Sequence[str] = ()) -> None:
    """Print a comparison, lines on where its numbers come from, and where to look if they are doubted; write its files."""
    from rich.console import Console

    Console().print(found.table().to_rich())
    for line in sources:
        say(line)
    if any(found.doubts.values()):
        say(f"(!) Numbers are doubted: {where}")
    found.save(out)
    say(f"Also in {out} as comparison.json, .md, .tex, .csv, .png, .svg and .pdf. Next: {command('report', out)}")
