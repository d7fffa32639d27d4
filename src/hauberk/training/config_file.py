"""config.toml: how a run was made, in the words of the command line, so that the same can be done again, or another way."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError, printable
from hauberk.core.imports import is_import_path
from hauberk.core.io import json_roundtrip, versions, write_atomically
from hauberk.core.toml import is_unicode, toml_lines
from hauberk.data import DATASETS, DatasetInfo, Table, find_dataset
from hauberk.data.default_model import default_model
from hauberk.data.named import TABLE_SUFFIX
from hauberk.data.standard_subset import first_of
from hauberk.methods import METHODS, default_settings
from hauberk.methods.parts import FROM_PYTHON
from hauberk.methods.registry import find_method
from hauberk.threat import ThreatModel, threats_of
from hauberk.training.plan import Plan

CONFIG = "config.toml"
_HEAD = """# How this run was made, with every setting, those that nobody chose too. By {versions}.
# The same again:
#     hauberk train --config config.toml --out FOLDER
# and in Python: hb.train(**hb.read_config("config.toml"), out="FOLDER")
"""


def write_config(plan: Plan, folder: Path) -> None:
    """Write config.toml into the folder of a run, unless it is there.

    Raises:
        UserError: if it cannot be written.
    """
    if not (folder / CONFIG).exists():
        write_atomically(folder / CONFIG, config_text(plan).encode())


def config_text(plan: Plan) -> str:
    """Return what config.toml holds of a plan; ``hauberk.experiments.config_file`` reads it.

    A part that has no name, because it was made in Python, stands there as ``python:`` and what it is, and is passed again.
    """
    used = {name: version for name, version in versions().items() if name != "date"}
    sections = {
        "Data": _data(plan),
        "Network": _network(plan),
        "Threat model": _threat(plan),
        "Method": _method(plan),
        "Training": _training(plan),
    }
    lines, tables = [_HEAD.format(versions=", ".join(f"{name} {version}" for name, version in used.items()))], []
    for title, content in sections.items():
        plain = {key: value for key, value in content.items() if not isinstance(value, dict)}
        lines += [f"# {title}", *toml_lines(plain), ""]
        tables += [(key, value) for key, value in content.items() if isinstance(value, dict)]
    for key, value in tables:
        lines += [f"[{key}]", *toml_lines(value), ""]
    return "\n".join(lines)


def _data(plan: Plan) -> dict[str, Any]:
    source, size = plan.train.dataset, first_of(plan.train.dataset)
    if not _is_named(source.name):
        found: dict[str, Any] = {"data": f"{FROM_PYTHON}{source.name}"}
    elif size is None:
        found = {"data": f"{FROM_PYTHON}a part of {source.name}"}
    else:
        found = {"data": source.name, "train_size": size} | ({"data_dir": source.folder} if source.folder else {})
    if plan.extra is not None:
        found["extra"] = plan.extra.folder or f"{FROM_PYTHON}{plan.extra.name}"
        found |= {"extra_labels": plan.extra.labelled_by} if plan.extra.labelled_by else {}
        found["extra_share"] = plan.config.extra_share
    if not plan.val_held_out:
        found["val_set"] = f"{FROM_PYTHON}{plan.val.name}"
    return _as_texts(found)


def _network(plan: Plan) -> dict[str, Any]:
    """The network by its name where that makes it, whole where it was normalised in another way, or ``python:``."""
    spec, normalize = plan.spec, bool(plan.spec.mean)
    found: dict[str, Any] = {"model": spec.name}
    if not spec.is_from_python:
        usual, source = None, plan.train.dataset
        if _find(plan.train.name):  # the labels of other data may cost a pass over them
            usual = default_model(spec.name, source, extra=plan.method.extra_outputs, normalize=normalize)
        if usual == spec or not (normalize or spec.integers or spec.groups):
            found["normalize"] = normalize
        else:
            found["model"] = {key: value for key, value in spec.to_dict().items() if value != []}
    return _as_texts(found | ({"init": plan.begun_from["init"]} if plan.begun_from else {}))


def _threat(plan: Plan) -> dict[str, Any]:
    """The threat models in words where these make them, otherwise whole."""
    words = [_in_words(threat, plan.train.dataset.name) for threat in threats_of(plan.method.threat)]
    if None not in words:
        (norm, eps), *further = [pair for pair in words if pair]
        return {"norm": norm, "eps": eps, "union": [":".join(pair) for pair in further]}
    return {"threat": _without_none(plan.method.threat.to_dict())}


def _in_words(threat: ThreatModel, data: str) -> tuple[str, str] | None:
    """Norm and ε as the command line takes them, or None where these make another threat model of the data."""
    whole = threat.to_dict()
    eps = "" if data.endswith(TABLE_SUFFIX) else str(whole["eps"])
    kind = _find(data) or DATASETS["digits"]  # whose box is the usual one
    try:
        same = json_roundtrip(kind.default_threat(whole["norm"], eps).to_dict()) == json_roundtrip(whole)
    except UserError:
        same = False
    return (whole["norm"], eps) if same else None


def _method(plan: Plan) -> dict[str, Any]:
    """The method, with every setting that it has."""
    settings = plan.method.to_dict()
    name, seed, preset = (settings.pop(key, usual) for key, usual in (("name", ""), ("seed", 0), ("preset", "paper")))
    if any(str(value).startswith(FROM_PYTHON) for value in settings.values()) or not _has_name(name):
        return {"method": f"{FROM_PYTHON}{name}"}
    found = every_setting(name, preset, settings) | ({} if seed == plan.config.seed else {"seed": seed})
    hyperparameters = {key: value for key, value in found.items() if value is not None}
    return {"method": name, "preset": preset, "hyperparameters": _as_texts(hyperparameters)}


def every_setting(name: str, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a method that are given and those that nobody chose, as plain types."""
    if name.partition("+")[0] not in METHODS:  # it is built by a function
        return dict(json_roundtrip(settings))
    parts = {key: settings[key] for key in _PARTS if key in settings}
    return dict(json_roundtrip({**default_settings(name, preset, **parts), **settings}))


_PARTS = ("attack", "objective", "weighting", "weight_perturbation", "targets")


def _has_name(name: str) -> bool:
    """Whether a method is found by its name."""
    try:
        find_method(name)
    except UserError:
        return False
    return True


def _training(plan: Plan) -> dict[str, Any]:
    left_out = {*plan.config.replaced, "extra_share"}
    return _as_texts({name: value for name, value in asdict(plan.config).items() if name not in left_out})


def _is_named(data: str) -> bool:
    """Whether a data set is found by its name."""
    return data in DATASETS or data.endswith(TABLE_SUFFIX) or is_import_path(data)


def _find(data: str) -> DatasetInfo | Table | None:
    """Return what the name of a data set stands for, or None where it stands for nothing, or for a file that is gone."""
    try:
        return find_dataset(data) if _is_named(data) else None
    except UserError:
        return None


def _without_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_none(value) for key, value in content.items() if value is not None}
    return [_without_none(one) for one in content] if isinstance(content, list) else content


def _as_texts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace names of files that no TOML file can hold by what says so."""
    bad = {key: value for key, value in content.items() if isinstance(value, str) and not is_unicode(value)}
    return {**content, **{key: f"{FROM_PYTHON}{printable(value)}" for key, value in bad.items()}}
