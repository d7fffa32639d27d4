"""hauberk report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hauberk.cli.options import parse


@dataclass(frozen=True)
class Report:
    """Write one HTML file, with pictures, of a run, an evaluation, a comparison or studies. It opens without a network.

    Example: hauberk report runs/mnist-trades
    """

    target: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, an evaluation, a comparison or studies, or the JSON file of an evaluation or a study."""
    out: Path | None = None
    """The file to write; by default report.html in the target."""
    figures: Path | None = None
    """Folder for every picture as PNG, SVG and PDF, and every table as Markdown, LaTeX and CSV."""


def report(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Report, "report", arguments)
    from hauberk.report import make_report

    print(f"Written to {make_report(options.target, options.out, options.figures)}. Next: open it in any browser")
    return 0
