"""hauberk train: from the command line and a configuration file to a run."""

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

from tyro.conf import arg

from hauberk.cli.options import (
    as_text,
    asks_for_help,
    command,
    free_folder,
    key_values,
    parse,
    read_value,
    say,
    usual_folder,
)
from hauberk.core.errors import UserError
from hauberk.core.imports import is_import_path
from hauberk.experiments.options import PART_TEXTS, Hyperparameters, TrainOptions, as_options
from hauberk.training.published import resolve

if TYPE_CHECKING:
    from hauberk.experiments.config_file import Configuration
    from hauberk.training import Run

_NAMED_AGAIN = ("optimizer", "scheduler", "augment", "callbacks")  # where they are import paths
_FILES = ("data_dir", "verify", "extra", "extra_labels", "init")
_OF_A_RESUMED_RUN = ("resume", "quiet", "on_divergence", "model", "method", "data", "set", *_FILES, *_NAMED_AGAIN)
_FIRST = ("config", "method", "weighting", "weight_perturbation")  # they decide which other options there are


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a robust classifier.

    Example: hauberk train --data mnist --data-dir ~/data --method trades --eps 0.3

    Example: hauberk train --method mail-trades --measure pm-nat --burn-in 20

    Example: hauberk train --config runs/digits-mail-trades/config.toml --lr 0.05

    Settings of the method are options, too, such as --beta or --measure: give --method and --help to see its own. Training
    settings that are not given depend on --data, --model, --method, --preset and --schedule-preset: give these and --help to
    see them. Ctrl-C finishes the step, saves, and says how to resume; a resumed run ends with the same weights as one never
    stopped (on CUDA unless --no-deterministic is given).
    """

    config: Annotated[Path | None, arg(metavar="FILE.toml")] = None
    """Read from this file what the command line does not say; the config.toml in a run's folder repeats that run."""
    set: Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")] = ()
    """Settings of the method, for those whose names other options have, such as momentum=0.9 of its attack."""
    out: Path | None = None
    """Folder of the run; by default runs/DATA-METHOD, with a number behind it if that exists."""
    resume: Path | None = None
    """Go on with the run in this folder, from which everything is read but --on-divergence; --data-dir, --extra, --extra-labels
    and --init say where files are now. What the run would import is named again."""
    quiet: bool = False
    """Print no progress."""


def train(arguments: Sequence[str]) -> int:
    """Run the command."""
    first = _look_at_first(arguments)
    if asks_for_help(arguments) and not first:
        parse(Train, "train", arguments, _with_published)  # without torch, so that it answers at once
    from hauberk.core.distributed import init_distributed

    base = _read(first.get("config"), arguments)
    kind = _with_settings_of_method(first, base)
    usual = kind(**{name: getattr(base.options, name) for name in _FLAT})
    options = parse(kind, "train", arguments, partial(_with_all_settings, base), default=usual)
    with init_distributed() as world:
        run = _resume(options, options.resume, arguments) if options.resume else _start(options, base)
    if not world.is_main:
        return int(run.interrupted)
    data = options.data.name
    again = [run.folder, *(["--data", data] if is_import_path(data) else [])]
    if run.interrupted:
        say(f"Stopped and saved. Go on with: {command('train', '--resume', *again)}")
        return 1
    say(f"Done: best epoch {run.best['epoch']}. Next: {command('evaluate', *again)}")
    return 0


_FLAT = tuple(one.name for one in fields(TrainOptions) if one.name not in ("settings", "hyperparameters"))


def _look_at_first(arguments: Sequence[str]) -> dict[str, str]:
    """Find those options that decide which other ones there are."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
    for name in _FIRST:
        finder.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, nargs="?")
    found = vars(finder.parse_known_args(list(arguments))[0])
    return {name: value for name, value in found.items() if value is not None}  # tyro complains of the others


def _read(path: str | None, arguments: Sequence[str]) -> "Configuration":
    """Read the configuration file, or return the usual one."""
    from hauberk.experiments.config_file import Configuration, read_configuration

    if path is None:
        return Configuration()
    named = [word.partition("=")[2] or word for word in arguments]
    overridden = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return read_configuration(path, [*named, *arguments], overridden)


def _with_settings_of_method(first: Mapping[str, str], base: "Configuration") -> type[Train]:
    """Return the command with an option for every setting of the method that is named, or of the usual one."""
    from hauberk.experiments.config_file import PARTS
    from hauberk.methods.registry import find_method, method_settings
    from hauberk.methods.settings import words_of

    method = find_method(first.get("method", base.options.method))
    kept = base.options.hyperparameters if method == base.options.method else {}
    parts = {key: value for key, value in {**kept, **first}.items() if key in PARTS}
    kinds: dict[str, Any] = {
        name: Annotated[kind, arg(help=PART_TEXTS[name])] for name, kind in Hyperparameters.__annotations__.items()
    }
    for name, setting in method_settings(method, **parts).items():
        if not is_option_of_training(name):
            about = setting.about[:1].upper() if setting.about[:1].isascii() else setting.about[:1]  # no capital Greek
            help = f"{about}{setting.about[1:]}." if about else f"Of the {setting.part}."
            kinds[name] = Annotated[str, arg(help=help, metavar=words_of(setting.kind))]
    settings = TypedDict("Hyperparameters", kinds, total=False)  # type: ignore[misc]
    settings.__doc__ = f"Of {method}: its settings, and parts in place of its own."
    changed: list[Any] = [("hyperparameters", settings, field(default_factory=dict))]
    made = make_dataclass("Train", changed, bases=(Train,), frozen=True, namespace={"__doc__": Train.__doc__})
    return cast(type[Train], made)


def is_option_of_training(name: str) -> bool:
    """Whether an option of this name means something else than a setting of the method, which --set then takes."""
    from hauberk.experiments.config_file import PARTS, known_keys

    return name in known_keys() or name in PARTS or any(one.name == name for one in fields(Train))


def _configured(options: Train, base: "Configuration") -> "Configuration":
    """Return the configuration with what the command line says."""
    from hauberk.experiments.config_file import known_keys, override

    words: dict[str, Any] = dict(options.settings)
    for key, (group, name, _) in known_keys().items():
        if group != "settings":
            now, before = (getattr(whole, group) if group else whole for whole in (options, base.options))
            if getattr(now, name) != getattr(before, name):
                words[key] = getattr(now, name)
    return override(base, words | {"hyperparameters": _hyperparameters(options)})


def _hyperparameters(options: Train) -> dict[str, Any]:
    """Return the settings of the method that the command line gives, as values."""
    given: Mapping[str, Any] = options.hyperparameters
    values = {
        key: read_value(value) if isinstance(value, str) and key not in PART_TEXTS else value for key, value in given.items()
    }
    return values | key_values("--set", options.set)


def _with_published(options: Train) -> Train:
    """Fill in, for help, the training settings that are not given."""
    presets = vars(options.presets)
    found = resolve(options.data.name, options.model.name, options.method, **presets, settings=options.settings)
    return replace(options, settings=as_options(found.config))


def _with_all_settings(base: "Configuration", options: Train) -> Train:
    """Fill in, for help, what is not given: settings of the training, and of the method."""
    from hauberk.experiments.config_file import PARTS, as_experiment
    from hauberk.methods import default_settings

    found = _configured(options, base).options
    resolved = as_experiment(found).resolved
    settings: dict[str, Any] = dict(resolved.hyperparameters)
    if not is_import_path(found.method):
        parts = {key: settings[key] for key in PARTS if key in settings}
        settings = default_settings(found.method, found.presets.preset, **parts) | settings
    shown = {key: as_text(value) if key not in PARTS else value for key, value in settings.items()}
    known = type(options).__dataclass_fields__["hyperparameters"].type.__annotations__
    shown = {key: value for key, value in shown.items() if key in known}
    return replace(options, settings=as_options(resolved.config), hyperparameters=cast(Hyperparameters, shown))


def _start(options: Train, base: "Configuration") -> "Run":
    from hauberk.core.distributed import get_world
    from hauberk.data import class_overlap, reach_of
    from hauberk.experiments.config_file import as_experiment, training_arguments
    from hauberk.threat import threats_of
    from hauberk.training.train import train as train_model

    configuration = _configured(options, base)
    chosen = configuration.options
    arguments = training_arguments(configuration)
    usual = usual_folder(chosen.data.name, chosen.method)
    out = options.out or get_world().on_main_process(lambda: free_folder(usual))
    if get_world().is_main and not options.quiet:
        threat = arguments["method"].threat
        say(f"Training {chosen.method} on {chosen.data.name}, {chosen.model.name}, {threat}, into {out}")
        if reach := reach_of(arguments["train_set"], as_experiment(chosen).threat_model):
            say(f"Of the table {reach}")
            if (overlap := class_overlap(arguments["train_set"], threats_of(threat)[0])).meeting:
                say(f"Whatever the network, {overlap}")
        for line in _origins(options, configuration):
            say(line)
        if chosen.settings.get("val_size", -1):
            steps = as_experiment(chosen).resolved.config.val_steps
            say(f"val: on examples held out of the training set, under PGD with {steps} steps; they choose the best epoch")
    return train_model(**arguments, out=out, quiet=options.quiet)


def _origins(options: Train, configuration: "Configuration") -> list[str]:
    """Say where the settings come from."""
    from hauberk.experiments.config_file import as_experiment

    found, lines = as_experiment(configuration.options).resolved, []
    if options.config:
        lines.append(f"Settings that the command line does not give: {options.config}")
    if configuration.left_out:
        lines.append(f"Left out of it, because they are of another method: {', '.join(configuration.left_out)}")
    if found.settings.keys() - configuration.options.settings.keys() or not options.config:
        lines.append(f"Settings {'not given there either' if options.config else 'not given on the command line'}: {found}")
    return lines


def _resume(options: Train, folder: Path, arguments: Sequence[str]) -> "Run":
    from hauberk.training import resume

    if options.config:
        raise UserError("a run goes on with the settings it has; leave out --config")
    words = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    typed = {word.removeprefix("--").replace("-", "_").removeprefix("no_"): word for word in words}
    of_method = type(options).__dataclass_fields__["hyperparameters"].type.__annotations__
    for name, word in typed.items():
        if name not in (*_OF_A_RESUMED_RUN, *of_method):
            raise UserError(f"a run goes on with the settings it has; leave out {word}")
    data = options.data
    named = {"model": options.model.name, "method": options.method, "data": data.name, "data_dir": data.data_dir}
    return resume(
        folder,
        **{name: value for name, value in named.items() if name in typed},
        hyperparameters=_hyperparameters(options),
        extra=options.sources.extra,
        extra_labels=options.sources.extra_labels,
        init=options.sources.init,
        verify=data.verify,
        quiet=options.quiet,
        **options.settings,
    )
