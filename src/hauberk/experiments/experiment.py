"""An experiment: what to train and how to evaluate it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError
from hauberk.data import (
    DatasetInfo,
    IndexedDataset,
    Subset,
    Table,
    find_dataset,
    labels,
    load_data,
    long_tail,
)
from hauberk.data.default_model import default_model
from hauberk.data.label_noise import with_random_labels
from hauberk.data.standard_subset import first_examples
from hauberk.experiments.options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    PresetOptions,
    SourceOptions,
    SubsetOptions,
    ThreatOptions,
)
from hauberk.methods import Method
from hauberk.methods import method as make_method
from hauberk.models import ModelSpec
from hauberk.threat import ThreatModel
from hauberk.training import Run, load, pick_device, read_card
from hauberk.training.extra import load_extra
from hauberk.training.published import Resolved, resolve
from hauberk.training.train import train

EVALUATION, LAST_EVALUATION = "evaluation.json", "evaluation-last.json"  # of the best and of the last checkpoint
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
        sources: extra examples and first weights.
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
    sources: SourceOptions = SourceOptions()
    evaluation: EvaluationOptions = EvaluationOptions("papers")
    settings: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    surrogate: str = ""
    label: str = ""
    last: bool = False

    def __post_init__(self) -> None:
        groups = (self.data, self.subset, self.threat, self.model, self.presets, self.sources, self.evaluation)
        for options in (self, *groups):
            check_fields(options)
        if min(self.subset.train_size, self.subset.test_size) < 0 or self.subset.imbalance < 1:
            raise UserError("train_size and test_size must not be negative, and imbalance at least 1")
        if not 0 <= self.subset.label_noise <= 1:
            raise UserError(f"label_noise is a part of the labels, from 0 to 1, got {self.subset.label_noise}")
        if (seed := self.settings.get("seed", self.seed)) != self.seed:  # it would win over that of each trial
            raise UserError(f"settings name the seed {seed}, and the experiment has {self.seed}; leave it out of settings")

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

    def load_extra(self, classes: int | None, device: str = "auto") -> IndexedDataset | None:
        """Load the extra examples to train on, or return None where there are none; a share or labels of none are refused.

        Where a network labels them, it works on the ``device``.
        """
        if self.sources.extra:
            return load_extra(self.sources.extra, classes, labeller=self.sources.extra_labels, device=pick_device(device))
        if self.sources.extra_labels:
            raise UserError("extra_labels is what labels extra examples; name their file by extra (--extra)")
        if self.sources.extra_share != SourceOptions.extra_share:
            raise UserError("extra_share is the share of extra examples; name their file by extra (--extra)")
        return None

    def model_spec(self, source: IndexedDataset, method: Method) -> ModelSpec:
        """Return the network for the training examples, with the outputs that the method needs."""
        return default_model(self.model.name, source, extra=method.extra_outputs, normalize=self.model.normalize)

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
            **more: arguments of :func:`hauberk.train` that are not part of the experiment, such as ``device``.
        """
        given: dict[str, Any] = {"init": self.sources.init, "seed": self.seed}
        given |= {"schedule_preset": self.presets.schedule_preset, **more, **self.settings}
        if (extra := self.load_extra(source.classes, given.get("device", "auto"))) is not None:
            given = {"extra": extra, "extra_share": self.sources.extra_share} | given
        return train(self.model_spec(source, method), source, method=method, out=out, resume=resume, quiet=quiet, **given)

    def load(self, run: Path, *, which: Literal["best", "last"] = "best", device: torch.device | str = "cpu") -> nn.Module:
        """Load what was trained, as :func:`hauberk.load`; the factory that the experiment names is imported, and no other."""
        named = read_card(run, which)[0].get("model", {}).get("name") == self.model.name
        return load(run, which=which, allow_code=named, device=device)

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
