"""Every method on one data set, one small network, one seed, a reduced budget: a table in docs/.

    python benchmarks/methods.py --data fashion-mnist --data-dir FOLDER

Finished methods are not run again: the runs are kept in --out, one folder each.
"""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import tyro
from cells import evaluated, first, trained

import hauberk as hb
from hauberk.data import DATASETS, load_data
from hauberk.methods import METHODS

# Its extra output makes its numbers another quantity: robust accuracy with rejection.
METHODS = [name for name in METHODS if name != "adversarial-class"]
METHODS += ["at+awp", "trades+awp", "mart+awp", "mail-at+awp", "mail-trades+awp"]
ATTACKS = ("pgd-100", "cw-100", "apgd-ce")


@dataclass(frozen=True)
class Options:
    """What to run."""

    data: str = "fashion-mnist"
    """Name of the data set."""
    data_dir: Path = Path("data")
    """Folder of its files."""
    out: Path = Path("runs/benchmark-methods")
    """Folder of the runs."""
    train: int = 10_000
    """Training images."""
    test: int = 1_000
    """Test images."""
    epochs: int = 10
    """Passes over them; free-at makes its 8 replays within them, so it makes an eighth of the passes."""
    threads: int = 1
    """CPU threads."""


def main() -> None:
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    train_set = first(options.data, "train", options.data_dir, options.train)
    test_set = load_data(options.data, "test", options.data_dir)
    threat = hb.Linf(DATASETS[options.data].eps)
    rows = []
    for name in METHODS:
        folder = options.out / name
        epochs = max(1, options.epochs // METHODS[name.split("+")[0]].replays)
        card = trained(
            folder,
            "small-cnn",
            train_set,
            threat,
            method=name,
            epochs=epochs,
            lr=0.05,
            schedule="steps",
            milestones=(0.5, 0.8),
            eps_warmup=0.3,
            threads=options.threads,
        )
        found = evaluated(folder, "evaluation", test_set, threat, options.test, attacks=ATTACKS)
        strong = evaluated(folder, "autoattack", test_set, threat, options.test, suite="standard")
        seconds = card["metrics"]["seconds"]
        rows.append((name, found, strong, seconds))
        numbers = found["clean_accuracy"], strong["robust_accuracy"]
        print(f"{name:16} clean {numbers[0]:.3f} AutoAttack {numbers[1]:.3f} {seconds:.0f} s", flush=True)
    write_table(options, str(threat), rows)


def write_table(options: Options, threat: str, rows: list) -> None:
    lines = [
        f"# Methods on {options.data}, reduced budget",
        "",
        f"`python benchmarks/methods.py --data {options.data} --data-dir FOLDER`: small CNN, {threat}, {options.train:,} "
        f"training images, {options.epochs} epochs, SGD 0.05 divided by 10 at 50 % and 80 %, ε warm-up over 30 %, one seed; "
        f"best epoch by PGD-10 on held-out training images; the first {options.test:,} test images. Reweighting starts at the "
        "first drop.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, Hauberk {hb.__version__}, torch {torch.__version__.split('+')[0]}, Python "
        f"{platform.python_version()}, {options.threads} thread(s) of a 2-core x86-64 CPU (seconds are of a shared machine).",
        "",
        "Accuracy in % with Wilson 95 % intervals; under attack these are upper bounds. ! marks results with warnings, see "
        "the files in the folder of the runs.",
        "",
        "| method | NAT | PGD-100 | CW-100 (κ 0) | APGD-CE | AutoAttack | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found, strong, seconds in rows:
        attacks = [f"{100 * found['by_attack'][attack]:.1f}" for attack in ATTACKS]
        low, high = (100 * end for end in strong["interval"])
        doubt = " !" if any(d["verdict"] != "ok" for d in strong["diagnostics"]) else ""
        worst = f"{100 * strong['robust_accuracy']:.1f} [{low:.1f}, {high:.1f}]{doubt}"
        lines.append(f"| `{name}` | {100 * found['clean_accuracy']:.1f} | {' | '.join(attacks)} | {worst} | {seconds:.0f} |")
    (Path(__file__).parents[1] / "docs" / f"methods-{options.data}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
