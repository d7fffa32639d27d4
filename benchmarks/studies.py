"""Every study with several seeds: results beside claims, a page in docs/ with the pictures.

    python benchmarks/studies.py

On digits 252 trainings took about two hours of a CPU core, their attacks three quarters of an hour.
Studies whose results are in --out are not run again; networks are kept there, too.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import DOCS, STOPPED, Options, parse, when, write_page
from PIL import Image

from hauberk.core.io import read_json
from hauberk.experiments import Experiment
from hauberk.experiments.options import DataOptions, ModelOptions, SubsetOptions
from hauberk.experiments.processes import usual_jobs
from hauberk.experiments.studies import STUDIES, StudyContext, StudyResult, find_study
from hauberk.experiments.studies.side_by_side import train_side_by_side

PICTURES = DOCS / "images/studies"
WIDTH = 620  # pixels; a column of a page


@dataclass(frozen=True)
class Studies(Options):
    """What to run."""

    data: str = "digits"
    """Name of the data set."""
    out: Path = Path("runs/benchmark-studies")
    """Folder of networks and results."""
    train: int = 0
    """Training images; 0 for all."""
    test: int = 0
    """Test images; 0 for all."""
    trials: int = 3
    """Seeds of each network."""
    jobs: int = 0
    """Networks trained side by side; 0 for one on each GPU, or on each core."""


def main() -> None:
    options = parse(Studies)
    base = Experiment(
        "at",
        0,
        data=DataOptions(options.data, str(options.data_dir)),
        model=ModelOptions(options.model),
        subset=SubsetOptions(options.train, options.test),
    )
    say = partial(print, flush=True)
    context = StudyContext(base, options.out, threads=options.threads, trials=options.trials, say=say)
    studies = [find_study(name) for name in STUDIES]
    if not train_side_by_side(studies, context, jobs=options.jobs or usual_jobs(), threads=options.threads):
        print(STOPPED)
        return
    results = []
    for study in studies:
        path = options.out / f"{study.name}.json"
        if not path.exists():
            study.run(context).save(options.out, study.draw)
        results.append(StudyResult(**read_json(path)))
        print(f"{study.name:16} {results[-1].verdict}: {results[-1].found}", flush=True)
        copy_picture(options.out / f"{study.name}.png")
    write_results(options, context, results)


def copy_picture(path: Path) -> None:
    """Put a picture beside the page, no larger than a page shows it."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDTH, 4 * WIDTH))
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture.quantize(64, method=Image.Quantize.MEDIANCUT).save(PICTURES / path.name, optimize=True)


def write_results(options: Studies, context: StudyContext, results: list[StudyResult]) -> None:
    lines = [
        "# Studies: claims and findings",
        "",
        f"`python benchmarks/studies.py`: {context}, {len(context.examples()[1]):,} test examples. "
        "Each sentence of a claim is tested by two standard errors over seeds and test images together; a claim "
        '"agrees" if all its sentences do, and "does not agree" if one does not. [`hauberk study`](commands.md#hauberk-study) '
        "repeats each on your data; the pictures are those it writes.",
        "",
        f"{when(options.threads)}.",
        "",
        "| study | verdict |",
        "|---|---|",
        *(f"| [{one.study}](#{one.study}) | {one.verdict} |" for one in results),
    ]
    for one in results:
        title, *body = one.to_markdown().rstrip().splitlines()
        said = body[3:]  # without the line that every study would repeat
        lines += ["", f"#{title}", "", *said[:3], "", f"![Picture of the study {one.study}](images/studies/{one.study}.png)"]
        lines += said[3:]
    write_page("studies.md", lines)


if __name__ == "__main__":
    main()
