"""An experiment: a training and its evaluation, kept in a folder; what is finished is never made again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError
from hauberk.core.io import json_roundtrip, make_folder, read_json, write_json
from hauberk.core.progress import warn
from hauberk.data import (
    DatasetInfo,
    IndexedDataset,
    Subset,
    Table,
    data_digest,
    find_dataset,
    labels,
    load_data,
    long_tail,
)
from hauberk.data.label_noise import with_random_labels
from hauberk.data.standard_subset import first_examples
from hauberk.evaluation import evaluate
from hauberk.evaluation.evaluate import evaluated_digest
from hauberk.experiments.options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    PresetOptions,
    SubsetOptions,
    ThreatOptions,
)
from hauberk.methods import Method
from hauberk.methods import method as make_method
from hauberk.models import ModelSpec, model_code
from hauberk.threat import ThreatModel
from hauberk.training import Run, load, pick_device
from hauberk.training.checkpoint import other_versions
from hauberk.training.published import Resolved, resolve
from hauberk.training.train import train

EVALUATION, LAST_EVALUATION = "evaluation.json", "evaluation-last.json"  # of the best and of the last checkpoint
_RECORD = "experiment.json"
_PLACES = {"data.data_dir", "data.verify", "surrogate", "label", "last"}  # may differ: they change no number
_MACHINE = ("seed", "threads", "device", "save_minutes")  # training settings that are no part of what an experiment is


@dataclass(frozen=True)
class Experiment:
    """What to train and how to evaluate it, in plain types, so that it can be written down and sent to another process.

    Attributes:
        method: name of the method.
        seed: of weights, order of the data, augmentation, random starts, and of the evaluation.
        data: the data set.
        subset: how much of it.
        threat: norm and radius of the threat model.
        model: the network.
        presets: where settings come from that are not given.
        evaluation: the attacks.
        settings: fields of ``TrainConfig`` that are given.
        hyperparameters: of the method, those that are given.
        surrogate: folder of the run that transfer attacks are crafted on; empty for none.
        label: what it is called in a table and in the folder; empty for the method.
        last: whether the last checkpoint is evaluated, too.
    """

    method: str
    seed: int
    data: DataOptions = DataOptions()
    subset: SubsetOptions = SubsetOptions()
    threat: ThreatOptions = ThreatOptions()
    model: ModelOptions = ModelOptions()
    presets: PresetOptions = PresetOptions()
    evaluation: EvaluationOptions = EvaluationOptions("papers")
    settings: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    surrogate: str = ""
    label: str = ""
    last: bool = False

    def __post_init__(self) -> None:
        for options in (self, self.data, self.subset, self.threat, self.model, self.presets, self.evaluation):
            check_fields(options)
        if min(self.subset.train_size, self.subset.test_size) < 0 or self.subset.imbalance < 1:
            raise UserError("train_size and test_size must not be negative, and imbalance at least 1")
        if not 0 <= self.subset.label_noise <= 1:
            raise UserError(f"label_noise is a part of the labels, from 0 to 1, got {self.subset.label_noise}")

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label or self.method

    @property
    def threat_model(self) -> ThreatModel:
        """What the adversary may do."""
        return find_dataset(self.data.name).default_threat(self.threat.norm, self.threat.eps)

    @property
    def resolved(self) -> Resolved:
        """Settings and hyperparameters, with what is published for those that are not given."""
        given = {**asdict(self.presets), "settings": self.settings, "hyperparameters": self.hyperparameters}
        return resolve(self.data.name, self.model.name, self.method, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, with all settings of the training, and with the published hyperparameters."""
        config = {key: value for key, value in asdict(self.resolved.config).items() if key not in _MACHINE}
        found = asdict(self) | {"settings": config, "hyperparameters": self.resolved.hyperparameters}
        if self.evaluation.attacks:  # they stand in place of the suite
            del found["evaluation"]["suite"]
        return found

    def make_method(self, threat: ThreatModel | Sequence[ThreatModel] | None = None) -> Method:
        """Make the method for the threat model, or for another one, or several."""
        given = {"preset": self.presets.preset, "seed": self.seed, **self.resolved.hyperparameters}
        return make_method(self.method, self.threat_model if threat is None else threat, **given)

    def load_data(self, split: str) -> IndexedDataset:
        """Load the examples of a split, "train" or "test"."""
        data, subset, train = self.data, self.subset, split == "train"
        whole = load_data(data.name, "train" if train else "test", data.data_dir, verify=data.verify)
        part = first_examples(whole, subset.train_size if train else subset.test_size)
        if train and subset.imbalance != 1:
            part = Subset(part, long_tail(labels(part), subset.imbalance))
        return with_random_labels(part, subset.label_noise, self.seed) if train and subset.label_noise else part

    def model_spec(self, source: IndexedDataset, method: Method) -> ModelSpec:
        """Return the network for the training examples, with the outputs that the method needs."""
        kind = find_dataset(self.data.name)
        return kind.default_model(self.model.name, source, extra=method.extra_outputs, normalize=self.model.normalize)

    def train(
        self, source: IndexedDataset, method: Method, *, out: Path, resume: bool = False, quiet: bool = True, **more: Any
    ) -> Run:
        """Train a network as :func:`hauberk.train`.

        Args:
            source: the training examples, as :meth:`load_data` returns them.
            method: as :meth:`make_method` returns it, or another one.
            out: folder of the run.
            resume: go on with the run in that folder.
            quiet: print nothing.
            **more: training settings that are not part of the experiment, such as ``device``.
        """
        settings = {"seed": self.seed, "schedule_preset": self.presets.schedule_preset, **more, **self.settings}
        return train(self.model_spec(source, method), source, method=method, out=out, resume=resume, quiet=quiet, **settings)

    @property
    def evaluations(self) -> dict[Literal["best", "last"], str]:
        """The checkpoints that are evaluated, each with the file of what was found."""
        found: dict[Literal["best", "last"], str] = {"best": EVALUATION}
        return found | {"last": LAST_EVALUATION} if self.last else found

    def folder(self, out: Path) -> Path:
        """Return where it is kept, below the folder of a comparison or study."""
        return out / self.name.replace("/", ":") / f"seed-{self.seed}"


def further_threats(named: DatasetInfo | Table, texts: Sequence[str]) -> list[ThreatModel]:
    """Return the threat models of a data set that --union names, each as NORM:EPS."""
    found = []
    for text in texts:
        norm, _, eps = text.partition(":")
        if not eps:
            raise UserError(f"--union takes threat models such as L2:0.5, not {text!r}")
        found.append(named.default_threat(norm, eps))
    return found


def run_experiment(experiment: Experiment, out: Path, device: str = "auto", threads: int = 0) -> bool:
    """Train and evaluate, or go on with what is in the folder.

    Args:
        experiment: what to do.
        out: folder of the comparison or study.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.

    Returns:
        Whether it is finished; otherwise it was asked to stop, and the same call goes on.

    Raises:
        UserError: if the folder holds another experiment, and as :func:`hauberk.train` and :func:`hauberk.evaluate`.
    """
    if is_done(experiment, out):
        return True
    if threads:
        torch.set_num_threads(threads)
    if not train_experiment(experiment, out, device, threads):
        return False
    folder, place = experiment.folder(out), pick_device(device)
    for which, file in experiment.evaluations.items():
        if (folder / file).exists():
            continue
        found = evaluate(
            load(folder / "run", which=which, device=place),
            experiment.load_data("test"),
            threat=experiment.threat_model,
            **asdict(experiment.evaluation),
            surrogate=load(experiment.surrogate, device=place) if experiment.surrogate else None,
            seed=experiment.seed,
            has_reject_class=experiment.make_method().extra_outputs > 0,
            out=folder / file.removesuffix(".json"),
            quiet=True,
        )
        found.save(folder / file)
    return True


def train_experiment(
    experiment: Experiment,
    out: Path,
    device: str = "auto",
    threads: int = 0,
    method: Method | None = None,
    extra: IndexedDataset | None = None,
) -> bool:
    """Train only, or go on; arguments otherwise as in :func:`run_experiment`. The network is in ``run`` of its folder.

    ``method`` is the method itself, for one that ``experiment.method`` does not find by its name; ``extra`` are more
    examples to train on, as :func:`hauberk.train` takes them.
    """
    folder = experiment.folder(out)
    _lock_config(folder, experiment)
    run, done = folder / "run", folder / "trained.json"
    if done.exists():
        if was := require_same_inputs(experiment, out, {}, threads):
            warn(f"{run} was made with {was}")
    else:
        method, source = method or experiment.make_method(), experiment.load_data("train")
        resume = (run / "run.json").exists()
        trained = experiment.train(source, method, out=run, resume=resume, device=device, threads=threads, extra=extra)
        if trained.interrupted:
            return False
        write_json(done, {"best_epoch": trained.best["epoch"]})
    return True


def is_done(experiment: Experiment, out: Path) -> bool:
    """Whether nothing is left to do.

    Raises:
        UserError: if the folder holds another experiment.
    """
    folder = experiment.folder(out)
    if (folder / _RECORD).exists():
        _lock_config(folder, experiment)
    return all((folder / file).exists() for file in experiment.evaluations.values())


def require_same_inputs(experiment: Experiment, out: Path, known: dict[Any, str], threads: int = 0) -> str:
    """Refuse what was trained or evaluated on other data, or with other code of its model, than there are now.

    Args:
        experiment: what was done.
        out: folder of the comparison or study.
        known: digests of data by split, data and subset; filled here, so that several experiments read the same data once.
        threads: CPU threads that it would be trained with; 0 for those of this process.

    Returns:
        Under which other versions, or with how many threads, it was trained; or "".

    Raises:
        UserError: for other data or code. Data that are not there any more cannot be compared.
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
            spec = ModelSpec.from_dict(record.get("model", {}))
            with torch.random.fork_rng(devices=[]):
                if spec.imports and model_code(spec.build()) != record["model"].get("code"):
                    raise UserError(f"{folder} was made with other code of {spec.name}; choose another folder by --out")
    return was


def _data_digest(experiment: Experiment, split: str) -> str:
    """Return what records hold of the data there are now, or "" where they are gone."""
    try:
        source = replace(experiment, data=replace(experiment.data, verify=False)).load_data(split)
    except UserError:
        return ""
    return data_digest(source) if split == "train" else evaluated_digest(source, len(source))


def _lock_config(folder: Path, experiment: Experiment) -> None:
    """Write down whose folder it is, or refuse one that is another's."""
    path, record = folder / _RECORD, experiment.to_dict()
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
