"""Every study at a meaningful size: results beside claims, a page in docs/.

    python benchmarks/studies.py --data fashion-mnist --data-dir FOLDER

One seed took about an hour and a half on one CPU core.
Studies whose results are in --out are not run again; networks are kept there, too.
"""

from dataclasses import dataclass
from pathlib import Path

from common import Options, parse, when, write_page

from hauberk.core.io import read_json
from hauberk.experiments import Experiment
from hauberk.experiments.options import DataOptions, ModelOptions, SubsetOptions
from hauberk.experiments.studies import STUDIES, StudyContext, StudyResult, find_study


@dataclass(frozen=True)
class Studies(Options):
    """What to run."""

    data: str = "fashion-mnist"
    """Name of the data set."""
    out: Path = Path("runs/benchmark-studies")
    """Folder of networks and results."""
    epochs: int = 8
    """Passes over the training images."""
    trials: int = 3
    """Seeds of each network."""


def main() -> None:
    options = parse(Studies)
    base = Experiment(
        "at",
        0,
        data=DataOptions(options.data, str(options.data_dir)),
        model=ModelOptions(options.model),
        subset=SubsetOptions(options.train, options.test),
        settings={"epochs": options.epochs},
    )
    context = StudyContext(base, options.out, threads=options.threads, trials=options.trials)
    results = []
    for name in STUDIES:
        path = options.out / f"{name}.json"
        if not path.exists():
            study = find_study(name)
            study.run(context).save(options.out, study.draw)
        results.append(StudyResult(**read_json(path)))
        print(f"{name:16} {results[-1].verdict}: {results[-1].found}", flush=True)
    write_results(options, context, results)


def write_results(options: Studies, context: StudyContext, results: list[StudyResult]) -> None:
    lines = [
        "# Studies: claims and findings",
        "",
        f"`python benchmarks/studies.py --data {options.data} --data-dir FOLDER`: {context}, {options.test:,} test images. "
        "Each sentence of a claim is tested by two standard errors over seeds and test images together; a claim "
        '"agrees" if all its sentences do, and "does not agree" if one does not.',
        "",
        f"{when(options.threads)}.",
        "",
        "| study | verdict |",
        "|---|---|",
        *(f"| [{one.study}](#{one.study}) | {one.verdict} |" for one in results),
    ]
    for one in results:
        title, *body = one.to_markdown().rstrip().splitlines()
        lines += ["", f"#{title}", "", *body[3:]]  # without the line that every study would repeat
    write_page("studies.md", lines)


if __name__ == "__main__":
    main()
