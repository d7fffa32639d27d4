"""config.toml read back: for the command line, whose flags win over it, and for ``hb.train(**hb.read_config(path))``."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hauberk.core.arguments import check_argument, checked
from hauberk.core.errors import UserError, unknown_name
from hauberk.core.imports import is_import_path
from hauberk.core.toml import read_toml
from hauberk.data import as_dataset, find_dataset
from hauberk.experiments.experiment import Experiment, further_threats
from hauberk.experiments.options import SETTINGS, Hyperparameters, SubsetOptions, TrainOptions
from hauberk.methods.parts import FROM_PYTHON
from hauberk.methods.registry import find_method, method_settings
from hauberk.models import ModelSpec
from hauberk.models.build import LIBRARIES
from hauberk.threat import Threat, read_threat
from hauberk.training.plan import recorded_name
from hauberk.training.published import find_schedule_preset

PARTS = tuple(Hyperparameters.__annotations__)  # of a method, in place of its own
_OWN, _SEED = "hyperparameters", "seed"
# What an argument of hb.train stands for: keys of a file that need not be there if it is passed.
_STANDS_FOR = {
    "train_set": ("data", "data_dir", "train_size", "verify"),
    "model": ("model", "normalize"),
    "threat": ("norm", "eps", "union", "threat"),
    "method": ("method", "preset", _OWN, "norm", "eps", "union", "threat"),
    "augmentation": ("augment",),
}
_IMPORTED = ("data", "model", "method", "optimizer", "scheduler", "augment", "callbacks")  # keys that may name code
_FILES = ("extra", "extra_labels", "init")  # keys whose values are files or folders and are never imported
_IN_WORDS = ("norm", "eps", "union")


@dataclass(frozen=True)
class Configuration:
    """What is to be trained, and how.

    Attributes:
        options: all that is said in words.
        model: the network as a whole, where a file has it so; None where ``options`` say it.
        threat: the threat models, likewise.
        left_out: settings of a method that another one took the place of.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    model: ModelSpec | None = None
    threat: Threat | None = None
    left_out: tuple[str, ...] = ()


@checked
def read_config(path: str | Path, **given: Any) -> dict[str, Any]:
    """Read a config.toml, and return the arguments that it stands for: ``hb.train(**hb.read_config(path), out=...)``.

    Every run keeps one in its folder, from which the same can be trained again, on the same machine to the same weights. A
    file of your own needs only what should differ from the usual: its keys are the options of ``hauberk train`` (``data``,
    ``model``, ``eps``, ``epochs``, ...), and those of the method are in its table ``[hyperparameters]``. The data are loaded
    and the method is made here.

    Args:
        path: of the file.
        **given: in place of what the file says: values of its keys, or arguments of :func:`hauberk.train`, which are the only
            way to pass what was made in Python. An import path in the file, whose module would be imported, is given again.

    Raises:
        UserError: for a file that cannot be read; unknown keys, with the nearest one, and values of the wrong type; for import
            paths that are not given again, and objects of Python that are not passed.
    """
    words = {key: value for key, value in given.items() if (key in known_keys() or key == _OWN) and _is_plain(value)}
    objects = {key: value for key, value in given.items() if key not in words}
    not_needed = {key for name in objects for key in (name, *_STANDS_FOR.get(name, ()))}
    base = read_configuration(path, _texts(words), not_needed | words.keys())
    for name in ("optimizer", "scheduler"):  # what an own one has no use for goes
        words |= {name: recorded_name(objects[name])} if name in objects else {}
    found = training_arguments(override(base, words), objects)
    if "augmentation" in objects:
        found.pop("augment", None)
    return found


def read_configuration(path: str | Path, trusted: Collection[str] = (), overridden: Collection[str] = ()) -> Configuration:
    """Read and check a config.toml, and nothing of what it names.

    Args:
        path: of the file.
        trusted: import paths that it may have, because the user has named them.
        overridden: keys that are given elsewhere, and may have any others, and what only Python can make.

    Raises:
        UserError: as :func:`read_config`.
    """
    raw = read_toml(path, "configuration")
    try:
        for key in [key for key in (*_IMPORTED, "extra", "init", "val_set") if key in raw]:
            if problem := _problem(key, raw[key], trusted):
                if key not in overridden:
                    raise UserError(problem)
                del raw[key]
                if key == "method":
                    raw.pop(_OWN, None)
        for key, value in _table(raw, _OWN).items():
            if problem := _problem(key, value, trusted, "--set {key}={value}"):
                raise UserError(problem)
        return override(Configuration(), raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def override(base: Configuration, words: Mapping[str, Any]) -> Configuration:
    """Return the configuration with other values for some keys.

    What the base says of what takes no place any more goes: settings of another method or preset, of a part of it that is
    replaced, and of an optimizer or schedule.

    Raises:
        UserError: for unknown keys, values of the wrong type, and combinations that make no sense.
    """
    known, groups = known_keys(), dict[str, dict[str, Any]]()
    own = _table(words, _OWN)
    whole = {key: words[key] for key in ("model", "threat") if isinstance(words.get(key), dict)}
    for key, value in words.items():
        if key in whole or key == _OWN:
            continue
        if key not in known:
            raise _unknown_key(key, str(words.get("method", base.options.method)), known)
        group, name, kind = known[key]
        if key == "eps" and isinstance(value, int | float) and not isinstance(value, bool):
            value = repr(value)
        groups.setdefault(group, {})[name] = check_argument(key, value, kind)
    if "threat" in whole and (both := [key for key in _IN_WORDS if key in words]):
        raise UserError(f"{both[0]} and the table threat both say what the adversary may do; leave out one of them")
    model, threat = _whole(base, whole, words)
    if "model" in whole and model:
        groups.setdefault("model", {})["name"] = model.name
    given = groups.pop("settings", {})
    changed = {group: replace(getattr(base.options, group), **values) for group, values in groups.items() if group}
    options = replace(base.options, **groups.get("", {}), **changed, settings={**base.options.settings, **given})
    options = replace(options, method=find_method(options.method))
    options, left_out = _with_hyperparameters(base.options, options, own)
    _check_schedule_preset(base.options, options)
    for name in as_experiment(options).resolved.config.replaced:
        if name not in given:
            options.settings.pop(name, None)
    return Configuration(options, model, threat, left_out)


def training_arguments(configuration: Configuration, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of :func:`hauberk.train`: the data are loaded, the method is made.

    Args:
        configuration: what to train, and how.
        given: arguments that are there already, which take the place of what would be made.

    Raises:
        UserError: for what cannot be loaded or made.
    """
    options, given = configuration.options, given or {}
    experiment = as_experiment(options)
    _ = experiment.resolved.config  # refuses senseless settings before anything is read
    found: dict[str, Any] = {"seed": experiment.seed, "schedule_preset": options.presets.schedule_preset, **options.settings}
    sources = options.sources
    if sources.init:
        found["init"] = sources.init
    found["train_set"] = given["train_set"] if "train_set" in given else experiment.load_data("train")
    if "extra" in given:
        found["extra_share"] = sources.extra_share
    elif (extra := experiment.load_extra(None, options.settings.get("device", "auto"))) is not None:
        found |= {"extra": extra, "extra_share": sources.extra_share}
    if "method" not in given:
        threat = given.get("threat") or configuration.threat
        further = () if threat else further_threats(find_dataset(options.data.name), options.union)
        given = {**given, "method": experiment.make_method(threat or [experiment.threat_model, *further])}
    found["method"] = method = given["method"]
    if "model" not in given:
        found["model"] = configuration.model or experiment.model_spec(as_dataset(found["train_set"]), method)
    return found | {key: value for key, value in given.items() if key != "threat"}


def as_experiment(options: TrainOptions) -> Experiment:
    """Return what is trained as an experiment."""
    parts = {name: getattr(options, name) for name in ("data", "threat", "model", "presets", "sources", "settings", _OWN)}
    return Experiment(options.method, options.settings.get(_SEED, 0), subset=SubsetOptions(options.train_size), **parts)


@cache
def known_keys() -> dict[str, tuple[str, str, Any]]:
    """Return every key of a file: the field of ``TrainOptions`` that has it, if it is a group, its name there, and its type."""
    found: dict[str, tuple[str, str, Any]] = {}
    hints = get_type_hints(TrainOptions)
    for one in fields(TrainOptions):
        kind = hints[one.name]
        if is_dataclass(kind):
            inner = get_type_hints(kind)
            found |= {(one.name if name == "name" else name): (one.name, name, inner[name]) for name in inner}
        elif one.name not in ("settings", _OWN):
            found[one.name] = ("", one.name, kind)
    return found | {name: ("settings", name, kind) for name, kind in SETTINGS.items()}


def _unknown_key(key: str, method: str, known: Collection[str]) -> UserError:
    """Build the error for a key that is none, or that is in the wrong place."""
    if key in PARTS or key in method_settings(method):
        return UserError(f"{key} is of the method: it belongs into the table [{_OWN}] behind all other keys")
    return UserError(f"{unknown_name('key', key, [*known, 'threat'])}; settings of the method are in a table [{_OWN}]")


def _with_hyperparameters(before: TrainOptions, now: TrainOptions, own: dict[str, Any]) -> tuple[TrainOptions, tuple[str, ...]]:
    """Settings of the method: its own ones, and those of before that still have a meaning. Also those that have none."""
    kept = dict(before.hyperparameters)
    if (now.method, now.presets.preset) != (before.method, before.presets.preset):
        kept = {}
    parts = {key: one for key, one in {**kept, **own}.items() if key in PARTS}
    if not is_import_path(now.method):
        known = {*method_settings(now.method, **parts), *PARTS, _SEED}
        kept = {key: value for key, value in kept.items() if key in known}
        for key in own:
            if key not in known:
                raise unknown_name(f"setting of {now.method}", key, known - {_SEED})
    found: Any = {**kept, **{key: tuple(one) if isinstance(one, list) else one for key, one in own.items()}}
    left_out = tuple(key for key in before.hyperparameters if key not in found)
    return replace(now, hyperparameters=found), left_out


def _check_schedule_preset(before: TrainOptions, now: TrainOptions) -> None:
    """Refuse a choice of where settings come from that are not given, where all that it would change are given."""
    chosen = now.presets.schedule_preset
    found = find_schedule_preset(chosen, now.data.name)
    would_change = found.settings if found else {}
    if chosen != before.presets.schedule_preset and (given := [key for key in would_change if key in before.settings]):
        raise UserError(
            f"schedule_preset {chosen!r} is for settings that are not given, and the file gives {', '.join(given)}; "
            "take these out of it, or leave out the preset"
        )


def _whole(base: Configuration, whole: Mapping[str, Any], words: Mapping[str, Any]) -> tuple[ModelSpec | None, Threat | None]:
    """Network and threat models as a whole: those given, or those of before unless words take their place."""
    model = None if {"model", "normalize"} & words.keys() else base.model
    threat = None if {"threat", *_IN_WORDS} & words.keys() else base.threat
    if "model" in whole:
        model = ModelSpec.from_dict({"mean": [], "std": [], **whole["model"]})
    if "threat" in whole:
        threat = read_threat({"low": 0.0, "high": 1.0, "frozen": None, **whole["threat"]})
    return model, threat


def _table(words: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = words.get(key, {})
    if not isinstance(found, Mapping):
        raise UserError(f"{key} is a table, [{key}]")
    return dict(found)


def _problem(key: str, value: Any, trusted: Collection[str], option: str = "--{flag} {value}") -> str:
    """Say that a value was made in Python, or would import what the user has not named; "" for none of that."""
    for one in _texts({key: value.get("name", "") if isinstance(value, Mapping) else value}):
        if one.startswith(FROM_PYTHON):
            argument = next((name for name, keys in _STANDS_FOR.items() if key in keys), key)
            what = one.removeprefix(FROM_PYTHON)
            return f"{key} was made in Python ({what}); pass it to hb.read_config as {argument}=, or name another"
        imports = is_import_path(one) and not one.startswith(LIBRARIES) and key not in _FILES
        if imports and one not in trusted:
            again = option.format(flag=key.replace("_", "-"), key=key, value=one)
            return f"this would import {one!r}; add {again} if you trust it (in Python, {key}={one!r})"
    return ""


def _texts(words: Mapping[str, Any]) -> list[str]:
    """All texts in values, lists and tables."""
    found: list[str] = []
    for value in words.values():
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _texts(value)
        elif isinstance(value, list | tuple):
            found += _texts({str(place): one for place, one in enumerate(value)})
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is one that a file can have."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)
