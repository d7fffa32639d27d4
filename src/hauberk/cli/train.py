"""hauberk train."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hauberk.cli.options import given_settings, key_values, parse, peek, program
from hauberk.core.imports import is_import_path
from hauberk.training.config import TrainConfig
from hauberk.training.published import Published, find_published

if TYPE_CHECKING:
    from hauberk.training import Run


@dataclass(frozen=True)
class Train:
    """Train a robust classifier.

    Example: hauberk train --data mnist --data-dir ~/data --method trades --eps 0.3

    Defaults of the training settings depend on --data, --model, --method, --preset and --recipe: give these, then
    --help, to see them. Ctrl-C finishes the step, saves, and says how to resume; a resumed run ends with the same weights as
    one never stopped.
    """

    data: str = "digits"
    """Name of the data set (see 'hauberk data'), the schema of a table, FILE.toml, or module:attribute for your own."""
    data_dir: Path = Path("data")
    """Folder with the original files of the data set."""
    verify: bool = True
    """Compare checksums of the files with the original ones."""
    model: str = "small-cnn"
    """Name of the network (see 'hauberk models'; timm:NAME and torchvision:NAME, too), or module:factory for your own."""
    method: str = "at"
    """Name of the method; see 'hauberk methods'."""
    out: Path | None = None
    """Folder of the run; by default runs/DATA-METHOD, with a number behind it if that exists."""
    resume: Path | None = None
    """Go on with the run in this folder; everything else but --on-divergence is read from there. What the run
    would import is named again."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Norm of the threat model."""
    eps: str = ""
    """Radius ε of the threat model, e.g. 8/255; by default what the literature uses on the data set (L∞ only)."""
    preset: Literal["paper", "official"] = "paper"
    """Follow the method's paper, or its authors' code where that differs."""
    recipe: Literal["published", "express"] = "published"
    """Where settings come from that are not given: the literature's, or a short training that reaches about as much."""
    beta: float | None = None
    """Trade-off β of the method; by default the paper's."""
    steps: int | None = None
    """Steps K of the training attack; by default the paper's."""
    step_size: str | None = None
    """Step size α of the training attack: a number, 2/255, or a part of ε such as eps/4."""
    set: tuple[str, ...] = ()
    """Other settings of the method as KEY=VALUE, e.g. measure=pm-nat burn_in=20 gamma=0.005; see docs/methods.md."""
    normalize: bool = False
    """Normalise inputs inside the model by mean and deviation of the training set."""
    settings: TrainConfig = field(default_factory=TrainConfig)
    """Training settings."""
    quiet: bool = False
    """Print no progress."""


def train(arguments: Sequence[str]) -> int:
    """Run the command."""
    names = {"--data": "digits", "--model": "small-cnn", "--method": "at", "--preset": "paper", "--recipe": "published"}
    published = find_published(*(peek(arguments, option, usual) for option, usual in names.items()))
    default = Train(settings=TrainConfig(**published.settings))
    options = parse(Train, "train", arguments, default)
    from hauberk.core.distributed import init_distributed

    with init_distributed() as world:
        run = _resume(options, peek(arguments, "--on-divergence", "")) if options.resume else _start(options, published)
    if not world.is_main:
        return int(run.interrupted)
    again = f"{run.folder}{f' --data {options.data}' if is_import_path(options.data) else ''}"
    if run.interrupted:
        print(f"Stopped and saved. Go on with: {program()} train --resume {again}")
        return 1
    print(f"Done: best epoch {run.best['epoch'] + 1}. Next: {program()} evaluate {again}")
    return 0


def _start(options: Train, published: Published) -> "Run":
    from hauberk.core.distributed import get_world
    from hauberk.data import find_dataset, load_data
    from hauberk.methods.named import published_method
    from hauberk.tables import reach_of
    from hauberk.training.train import train as train_model

    named = find_dataset(options.data)
    source = load_data(options.data, "train", options.data_dir, verify=options.verify)
    threat = named.default_threat(options.norm, options.eps)
    given = {"beta": options.beta, "steps": options.steps, "step_size": options.step_size}
    chosen = {key: value for key, value in given.items() if value is not None} | key_values("--set", options.set)
    names = {"data": options.data, "model": options.model, "preset": options.preset, "recipe": options.recipe}
    how = published_method(options.method, threat, **names, seed=options.settings.seed, **chosen)
    spec = named.default_model(options.model, source, extra=how.extra_outputs, normalize=options.normalize)
    out = options.out or get_world().on_main_process(
        lambda: free_folder(Path("runs") / f"{Path(options.data.rpartition(':')[2]).stem}-{options.method}")
    )
    if get_world().is_main and not options.quiet:
        print(f"Training {options.method} on {options.data}, {options.model}, {threat}, into {out}")
        if reach := reach_of(source, threat):
            print(f"Of the table {reach}")
        taken = ", ".join(f"{key} {value}" for key, value in published.method.items() if key not in chosen)
        print(f"Settings not given on the command line: {published.source}{f'; of the method: {taken}' if taken else ''}")
    settings = given_settings(options.settings, TrainConfig(**published.settings))
    settings |= {name: getattr(options.settings, name) for name in ("seed", "threads", "device")}
    return train_model(spec, source, method=how, out=out, recipe=options.recipe, quiet=options.quiet, **settings)


def _resume(options: Train, on_divergence: str) -> "Run":
    from hauberk.training import resume

    folder, verify, quiet = str(options.resume), options.verify, options.quiet
    named = {name: getattr(options.settings, name) for name in ("optimizer", "scheduler", "augment", "callbacks")}
    more: dict[str, Any] = {"verify": verify, "quiet": quiet, "on_divergence": on_divergence}
    return resume(folder, model=options.model, data=options.data, **more, **named)


def free_folder(folder: Path) -> Path:
    """Return the folder, or with a number behind it the first one that does not exist."""
    number = 1
    free = folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
