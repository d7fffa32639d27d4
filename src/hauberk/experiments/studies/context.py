"""What a study runs on: data, a network, and the networks that it trains."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError
from hauberk.data import IndexedDataset, fetch_for, labels
from hauberk.experiments.experiment import Experiment
from hauberk.experiments.options import STUDY_SETTINGS
from hauberk.experiments.progress import Watch
from hauberk.experiments.runner import train_experiment
from hauberk.methods import Method
from hauberk.threat import ThreatModel
from hauberk.training import pick_device
from hauberk.training.callbacks import read_metrics
from hauberk.training.config import TrainConfig
from hauberk.training.plan import hold_out

Parts = Mapping[str, Mapping[str, Any]]


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Variant:
    """A network of a study.

    Attributes:
        method: its name.
        hyperparameters: of the method.
        settings: training settings other than the context's.
        custom: makes the method itself for one seed, for one that has no name elsewhere.
        decides: whether the verdict rests on this network; False for one that is only shown.
        parts: options of the experiment other than the context's, by group: ``{"model": {"name": "mlp"}}``, ``{"subset":
            {"train_size": 100}}``.
        extra: makes further training examples for one seed, as ``hauberk.train`` takes them.
    """

    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    custom: "Callable[[StudyContext], Method] | None" = None
    decides: bool = True
    parts: Parts = field(default_factory=dict)
    extra: "Callable[[StudyContext], IndexedDataset] | None" = None

    @property
    def kind(self) -> str:
        """What is other than usual, as the name of a folder."""
        options = {key: value for group in self.parts.values() for key, value in group.items()}
        changed = {**self.settings, **self.hyperparameters, **options} | ({"extra": True} if self.extra else {})
        return "-".join(f"{key}={value}" for key, value in changed.items()).replace("/", ":") or "plain"


@dataclass(frozen=True)
class StudyContext:
    """What a study runs on: data, a network, how much of both, and the networks it trains.

    Attributes:
        base: data, network, sizes, first seed and training settings; its method is replaced by those of the study.
        out: folder for trained networks and results.
        device: where networks are trained and attacked.
        threads: CPU threads; 0 leaves torch's choice.
        trials: how many seeds each network is trained with.
        say: is told what the study does.
        right: by network, which test examples it has right, (N,) for each seed, of those that the verdict rests on.
    """

    base: Experiment
    out: Path
    device: str = "auto"
    threads: int = 0
    trials: int = 3
    say: Callable[[str], None] = field(default_factory=lambda: silent, repr=False, compare=False)
    right: dict[str, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        base, last = self.base, self.seed + self.trials - 1
        size = f"{base.subset.train_size:,} training examples" if base.subset.train_size else "all training examples"
        seeds = f"seed {self.seed}" if self.trials == 1 else f"seeds {self.seed} to {last}"
        return f"{base.data.name}, {base.model.name}, {self.threat}, {size}, {self.config.epochs} epochs, {seeds}"

    @cached_property
    def threat(self) -> ThreatModel:
        """What the adversary may do; of a table, which is read for it once."""
        return self.base.threat_model

    @property
    def seed(self) -> int:
        """First seed of trainings and attacks."""
        return self.base.seed

    @cached_property
    def by_seed(self) -> "list[StudyContext]":
        """The context of each seed by itself."""
        seeds = range(self.seed, self.seed + self.trials)
        return [replace(self, base=replace(self.base, seed=seed), trials=1) for seed in seeds] if self.trials > 1 else [self]

    @property
    def config(self) -> TrainConfig:
        """How networks are trained."""
        return replace(self.base, method="", settings={**self.base.settings, "seed": self.seed}).resolved.config

    def method(self, name: str, **hyperparameters: Any) -> Method:
        """Return a method on this data and network, as :meth:`trained` makes it."""
        return replace(self.base, method=name, hyperparameters=hyperparameters).make_method()

    def with_parts(self, parts: Parts) -> "StudyContext":
        """Return the context with other options of the experiment, as :class:`Variant` has them.

        Raises:
            UserError: for a group or an option that there is not.
        """
        changed = {}
        for group, options in parts.items():
            before = getattr(self.base, group)
            if unknown := options.keys() - {one.name for one in fields(before)}:
                raise UserError(f"{group} has no option {min(unknown)!r}")
            changed[group] = replace(before, **options)
        return replace(self, base=replace(self.base, **changed))

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        source = self.base.load_data("train")
        return source.classes or int(labels(source).max()) + 1

    @cached_property
    def train_part(self) -> IndexedDataset:
        """What networks are trained on: the training examples without those held out for validation."""
        return hold_out(self.base.load_data("train"), self.config)[0]

    def networks(self, variants: Mapping[str, Variant]) -> "Iterator[tuple[str, StudyContext, nn.Module]]":
        """Give each network of each seed, trained, by its name among ``variants``, with the context of its seed.

        A study trains all its networks by one call of this, so that they can be counted before it begins.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        watch = Watch(len(variants) * self.trials, self.say)
        for one, (name, variant) in product(self.by_seed, variants.items()):
            with watch.network(f"{name}, seed {one.seed}", one.folder(variant) / "run"):
                net = one.trained_variant(variant)
            yield name, one, net

    def experiment(self, variant: Variant) -> tuple[Experiment, Path]:
        """Return the training of a network with the first seed, and the folder that it is kept in with others of its kind."""
        base = self.with_parts(variant.parts).base
        subset = replace(base.subset, test_size=0)  # trained on the same for any number of test examples
        settings = {**STUDY_SETTINGS, **base.settings, **variant.settings}
        one = replace(base, method=variant.method, hyperparameters=variant.hyperparameters, settings=settings, subset=subset)
        return one, self.out / "networks" / variant.kind

    def folder(self, variant: Variant) -> Path:
        """Return where a network of the first seed is kept."""
        one, folder = self.experiment(variant)
        return one.folder(folder)

    def trained(self, name: str, *, which: Literal["best", "last"] = "best", **hyperparameters: Any) -> nn.Module:
        """Return a network trained with the first seed, in evaluation mode, from the folder if it was trained before.

        Args:
            name: of the method.
            which: the best epoch by validation, or the last.
            **hyperparameters: settings of the method.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        return self.trained_variant(Variant(name, hyperparameters, decides=False), which)

    def trained_variant(self, variant: Variant, which: Literal["best", "last"] = "best") -> nn.Module:
        """Return the network of a variant, as :meth:`trained`; one that the verdict rests on is tried on the test examples."""
        if not self.train_variant(variant):
            raise UserError("stopped; the same command goes on")
        one, folder = self.experiment(variant)
        model = one.load(one.folder(folder) / "run", which=which, device=pick_device(self.device))
        if variant.decides and which == "best":
            x, y = self._test_examples
            with torch.no_grad():
                right = [model(some).argmax(1) == label for some, label in zip(x.split(1000), y.split(1000), strict=True)]
            name = variant.method if variant.kind == "plain" else f"{variant.method}, {variant.kind}"
            self.right.setdefault(name, []).append(torch.cat(right))
        return model

    def kept(self, variant: Variant, epoch: int) -> nn.Module:
        """Return the network of a variant, which is trained, as it was after an epoch that its ``save_every`` keeps."""
        one, folder = self.experiment(variant)
        return one.load(one.folder(folder) / "run" / f"epoch-{epoch}.json", device=pick_device(self.device))

    def train_variant(self, variant: Variant) -> bool:
        """Train the network of a variant with the first seed, if it is not in the folder; whether it is finished."""
        one, folder = self.experiment(variant)
        custom = variant.custom(self) if variant.custom else None
        extra = variant.extra(self) if variant.extra else None
        return train_experiment(one, folder, self.device, self.threads, custom, extra)

    def epochs(self, variant: Variant) -> list[dict[str, Any]]:
        """Return what each epoch of a network of the first seed, which is trained, showed: the rows of its metrics.jsonl."""
        return read_metrics(self.folder(variant) / "run" / "metrics.jsonl")

    def examples(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Return the examples to look at: inputs (N, ...) and labels (N,), on the device."""
        return self._test_examples if split == "test" else self._fetched(self.base.load_data(split))

    @cached_property
    def _test_examples(self) -> tuple[Tensor, Tensor]:
        return self._fetched(self.base.load_data("test"))

    def trained_on(self) -> tuple[Tensor, Tensor]:
        """Return the first examples that networks are trained on, as many as there are test examples, or all of fewer."""
        return self._fetched(self.train_part)

    def _fetched(self, source: IndexedDataset) -> tuple[Tensor, Tensor]:
        count = min(self.base.subset.test_size or len(source), len(source))
        return fetch_for(nn.Linear(1, 1).to(pick_device(self.device)), source, torch.arange(count))
