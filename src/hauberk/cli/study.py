"""hauberk study: experiments of the papers on any data."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hauberk.cli.options import command, common_parts, parse, program, say, usual_folder
from hauberk.core.errors import UserError
from hauberk.experiments.options import (
    STUDY_SETTINGS,
    DataOptions,
    ModelOptions,
    SubsetOptions,
    ThreatOptions,
    TrainSettings,
    as_options,
)
from hauberk.training.published import resolve

if TYPE_CHECKING:
    from hauberk.experiments.studies import StudyContext
    from hauberk.experiments.studies.study import Study as AnyStudy


@dataclass(frozen=True)
class Study:
    """Repeat an experiment of the papers on your data: a table, a picture, and whether it agrees with what they claim.

    Example: hauberk study lps-vs-pm --data digits

    Example: hauberk study --all --dry-run

    Example: hauberk study --all --report

    Each sentence of a claim is tested by two standard errors over seeds and test examples; where these do not tell, nor
    does the study. Networks are kept, and shared by all studies in the same folder.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the study; all are listed if there is none."""
    all: bool = False
    """Run every study, one after another; one that does not fit your data is said and left out."""
    report: bool = False
    """Write report.html with claims, verdicts, tables and pictures of all studies in the folder."""
    dry_run: bool = False
    """Say which networks would be trained, and estimate the time; do nothing."""
    data: DataOptions = DataOptions()
    subset: SubsetOptions = SubsetOptions(test_size=500)
    threat: ThreatOptions = ThreatOptions()
    model: ModelOptions = ModelOptions()
    trials: int = 3
    """Number of seeds that each network is trained with, from --seed on; the verdict needs two at least."""
    jobs: int = 0
    """Number of networks trained side by side; 0 for one on each GPU, or on each core."""
    quiet: bool = False
    """Print only what was found."""
    out: Path | None = None
    """Folder for networks, which studies share, and results; by default runs/study-DATA-MODEL."""
    settings: TrainSettings = field(default_factory=dict)
    """Training settings."""


def study(arguments: Sequence[str]) -> int:
    """Run the command."""

    def with_published(options: Study) -> Study:
        found = resolve(options.data.name, options.model.name, settings={**STUDY_SETTINGS, **options.settings})
        return replace(options, settings=as_options(found.config))

    options = parse(Study, "study", arguments, with_published)
    from hauberk.experiments.studies import STUDIES, find_study

    if options.name and options.all:
        raise UserError("name a study, or run --all")
    if not options.name and not options.all:
        width = max(map(len, STUDIES))
        say("\n".join(f"{name:<{width}} {what}" for name, (what, *_) in STUDIES.items()))
        say(f"Next: {program()} study NAME --data digits. The papers' tables are comparisons: {program()} compare table2")
        return 0
    from hauberk.experiments.processes import usual_jobs, usual_threads
    from hauberk.experiments.studies.context import silent
    from hauberk.experiments.studies.plan import fitting, plan_studies
    from hauberk.experiments.studies.side_by_side import train_side_by_side

    chosen = [find_study(name) for name in (STUDIES if options.all else [options.name])]
    if options.trials < 1:
        raise UserError("--trials needs a positive number")
    context = _context(options)
    chosen, refused = fitting(chosen, context)
    if refused and (not options.all or not chosen):
        raise UserError(next(iter(refused.values())))
    for name, why in refused.items():
        say(f"{name}: {why}", file=sys.stderr)
    jobs = options.jobs or usual_jobs()
    threads = context.threads or usual_threads(jobs)
    if options.dry_run:
        plan = plan_studies(chosen, replace(context, threads=threads), jobs)
        say(plan.table.to_markdown())
        say(plan)
        say("Next: the same command without --dry-run")
        return 0
    told = replace(context, say=silent if options.quiet else partial(say, file=sys.stderr))
    if jobs > 1 and not train_side_by_side(chosen, told, jobs=jobs, threads=threads):
        say("Not finished; the same command goes on")
        return 1
    left_out = [*refused, *(one.name for one in chosen if not _run(one, context, options))]
    if options.report:
        from hauberk.report import make_report

        say(f"Report: {make_report(context.out)}")
    else:
        say(f"Next: {command('report', context.out)}")
    if left_out:
        say(f"Left out: {', '.join(left_out)}")
    return 0


def _context(options: Study) -> "StudyContext":
    from hauberk.experiments import Experiment
    from hauberk.experiments.studies import StudyContext

    given = dict(options.settings)
    seed = given.pop("seed", 0)  # of the first trial: each has its own
    out = options.out or usual_folder("study", options.data.name, options.model.name)
    base = Experiment("at", seed, settings=given, **common_parts(options))
    context = StudyContext(
        base, out, device=given.get("device", "auto"), threads=given.get("threads", 0), trials=options.trials
    )
    _ = context.config  # refuses senseless settings before anything is begun
    return context


def _run(chosen: "AnyStudy", context: "StudyContext", options: Study) -> bool:
    """Run a study, and print and write what it found; whether that could be done."""

    def tell(text: str) -> None:
        if not options.quiet:
            say(f"{chosen.name}: {text}", file=sys.stderr)

    try:
        found = chosen.run(replace(context, say=tell))
        found.save(context.out, chosen.draw)
    except UserError as error:
        if not options.all or str(error).startswith("stopped"):
            raise
        say(f"{chosen.name}: {error}", file=sys.stderr)
        return False
    say(found.to_markdown())
    files = [f"{found.study}.json", ".md", ".csv", ".png", ".svg", ".pdf"]
    say(f"In {context.out}: {', '.join([*files, '-examples.csv'] if found.examples else files)}")
    return True
