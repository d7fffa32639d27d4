"""hauberk compare."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hauberk.cli.options import given_settings, key_values, parse, peek, program
from hauberk.core.errors import UserError, unknown_name
from hauberk.experiments.paper_tables import PAPER_TABLES, SURROGATE, parse_methods, scale_budget, table_choices, table_settings
from hauberk.training.config import TrainConfig
from hauberk.training.published import find_published

if TYPE_CHECKING:
    from hauberk.experiments import Cell


@dataclass(frozen=True)
class Compare:
    """Train methods with several seeds each, evaluate them, and set them side by side: the MAIL paper's Table 2 for any data.

    Example: hauberk compare --methods at,trades,mart,mail-trades --trials 5 --data digits
    Example: hauberk compare table2 --data-dir ~/data --budget 0.01 --trials 1

    Finished runs are never made again: the same command goes on where it was stopped, and more methods or trials may be
    added to it.
    """

    table: Annotated[str, tyro.conf.Positional] = ""
    """A table of the papers, with its methods, data, network, settings and attacks: table1, table2, table3 (MAIL),
    mart-white-box, mart-black-box."""
    budget: float = 1.0
    """Share of each training's passes to make: its root is the share of the epochs and of the examples."""
    methods: str = "at,trades,mart,fat,at+awp,gairat,mail-at,mail-trades"
    """Names, with commas between them, perhaps with settings: at,trades:beta=1;steps=5. Differences are to the first;
    in table1, from each PM to LPS with the same objective."""
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
    settings: TrainConfig = field(default_factory=TrainConfig)
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
    default = _default(arguments)
    options = parse(Compare, "compare", arguments, default)
    if options.table and options.table not in PAPER_TABLES:
        raise unknown_name("table", options.table, PAPER_TABLES)
    from rich.console import Console

    from hauberk.core.io import write_atomically, write_json
    from hauberk.experiments import collect, estimate, run_cells, run_on_slurm
    from hauberk.experiments.experiment import train_cell

    kind = options.table or "compare"
    out = options.out or Path("runs") / f"{kind}-{Path(options.data).stem}-{options.model}"
    cells = _cells(options, default.settings, out)
    jobs, device = options.jobs or _places(), options.settings.device
    threads = options.settings.threads or max(1, (os.cpu_count() or 1) // jobs)
    if options.dry_run:
        print(estimate(cells, out, jobs=jobs, threads=threads, device=device))
        print("Next: the same command without --dry-run")
        return 0
    named = _surrogate(cells[0])
    if cells[0].surrogate and not train_cell(named, out / "surrogate", device, threads, options.verify):
        print("Not finished; the same command goes on")
        return 1
    if options.slurm:
        submitted = run_on_slurm(cells, out, settings=key_values("--slurm", options.slurm), verify=options.verify)
        print(f"Submitted {len(submitted)} runs; the same command without --slurm prints the table when they are done")
        return 0
    done = 0

    def told(cell: "Cell", what: str) -> None:
        nonlocal done
        done += 1
        if not options.quiet:
            print(f"{done}/{len(cells)} {cell.name} seed {cell.seed}: {what}", flush=True)

    if not run_cells(cells, out, jobs=jobs, threads=threads, device=device, verify=options.verify, on_progress=told):
        print("Not finished; the same command goes on")
        return 1
    found = collect(cells, out, options.table)
    table, runs = found.table(), found.runs_table()
    Console().print(table.to_rich())
    if any(found.doubts.values()):
        print(f"(!) Numbers are doubted: see the evaluations of these methods in {out}")
    write_json(out / "comparison.json", asdict(found))
    for ending, text in {"md": table.to_markdown(), "tex": table.to_latex(), "csv": runs.to_csv()}.items():
        write_atomically(out / f"comparison.{ending}", text.encode())
    print(f"Also in {out} as comparison.json, .md, .tex and .csv. Next: {program()} report {out}")
    return 0


def _default(arguments: Sequence[str]) -> Compare:
    """What is used where the command line says nothing: the table's, or what fits data and network."""
    table = PAPER_TABLES.get(arguments[0] if arguments else "")
    data = peek(arguments, "--data", table.data if table else "digits")
    model = peek(arguments, "--model", table.model if table else "small-cnn")
    recipe = peek(arguments, "--recipe", "published")
    settings = table_settings(table, data, model) if table else find_published(data, model, recipe=recipe).settings
    methods = table.methods if table else Compare.methods
    return Compare(data=data, model=model, methods=methods, settings=TrainConfig(**settings))


def _cells(options: Compare, default: TrainConfig, out: Path) -> "list[Cell]":
    from hauberk.data import load_data
    from hauberk.experiments import Cell

    if options.trials < 1:
        raise UserError("--trials needs a positive number")
    table = PAPER_TABLES.get(options.table)
    usual = TrainConfig(**find_published(options.data, options.model, recipe=options.recipe).settings)
    changed = given_settings(options.settings, default if table is None else usual)
    train_size, test_size = options.train_size, options.test_size
    if options.budget != 1:
        sizes = (len(load_data(options.data, split, options.data_dir, verify=False)) for split in ("train", "test"))
        small, train, test = scale_budget(options.settings, options.budget, *sizes)
        changed |= {"epochs": small.epochs, "milestones": small.milestones}
        train_size, test_size = train_size or train, test_size or test
    common = ("data", "model", "norm", "eps", "preset", "recipe", "suite")
    same: dict[str, Any] = {name: getattr(options, name) for name in common} | {"data_dir": str(options.data_dir)}
    same |= {"train_size": train_size, "test_size": test_size, "settings": changed, "attacks": table.attacks if table else ()}
    first = options.settings.seed
    if table and table.black_box:
        named = _surrogate(Cell(SURROGATE, first, **same))
        same["surrogate"] = str((named.folder(out / "surrogate") / "run").resolve())
    rows = []
    for label, name, pairs in parse_methods(options.methods):
        choices = table_choices(table, options.data, options.model, name) if table else {}
        choices |= key_values("--set", options.set) | key_values("--methods", tuple(f"{k}={v}" for k, v in pairs.items()))
        rows.append(Cell(method=name, seed=first, choices=choices, label=label if pairs else "", **same))
        _ = rows[-1].bound  # refuses now what a run would refuse later
    # A table of all methods as early as possible.
    return [replace(row, seed=seed) for seed in range(first, first + options.trials) for row in rows]


def _surrogate(cell: "Cell") -> "Cell":
    """What black-box attacks are crafted on: a network trained without an attack, with a seed that no other has."""
    return replace(cell, method=SURROGATE, seed=cell.seed + 1000, choices={}, label="", surrogate="", attacks=())


def _places() -> int:
    """How many runs fit side by side."""
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1
