"""hauberk compare: many trainings, each kept and never made twice."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hauberk.cli.compare_results import compare_results, names_results, show_and_save
from hauberk.cli.options import common_parts, key_values, parse, say, usual_folder
from hauberk.core.errors import UserError
from hauberk.experiments.options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    PresetOptions,
    SourceOptions,
    SubsetOptions,
    ThreatOptions,
    TrainSettings,
    as_options,
)
from hauberk.experiments.paper_tables import SURROGATE, find_table, parse_methods, scale_budget
from hauberk.training.published import Resolved, resolve

if TYPE_CHECKING:
    from hauberk.experiments import Experiment

_MACHINE = ("seed", "threads", "device")  # training settings that an experiment has apart from the others


@dataclass(frozen=True)
class Compare:
    """Train methods with several seeds each, evaluate them, and set them side by side: the MAIL paper's Table 2 for any data.

    Example: hauberk compare --methods at,trades,mart,mail-trades --trials 5 --data digits

    Example: hauberk compare table2 --data-dir ~/data --budget 0.01 --trials 1

    Example: hauberk compare at=at-0.json,at-1.json mine=mine-0.json,mine-1.json

    The last of these trains nothing: folders or files of evaluations that you have made are set side by side as they are
    ('hauberk compare FOLDER --help').
    Finished runs are never made again: the same command goes on where it was stopped, and more methods or trials may be
    added to it. Training settings that are not given are published for each method; --help shows those that all of them share.
    """

    table: Annotated[str, tyro.conf.Positional] = ""
    """A table of the papers, whose methods, data, network, settings and attacks are used unless others are given: table1,
    table2, table3 (MAIL), mart-white-box, mart-black-box."""
    budget: float = 1.0
    """Share of each training's passes to make: its root is the share of the epochs, of the examples, and of the test examples
    (100 at least)."""
    methods: str = ""
    """Names of methods, with commas between them, perhaps with settings: at,trades:beta=1;steps=5. Differences are to the
    first; in table1, from each PM to LPS with the same objective."""
    trials: int = 5
    """Number of seeds of each method, from --seed on."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = ()
    """Settings of every method, such as steps=5."""
    data: DataOptions = DataOptions("")
    subset: SubsetOptions = SubsetOptions()
    threat: ThreatOptions = ThreatOptions()
    model: ModelOptions = ModelOptions("")
    presets: PresetOptions = PresetOptions()
    sources: SourceOptions = SourceOptions()
    evaluation: EvaluationOptions = EvaluationOptions("")
    last: bool = False
    """Evaluate the last checkpoint of each run, too: a row below the best one's, with the gap. Evaluations then take twice as
    long."""
    jobs: int = 0
    """Number of runs side by side; 0 for one on each GPU, or on each core."""
    slurm: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = ()
    """Submit the runs to a Slurm cluster instead, with these settings of submitit, such as slurm_partition=gpu
    timeout_min=600 gpus_per_node=1; the same command without it prints the table when they are done."""
    out: Path | None = None
    """Folder of the comparison; by default runs/compare-DATA-MODEL, or runs/TABLE-DATA-MODEL."""
    dry_run: bool = False
    """Say how many runs there are, and estimate their time and disk space; do nothing."""
    quiet: bool = False
    """Print only the table."""
    settings: TrainSettings = field(default_factory=dict)
    """Training settings."""


def compare(arguments: Sequence[str]) -> int:
    """Run the command."""
    if names_results(arguments):
        return compare_results(arguments)
    options = _with_table(parse(Compare, "compare", arguments, _with_published))

    from hauberk.experiments import collect, estimate, run_experiments, run_on_slurm, train_experiment
    from hauberk.experiments.processes import usual_jobs, usual_threads
    from hauberk.experiments.progress import Count

    out = options.out or usual_folder(options.table or "compare", options.data.name, options.model.name)
    experiments = _experiments(options, out)
    jobs, device = options.jobs or usual_jobs(), options.settings.get("device", "auto")
    threads = options.settings.get("threads") or usual_threads(jobs)
    if options.dry_run:
        say(estimate(experiments, out, jobs=jobs, threads=threads, device=device))
        say("Next: the same command without --dry-run")
        return 0
    if experiments[0].surrogate and not train_experiment(_surrogate(experiments[0]), out / "surrogate", device, threads):
        say("Not finished; the same command goes on")
        return 1
    if options.slurm:
        where = {"device": device, "threads": options.settings.get("threads", 0)}
        submitted = run_on_slurm(experiments, out, settings=key_values("--slurm", options.slurm), **where)
        say(f"Submitted {len(submitted)} runs; the same command without --slurm prints the table when they are done")
        return 0
    count = Count(len(experiments), jobs, say)

    def told(experiment: "Experiment", what: str) -> None:
        if not options.quiet:
            count.ended(f"{experiment.name}, seed {experiment.seed}", what)

    if not run_experiments(experiments, out, jobs=jobs, threads=threads, device=device, on_progress=told):
        say("Not finished; the same command goes on")
        return 1
    found = collect(experiments, out, options.table)
    show_and_save(found, out, f"see the evaluations of these methods in {out}")
    return 0


def _with_table(options: Compare) -> Compare:
    """Fill in data, network, methods and attacks that are not given: the table's, or the usual ones."""
    table, given = find_table(options.table), options.evaluation
    attacks = given.attacks or (() if given.suite else table.attacks)  # a suite that is given stands in place of the table's
    return replace(
        options,
        methods=options.methods or table.methods,
        data=replace(options.data, name=options.data.name or table.data),
        model=replace(options.model, name=options.model.name or table.model),
        evaluation=replace(given, suite=given.suite or "papers", attacks=attacks),
    )


def _with_published(options: Compare) -> Compare:
    """Fill in, for help, what is not given: of the training settings those that all methods share."""
    full = _with_table(options)
    configs = [as_options(_resolved(full, name).config) for _, name, _ in parse_methods(full.methods)]
    shared = {key: value for key, value in configs[0].items() if all(other[key] == value for other in configs)}
    return replace(full, settings=shared)


def _resolved(options: Compare, method: str) -> Resolved:
    data, model = options.data.name, options.model.name
    settings = find_table(options.table).published(data, model).settings | options.settings
    return resolve(data, model, method, **asdict(options.presets), settings=settings)


def _experiments(options: Compare, out: Path) -> "list[Experiment]":
    from hauberk.attacks import find_suite
    from hauberk.data import load_data
    from hauberk.experiments import Experiment
    from hauberk.methods.registry import find_method

    if options.trials < 1:
        raise UserError("--trials needs a positive number")
    table, where, seed = find_table(options.table), options.data, options.settings.get("seed", 0)
    base = Experiment("at", seed, last=options.last, **common_parts(options))
    own = table.published(where.name, options.model.name).hyperparameters
    sizes = []
    if options.budget != 1:
        sizes = [len(load_data(where.name, split, where.data_dir, verify=False)) for split in ("train", "test")]
    found = []
    for label, typed, pairs in parse_methods(options.methods):
        name = find_method(typed)
        chosen = (own if name == "mart" else {}) | key_values("--set", options.set)
        chosen |= key_values("--methods", [f"{key}={value}" for key, value in pairs.items()])
        config, subset = _resolved(options, name).config, options.subset
        if sizes:
            config, train, test = scale_budget(config, options.budget, *sizes)
            subset = SubsetOptions(subset.train_size or train, subset.test_size or test)
        published = replace(base, method=name).resolved.config
        settings = {k: v for k, v in vars(config).items() if v != getattr(published, k) and k not in _MACHINE}
        one = replace(base, method=name, label=label if pairs else "", hyperparameters=chosen, settings=settings, subset=subset)
        if table.black_box:
            folder = _surrogate(one).folder(out / "surrogate")
            one = replace(one, surrogate=str((folder / "run").resolve()))
        one.make_method()  # refuses now what a run would refuse later
        found.append(one)
    found[0].load_extra(None)  # likewise
    find_suite(options.evaluation.suite, options.evaluation.attacks)  # likewise
    # A table of all methods as early as possible.
    return [replace(one, seed=number) for number in range(seed, seed + options.trials) for one in found]


def _surrogate(experiment: "Experiment") -> "Experiment":
    """What black-box attacks are crafted on: a network trained without an attack, with a seed that no other has."""
    usual, seed = replace(experiment.evaluation, attacks=()), experiment.seed + 1000
    return replace(experiment, method=SURROGATE, seed=seed, hyperparameters={}, label="", surrogate="", evaluation=usual)
