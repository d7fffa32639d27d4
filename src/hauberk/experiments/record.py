"""What the folder of an experiment records, and whether it still holds: options, data, weights and code are those of then."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch

from hauberk.core.errors import UserError
from hauberk.core.io import json_roundtrip, make_folder, read_json, write_json
from hauberk.data import data_digest
from hauberk.evaluation.identity import evaluated_digest
from hauberk.experiments.experiment import Experiment
from hauberk.methods import Method
from hauberk.models import ModelSpec, model_code
from hauberk.models.build import tensors_digest
from hauberk.training import load
from hauberk.training.checkpoint import other_versions
from hauberk.training.plan import foreign_code

T = TypeVar("T")
# How to say that something is another one; what it is now, None where that is gone; and what the record has.
Differences: TypeAlias = Iterator[tuple[str, Any, Any]]
RECORD = "experiment.json"
_ANOTHER_THREAT = "another threat model"
# These change no number, or, as on_divergence, only those of a training that would have ended without one.
_MAY_DIFFER = {"data.data_dir", "data.verify", "surrogate", "label", "last", "settings.on_divergence"}


def bind_folder(folder: Path, experiment: Experiment) -> None:
    """Write down whose folder it is, or refuse one that is another's."""
    path, record = folder / RECORD, experiment.to_dict()
    if not path.exists():
        make_folder(folder)
        write_json(path, record)
        return
    now, there = _flat(json_roundtrip(record)), _flat(read_json(path))
    for key in sorted((now.keys() | there.keys()) - _MAY_DIFFER):
        before, after = there.get(key), now.get(key)
        if before != after:
            if key.startswith("settings.") and key not in now.keys() & there.keys():
                which = f"a version of hauberk with other settings ({key.removeprefix('settings.')})"
                raise UserError(f"{folder} was made with {which}; choose another folder by --out")
            raise UserError(f"{folder} was made with {key} = {before!r}, not {after!r}; choose another folder by --out")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested mappings by dots."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def require_same_inputs(
    experiment: Experiment, out: Path, known: dict[Any, Any], threads: int = 0, method: Method | None = None
) -> str:
    """Refuse what was trained or evaluated on other data, for another adversary, from other weights or with other code.

    Args:
        experiment: what was done.
        out: folder of the comparison or study.
        known: what there is now of the data, by all that it hangs on; filled here, so that several experiments read the same
            data once.
        threads: CPU threads that it would be trained with; 0 for those of this process.
        method: as in :func:`train_experiment`.

    Returns:
        Under which other versions, or with how many threads, it was trained; or "".

    Raises:
        UserError: for other data, threat model, network, weights or code than there are now. Files that are not there any more
            cannot be compared.
    """
    folder, was = experiment.folder(out), ""
    files = {f"{file.removesuffix('.json')}/plan.json": _of_evaluation for file in experiment.evaluations.values()}
    for path, differences in {"run/run.json": _of_training, **files}.items():
        if not (folder / path).exists():
            continue
        record = read_json(folder / path)
        was = other_versions(record, threads) if differences is _of_training else was
        for what, now, before in differences(experiment, record, known, method):
            if now not in (None, before):
                raise UserError(f"{folder} was made with {what}; choose another folder by --out")
    return was


def _of_evaluation(experiment: Experiment, record: dict[str, Any], known: dict[Any, Any], method: Method | None) -> Differences:
    """Yield what an evaluation rests on."""
    yield "other test data", _data_now(experiment, "test", known), record.get("data_digest")
    yield _ANOTHER_THREAT, _unless_gone(lambda: json_roundtrip(experiment.threat_model.to_dict())), record.get("threat")


def _of_training(experiment: Experiment, record: dict[str, Any], known: dict[Any, Any], method: Method | None) -> Differences:
    """Yield what a training rests on."""
    sources, model, data = experiment.sources, record.get("model", {}), record.get("data", {})
    spec, method = ModelSpec.from_dict(model), method or _unless_gone(experiment.make_method)
    yield "other train data", _data_now(experiment, "train", known), data.get("digest")
    yield "another seed", experiment.seed, record.get("settings", {}).get("seed")
    yield "another network", experiment.model.name, spec.name  # before anything that the record names is imported
    if method is not None:
        yield _ANOTHER_THREAT, json_roundtrip(method.threat.to_dict()), record.get("threat")
        yield "another network", _network_now(experiment, method, known), _without_statistics(spec)
    with torch.random.fork_rng(devices=[]):
        if spec.imports:
            yield f"other code of {spec.name}", model_code(spec.build()), model.get("code", "")
        if sources.init:
            now = _unless_gone(lambda: tensors_digest(load(sources.init, model=spec.build(), device="cpu").state_dict()))
            yield f"other weights in {sources.init}", now, model.get("init_digest", "")
    if sources.extra:
        yield (
            f"other extra data in {sources.extra}, or other labels",
            _extra_now(experiment, known),
            data.get("extra_digest", ""),
        )
    code = record.get("code", {})
    for part, now in ({} if method is None else foreign_code(method)).items():
        yield (f"other {part}" if part == "teacher" else f"other code of its {part}"), now, code.get(part, "")


def _data_now(experiment: Experiment, split: str, known: dict[Any, Any]) -> str | None:
    """Return what records hold of the data there are now, or None where they are gone."""

    def digest() -> str:
        source = _unverified(experiment).load_data(split)
        return data_digest(source) if split == "train" else evaluated_digest(source, len(source))

    noise = experiment.seed if experiment.subset.label_noise else None  # which labels are drawn hangs on the seed
    which = (split, experiment.data, experiment.subset, noise)
    if which not in known:
        known[which] = _unless_gone(digest)
    found: str | None = known[which]
    return found


def _extra_now(experiment: Experiment, known: dict[Any, Any]) -> str | None:
    """Return what records hold of the extra examples there are now, with their labels, or None where they are gone."""

    def digest() -> str:
        extra = experiment.load_extra(None)
        assert extra is not None  # asked only where there are some
        return data_digest(extra)

    which = (experiment.sources.extra, experiment.sources.extra_labels)
    if which not in known:
        known[which] = _unless_gone(digest)
    found: str | None = known[which]
    return found


def _network_now(experiment: Experiment, method: Method, known: dict[Any, Any]) -> dict[str, Any] | None:
    """Return what the network for the data there are now is, or None where they are gone."""
    which = (experiment.data, experiment.subset, experiment.model, method.extra_outputs)
    if which not in known:
        one = _unverified(experiment)
        known[which] = _unless_gone(lambda: _without_statistics(one.model_spec(one.load_data("train"), method)))
    found: dict[str, Any] | None = known[which]
    return found


def _unverified(experiment: Experiment) -> Experiment:
    """Return the experiment without the checksums of original files: digests are compared anyway."""
    return replace(experiment, data=replace(experiment.data, verify=False))


def _without_statistics(spec: ModelSpec) -> dict[str, Any]:
    """Return what a network is but for mean and deviation of its data, whose last digits hang on the number of threads."""
    return {**spec.to_dict(), "mean": bool(spec.mean), "std": bool(spec.std)}


def _unless_gone(find: Callable[[], T]) -> T | None:
    """Return what is found, or None where what it is in cannot be read any more."""
    try:
        return find()
    except UserError:
        return None
