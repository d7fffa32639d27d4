"""hauberk study."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hauberk.cli.options import given_settings, parse, peek, program
from hauberk.training.config import TrainConfig
from hauberk.training.published import find_published


@dataclass(frozen=True)
class Study:
    """Repeat an experiment of the papers on your data: a table, a picture, and whether it agrees with what they claim.

    Example: hauberk study lps-vs-pm --data digits
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the study; all are listed if there is none."""
    data: str = "digits"
    """Name of the data set; see 'hauberk data'."""
    data_dir: Path = Path("data")
    """Folder with the original files of the data set."""
    verify: bool = True
    """Compare checksums of the files with the original ones."""
    model: str = "small-cnn"
    """Name of the network; see 'hauberk models'."""
    eps: str = ""
    """Radius ε in L∞; by default what the literature uses on the data set."""
    train_size: int = 0
    """Train on so many examples, the first ones; 0 for all."""
    test_size: int = 500
    """Look at so many examples, the first ones; 0 for all."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """Training settings."""
    out: Path | None = None
    """Folder for networks, which studies share, and findings; by default runs/study-DATA-MODEL."""


def study(arguments: Sequence[str]) -> int:
    """Run the command."""
    published = find_published(peek(arguments, "--data", "digits"), peek(arguments, "--model", "small-cnn"))
    default = Study(settings=TrainConfig(**published.settings))
    options = parse(Study, "study", arguments, default)
    from hauberk.experiments.studies import STUDIES, find_study

    if not options.name:
        print("\n".join(f"{name:<17} {what}" for name, (what, _) in STUDIES.items()))
        print(f"Next: {program()} study NAME --data digits. The papers' tables are comparisons: {program()} compare table2")
        return 0
    chosen = find_study(options.name)
    from hauberk.experiments import Cell
    from hauberk.experiments.studies import StudyContext

    out = options.out or Path("runs") / f"study-{Path(options.data).stem}-{options.model}"
    base = Cell(
        "at",
        options.settings.seed,
        data=options.data,
        data_dir=str(options.data_dir),
        model=options.model,
        eps=options.eps,
        train_size=options.train_size,
        test_size=options.test_size,
        settings=given_settings(options.settings, default.settings),
    )
    context = StudyContext(base, out, device=options.settings.device, threads=options.settings.threads, verify=options.verify)
    found = chosen.run(context)
    found.save(out, chosen.draw)
    print(found.to_markdown())
    print(f"In {out}: {found.study}.json, .md, .csv, .png, .svg, .pdf. Next: {program()} report {out}")
    return 0
