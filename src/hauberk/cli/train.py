"""hauberk train, and hauberk demo: the first minute."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

from tyro.conf import arg

from hauberk.cli.options import command, common_parts, free_folder, key_values, parse, program, say, usual_folder
from hauberk.cli.target import further_threats
from hauberk.core.errors import UserError
from hauberk.core.imports import is_import_path
from hauberk.experiments.options import DataOptions, ModelOptions, PresetOptions, ThreatOptions, TrainSettings, as_options
from hauberk.training.published import resolve

if TYPE_CHECKING:
    from hauberk.training import Run


class Hyperparameters(TypedDict, total=False):
    """Of the method; those that are not given are the paper's, or what --preset says."""

    beta: float
    """Trade-off β of the method."""
    steps: int
    """Number of steps K of the training attack."""
    step_size: str
    """Step size α of the training attack: a number, 2/255, or a part of ε such as eps/4."""
    teacher: str
    """Network that a distillation learns from (HAT's helper): folder of a run, exported file, or package.module:attribute."""


_NAMED_AGAIN = ("optimizer", "scheduler", "augment", "callbacks")  # where they are import paths


@dataclass(frozen=True)
class Train:
    """Train a robust classifier.

    Example: hauberk train --data mnist --data-dir ~/data --method trades --eps 0.3

    Training settings that are not given depend on --data, --model, --method, --preset and --schedule-preset: give these and
    --help to see them. Ctrl-C finishes the step, saves, and says how to resume; a resumed run ends with the same weights as
    one never stopped (on CUDA unless --no-deterministic is given).
    """

    method: str = "at"
    """Name of the method (see 'hauberk methods'), or package.module:attribute for your own."""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    set: Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")] = ()
    """Other settings of the method, such as measure=pm-nat burn_in=20 gamma=0.005; see docs/methods.md."""
    data: DataOptions = DataOptions()
    threat: ThreatOptions = ThreatOptions()
    union: tuple[str, ...] = ()
    """Further threat models, each NORM:EPS as in L2:0.5 L1:12, for methods that train under several (e-at, max-at, ramp)."""
    model: ModelOptions = ModelOptions()
    presets: PresetOptions = PresetOptions()
    extra: Annotated[str, arg(metavar="FILE")] = ""
    """Further training examples, such as generated ones: an .npz file with the arrays image, uint8 (N, H, W, channels), and
    label, (N,) or probabilities (N, C)."""
    extra_share: float = 0.7
    """Part of each batch taken from them; an epoch is one pass over the others."""
    init: Annotated[str, arg(metavar="FOLDER|FILE")] = ""
    """Weights to begin from: the best ones of a run, an exported model, or a PyTorch state dict; by default random ones."""
    out: Path | None = None
    """Folder of the run; by default runs/DATA-METHOD, with a number behind it if that exists."""
    resume: Path | None = None
    """Go on with the run in this folder, from which everything is read but --on-divergence. What the run would import is named
    again."""
    quiet: bool = False
    """Print no progress."""
    settings: TrainSettings = field(default_factory=dict)
    """Training settings."""


def train(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Train, "train", arguments, _with_published)
    from hauberk.core.distributed import init_distributed

    with init_distributed() as world:
        run = _resume(options, options.resume) if options.resume else _start(options)
    if not world.is_main:
        return int(run.interrupted)
    data = options.data.name
    again = [run.folder, *(["--data", data] if is_import_path(data) else [])]
    if run.interrupted:
        say(f"Stopped and saved. Go on with: {command('train', '--resume', *again)}")
        return 1
    say(f"Done: best epoch {run.best['epoch']}. Next: {command('evaluate', *again)}")
    return 0


def _with_published(options: Train) -> Train:
    found = resolve(
        options.data.name,
        options.model.name,
        options.method,
        **vars(options.presets),
        settings=options.settings,
        hyperparameters=options.hyperparameters,
    )
    shown = {key: value for key, value in found.hyperparameters.items() if key in Hyperparameters.__annotations__}
    return replace(options, settings=as_options(found.config), hyperparameters=cast(Hyperparameters, shown))


def _start(options: Train) -> "Run":
    from hauberk.core.distributed import get_world
    from hauberk.data import find_dataset, reach_of
    from hauberk.experiments.experiment import Experiment

    chosen: dict[str, Any] = {**options.hyperparameters, **key_values("--set", options.set)}
    given = {"settings": options.settings, "hyperparameters": chosen, **common_parts(options)}
    experiment = Experiment(options.method, options.settings.get("seed", 0), **given)
    found = experiment.resolved
    more: dict[str, Any] = {"init": options.init}
    if options.extra:
        more |= {"extra": options.extra, "extra_share": options.extra_share}
    elif options.extra_share != Train.extra_share:
        raise UserError("--extra-share is the share of extra examples; name their file by --extra")
    _ = found.config  # refuses senseless settings before anything is read
    further = further_threats(find_dataset(options.data.name), options.union)
    source, method = experiment.load_data("train"), experiment.make_method(further)
    usual = usual_folder(options.data.name, options.method)
    out = options.out or get_world().on_main_process(lambda: free_folder(usual))
    if get_world().is_main and not options.quiet:
        say(f"Training {options.method} on {options.data.name}, {options.model.name}, {method.threat}, into {out}")
        if reach := reach_of(source, experiment.threat_model):
            say(f"Of the table {reach}")
        say(f"Settings not given on the command line: {found}")
    return experiment.train(source, method, out=out, quiet=options.quiet, **more)


def _resume(options: Train, folder: Path) -> "Run":
    from hauberk.training import resume

    if other := sorted(options.settings.keys() - {"on_divergence", *_NAMED_AGAIN}):
        raise UserError(f"a run goes on with the settings it has; leave out --{other[0].replace('_', '-')}")
    names = {"model": options.model.name, "method": options.method, "data": options.data.name}
    return resume(
        folder,
        **names,
        hyperparameters={**options.hyperparameters, **key_values("--set", options.set)},
        extra=options.extra,
        init=options.init,
        verify=options.data.verify,
        quiet=options.quiet,
        **options.settings,
    )


@dataclass(frozen=True)
class Demo:
    """Train at, mart and trades on scikit-learn's handwritten digits, attack each, and compare them in one table."""

    out: Path = Path("runs")
    """Folder for the runs; each gets a subfolder digits-METHOD."""
    epochs: int | None = None
    """Number of passes over the training data; by default what is recommended for digits."""
    quiet: bool = False
    """Print only the table."""


def demo(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Demo, "demo", arguments)
    from rich.console import Console

    from hauberk import Linf, evaluate
    from hauberk import train as train_model
    from hauberk.data import DATASETS, load_data
    from hauberk.evaluation import table

    train_set, test_set = load_data("digits", "train"), load_data("digits", "test")
    threat = Linf(DATASETS["digits"].eps)
    same: dict[str, Any] = {"threat": threat, "quiet": options.quiet, "report_every": 10}
    same |= {} if options.epochs is None else {"epochs": options.epochs}
    results = {}
    for method in ("at", "mart", "trades"):
        out = free_folder(options.out / f"digits-{method}")
        if not options.quiet:
            say(f"Training {method} on digits under {threat}, into {out}")
        run = train_model("small-cnn", train_set, method=method, out=out, **same)
        if run.interrupted:
            say(f"Stopped and saved. Go on with: {command('train', '--resume', out)}")
            return 1
        results[method] = evaluate(run.model, test_set, threat=threat, quiet=options.quiet)
        results[method].save(out / "evaluation.json")
    Console().print(table(results))
    for method, result in results.items():
        for found in result.warnings:
            say(f"{method}: {found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    say(f"Runs, weights and verdicts are in {options.out}. Next, for example:")
    say(f"  {command('evaluate', out, '--eps', '0.15')}")
    say(f"  {program()} train --method mart --epochs 100 --ema 0.99")
    say(f"  {program()} --help")
    return 0
