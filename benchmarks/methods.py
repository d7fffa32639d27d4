"""Every method on one data set, one small network, one seed, a reduced budget: a table in docs/.

    python benchmarks/methods.py --data fashion-mnist --data-dir FOLDER

Finished methods are not run again: the runs are kept in --out, one folder each.
"""

from dataclasses import dataclass
from pathlib import Path

from common import Options, evaluated, first, parse, trained, when, with_interval, write_page

import hauberk as hb
from hauberk.data import DATASETS, load_data
from hauberk.methods import get_method_spec

# An extra output makes its numbers another quantity, robust accuracy with rejection; and no teacher is at hand.
METHODS = [name for name in hb.list_methods() if name != "adversarial-class" and not get_method_spec(name).needs_teacher]
METHODS += ["at+awp", "trades+awp", "mart+awp", "mail-at+awp", "mail-trades+awp"]
ATTACKS = ("pgd-100", "cw-100", "apgd-ce")


@dataclass(frozen=True)
class Methods(Options):
    """What to run."""

    data: str = "fashion-mnist"
    """Name of the data set."""
    out: Path = Path("runs/benchmark-methods")
    """Folder of the runs."""
    train: int = 10_000
    """Training images."""
    epochs: int = 10
    """Passes over the training images; free-at makes its 8 replays within them, so it makes an eighth of the passes."""


def main() -> None:
    options = parse(Methods)
    train_set = first(options.data, "train", options.data_dir, options.train)
    test_set = load_data(options.data, "test", options.data_dir)
    threat = hb.Linf(DATASETS[options.data].eps)
    rows = []
    for name in METHODS:
        folder = options.out / name
        epochs = max(1, options.epochs // hb.method(name, threat).n_replays)
        card = trained(
            folder,
            options.model,
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


def write_table(options: Methods, threat: str, rows: list) -> None:
    lines = [
        f"# Methods on {options.data}, reduced budget",
        "",
        f"`python benchmarks/methods.py --data {options.data} --data-dir FOLDER`: {options.model}, {threat}, {options.train:,} "
        f"training images, {options.epochs} epochs, SGD 0.05 divided by 10 at 50 % and 80 %, ε warm-up over 30 %, one seed; "
        f"best epoch by PGD-10 on held-out training images; the first {options.test:,} test images. Reweighting starts at the "
        "first drop.",
        "",
        f"{when(options.threads)} (seconds are of a shared machine).",
        "",
        "Accuracy in % with Wilson 95 % intervals; under attack these are upper bounds. ! marks results with warnings, see "
        "the files in the folder of the runs.",
        "",
        "| method | NAT | PGD-100 | CW-100 (κ 0) | APGD-CE | AutoAttack | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found, strong, seconds in rows:
        attacks = [f"{100 * found['by_attack'][attack]:.1f}" for attack in ATTACKS]
        clean, worst = 100 * found["clean_accuracy"], with_interval(strong)
        lines.append(f"| `{name}` | {clean:.1f} | {' | '.join(attacks)} | {worst} | {seconds:.0f} |")
    write_page(f"methods-{options.data}.md", lines)


if __name__ == "__main__":
    main()
