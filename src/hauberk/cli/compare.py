"""hauberk compare."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hauberk.cli.parse import given_settings, key_values, parse, peek, program
from hauberk.errors import UserError
from hauberk.published import find_published
from hauberk.settings import TrainSettings

if TYPE_CHECKING:
    from hauberk.studies import Cell


@dataclass(frozen=True)
class Compare:
    """Train methods with several seeds each, evaluate them, and set them side by side: the MAIL paper's Table 2 for any data.

    Example: hauberk compare --methods at,trades,mart,mail-trades --trials 5 --data digits

    Finished runs are never made again: the same command goes on where it was stopped, and more methods or trials may be
    added to it.
    """

    methods: str = "at,trades,mart,fat,at+awp,gairat,mail-at,mail-trades"
    """Names, with commas between them; differences are to the first."""
    trials: int = 5
    """Seeds of each method, from --seed on."""
    data: str = "digits"
    """Name of the data set; see 'hauberk data'."""
    data_dir: Path = Path("data")
    """Folder with the original files of the data set."""
    verify: bool = True
    """Compare checksums of the files with the original ones."""
    model: str = "small-cnn"
    """Name of the network; see 'hauberk models'."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Norm of the threat model."""
    eps: str = ""
    """Radius ε; by default what the literature uses on the data set (L∞ only)."""
    preset: Literal["paper", "official"] = "paper"
    """Follow the methods' papers, or their authors' code where that differs."""
    recipe: Literal["published", "express"] = "published"
    """Where training settings come from that are not given."""
    set: tuple[str, ...] = ()
    """Settings of every method as KEY=VALUE, e.g. steps=5."""
    train_size: int = 0
    """Train on so many examples, the first ones; 0 for all."""
    test_size: int = 0
    """Evaluate on so many examples, the first ones; 0 for all."""
    suite: str = "papers"
    """papers: NAT, PGD-100, APGD, CW-30 and AutoAttack; or quick, standard, plus, rand."""
    settings: TrainSettings = field(default_factory=TrainSettings)
    """Training settings."""
    jobs: int = 0
    """Runs side by side; 0 for one on each GPU, or on each core."""
    slurm: tuple[str, ...] = ()
    """Submit the runs to a Slurm cluster instead, with these settings of submitit as KEY=VALUE, e.g. slurm_partition=gpu
    timeout_min=600 gpus_per_node=1; the same command without it prints the table when they are done."""
    out: Path | None = None
    """Folder of the comparison; by default runs/compare-DATA-MODEL."""
    dry_run: bool = False
    """Say how many runs there are, and estimate their time and disk space; do nothing."""
    quiet: bool = False
    """Print only the table."""


def compare(arguments: Sequence[str]) -> int:
    """Run the command."""
    names = {"--data": "digits", "--model": "small-cnn", "--recipe": "published"}
    data, model, recipe = (peek(arguments, option, usual) for option, usual in names.items())
    published = find_published(data, model, recipe=recipe)
    default = Compare(settings=TrainSettings(**published.settings))
    options = parse(Compare, "compare", arguments, default)
    from rich.console import Console

    from hauberk.files import write_atomically, write_json
    from hauberk.studies import as_csv, as_latex, as_markdown, collect, estimate, rich_table, run_cells, run_on_slurm

    cells = _cells(options, default.settings)
    out = options.out or Path("runs") / f"compare-{options.data}-{options.model}"
    jobs, device = options.jobs or _places(), options.settings.device
    threads = options.settings.threads or max(1, (os.cpu_count() or 1) // jobs)
    if options.dry_run:
        print(estimate(cells, out, jobs=jobs, threads=threads, device=device))
        return 0
    if options.slurm:
        submitted = run_on_slurm(cells, out, settings=key_values("--slurm", options.slurm), verify=options.verify)
        print(f"Submitted {len(submitted)} runs; the same command without --slurm prints the table when they are done")
        return 0
    done = 0

    def told(cell: "Cell", what: str) -> None:
        nonlocal done
        done += 1
        if not options.quiet:
            print(f"{done}/{len(cells)} {cell.method} seed {cell.seed}: {what}", flush=True)

    if not run_cells(cells, out, jobs=jobs, threads=threads, device=device, verify=options.verify, told=told):
        print("Not finished; the same command goes on")
        return 1
    found = collect(cells, out)
    Console().print(rich_table(found))
    for method, doubts in found.doubts.items():
        if doubts:
            print(f"(!) {method}: {', '.join(doubts)}; see the evaluations in {out / method}")
    write_json(out / "comparison.json", found.to_dict())
    for ending, text in {"md": as_markdown(found), "tex": as_latex(found), "csv": as_csv(found)}.items():
        write_atomically(out / f"comparison.{ending}", text.encode())
    print(f"Also in {out} as comparison.json, .md, .tex and .csv. Next: {program()} evaluate {cells[0].folder(out) / 'run'}")
    return 0


def _cells(options: Compare, default: TrainSettings) -> "list[Cell]":
    from hauberk.methods import method
    from hauberk.studies import Cell

    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    if not methods or options.trials < 1:
        raise UserError("--methods needs a name at least, --trials a positive number")
    changed = given_settings(options.settings, default)
    choices: dict[str, Any] = key_values("--set", options.set)
    common = ("data", "model", "norm", "eps", "preset", "recipe", "train_size", "test_size", "suite")
    same = {name: getattr(options, name) for name in common} | {"data_dir": str(options.data_dir)}
    first = options.settings.seed
    for name in methods:  # refuses now what a run would refuse later
        method(name, Cell(method=name, seed=first, **same).threat, preset=options.preset, **choices)
    return [
        Cell(method=name, seed=seed, settings=changed, choices=choices, **same)
        for seed in range(first, first + options.trials)  # a table of all methods as early as possible
        for name in dict.fromkeys(methods)
    ]


def _places() -> int:
    """How many runs fit side by side."""
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1
