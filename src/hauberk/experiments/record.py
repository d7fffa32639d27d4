"""What the folder of an experiment records, and whether it still holds: options, data, weights and code are those of then."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import UserError
from hauberk.core.io import json_roundtrip, make_folder, read_json, write_json
from hauberk.data import as_extra, data_digest
from hauberk.evaluation.evaluate import evaluated_digest
from hauberk.experiments.experiment import Experiment
from hauberk.methods import Method
from hauberk.models import ModelSpec, model_code
from hauberk.models.build import tensors_digest
from hauberk.training import load
from hauberk.training.checkpoint import other_versions
from hauberk.training.plan import foreign_code

RECORD = "experiment.json"
_PLACES = {"data.data_dir", "data.verify", "surrogate", "label", "last"}  # may differ: they change no number


def bind_folder(folder: Path, experiment: Experiment) -> None:
    """Write down whose folder it is, or refuse one that is another's."""
    path, record = folder / RECORD, experiment.to_dict()
    if not path.exists():
        make_folder(folder)
        write_json(path, record)
        return
    now, there = _flat(json_roundtrip(record)), _flat(read_json(path))
    for key in sorted((now.keys() | there.keys()) - _PLACES):
        before, after = there.get(key), now.get(key)
        if before != after:
            raise UserError(f"{folder} was made with {key} = {before!r}, not {after!r}; choose another folder by --out")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of nested mappings by dots."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def require_same_inputs(
    experiment: Experiment, out: Path, known: dict[Any, str], threads: int = 0, method: Method | None = None
) -> str:
    """Refuse what was trained or evaluated on other data, from other weights or with other code than there are now.

    Args:
        experiment: what was done.
        out: folder of the comparison or study.
        known: digests of data by split, data and subset; filled here, so that several experiments read the same data once.
        threads: CPU threads that it would be trained with; 0 for those of this process.
        method: as in :func:`train_experiment`.

    Returns:
        Under which other versions, or with how many threads, it was trained; or "".

    Raises:
        UserError: for other data, weights or code. Files that are not there any more cannot be compared.
    """
    folder, was = experiment.folder(out), ""
    evaluations = [("test", f"{file.removesuffix('.json')}/plan.json") for file in experiment.evaluations.values()]
    for split, path in (("train", "run/run.json"), *evaluations):
        if not (folder / path).exists():
            continue
        record, which = read_json(folder / path), (split, experiment.data, experiment.subset)
        if which not in known:
            known[which] = _data_digest(experiment, split)
        there = record.get("data_digest") if split == "test" else record.get("data", {}).get("digest")
        if known[which] not in ("", there):
            raise UserError(f"{folder} was made with other {split} data; choose another folder by --out")
        if split == "train":
            was = other_versions(record, threads)
            if record.get("settings", {}).get("seed") != experiment.seed:
                raise UserError(f"{folder} was made with another seed; choose another folder by --out")
            for what, now, before in _sources_and_code(experiment, record, method):
                if now not in ("", before):
                    raise UserError(f"{folder} was made with other {what}; choose another folder by --out")
    return was


def _sources_and_code(experiment: Experiment, record: dict[str, Any], method: Method | None) -> Iterator[tuple[str, str, str]]:
    """Yield what else a training rests on: what it is, its digest now, "" where its file is gone, and that in the record."""
    sources, model, data = experiment.sources, record.get("model", {}), record.get("data", {})
    spec = ModelSpec.from_dict(model)
    with torch.random.fork_rng(devices=[]):
        if spec.imports:
            yield f"code of {spec.name}", model_code(spec.build()), model.get("code", "")
        if sources.init:
            now = _unless_gone(lambda: tensors_digest(load(sources.init, model=spec.build(), device="cpu").state_dict()))
            yield f"weights in {sources.init}", now, model.get("init_digest", "")
    if sources.extra:
        now = _unless_gone(lambda: data_digest(as_extra(sources.extra)))
        yield f"extra data in {sources.extra}", now, data.get("extra_digest", "")
    code = record.get("code", {})
    try:
        parts = foreign_code(method or experiment.make_method())
    except UserError:  # the table or the teacher is gone
        return
    for part, now in parts.items():
        yield (part if part == "teacher" else f"code of its {part}"), now, code.get(part, "")


def _unless_gone(digest: Callable[[], str]) -> str:
    """Return a digest, or "" where what it is of cannot be read any more."""
    try:
        return digest()
    except UserError:
        return ""


def _data_digest(experiment: Experiment, split: str) -> str:
    """Return what records hold of the data there are now, or "" where they are gone."""
    unverified = replace(experiment, data=replace(experiment.data, verify=False))

    def digest() -> str:
        source = unverified.load_data(split)
        return data_digest(source) if split == "train" else evaluated_digest(source, len(source))

    return _unless_gone(digest)
