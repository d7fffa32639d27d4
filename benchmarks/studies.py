"""Every study at a meaningful size: findings beside claims, a page in docs/.

    python benchmarks/studies.py --data fashion-mnist --data-dir FOLDER

About an hour and a half on one CPU core. Studies whose findings are in --out are not run again; networks are kept there, too.
"""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import tyro

import hauberk as hb
from hauberk.core.io import read_json
from hauberk.experiments import Experiment
from hauberk.experiments.options import DataOptions, SubsetOptions
from hauberk.experiments.studies import STUDIES, Finding, Setting, find_study


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: str = "fashion-mnist"
    """Name of the data set."""
    data_dir: Path = Path("data")
    """Folder of its files."""
    out: Path = Path("runs/benchmark-studies")
    """Folder of networks and findings."""
    train: int = 5_000
    """Training images."""
    test: int = 1_000
    """Test images."""
    epochs: int = 8
    """Passes over them."""
    threads: int = 1
    """CPU threads."""


def main() -> None:
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    base = Experiment(
        "at",
        0,
        data=DataOptions(options.data, str(options.data_dir)),
        subset=SubsetOptions(options.train, options.test),
        settings={"epochs": options.epochs},
    )
    setting = Setting(base, options.out, threads=options.threads)
    findings = []
    for name in STUDIES:
        path = options.out / f"{name}.json"
        if not path.exists():
            study = find_study(name)
            study.run(setting).save(options.out, study.draw)
        findings.append(Finding(**read_json(path)))
        print(f"{name:16} {findings[-1].verdict}: {findings[-1].found}", flush=True)
    write_page(options, setting, findings)


def write_page(options: Options, setting: Setting, findings: list[Finding]) -> None:
    lines = [
        "# Studies: claims and findings",
        "",
        f"`python benchmarks/studies.py --data {options.data} --data-dir FOLDER`: {setting}, {options.test:,} test images. One "
        "training of each network, so another seed would scatter further than the standard errors, which are those of the test "
        'images. "Agrees" asks for two of them. "Strong" is APGD on cross-entropy, then on targeted DLR towards 3 classes.',
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, Hauberk {hb.__version__}, torch {torch.__version__.split('+')[0]}, Python "
        f"{platform.python_version()}, {options.threads} thread(s) of a 2-core x86-64 CPU.",
        "",
        "| study | verdict |",
        "|---|---|",
        *(f"| [{one.study}](#{one.study}) | {one.verdict} |" for one in findings),
    ]
    for one in findings:
        title, *body = one.as_markdown().rstrip().splitlines()
        lines += ["", f"#{title}", "", *body[3:]]  # without the line that every study would repeat
    (Path(__file__).parents[1] / "docs" / "studies.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
