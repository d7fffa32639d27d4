"""What a study runs on: data, a network, and the networks that it trains."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError
from hauberk.data import IndexedDataset, fetch_for
from hauberk.experiments.experiment import Experiment, train_experiment
from hauberk.methods import Method
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device
from hauberk.training.config import TrainConfig
from hauberk.training.plan import hold_out


@dataclass(frozen=True)
class Variant:
    """A network of a study.

    Attributes:
        method: its name.
        hyperparameters: of the method.
        settings: training settings other than the context's.
        custom: makes the method itself for one seed, for one that has no name elsewhere.
        decides: whether the verdict rests on this network; False for one that is only shown.
    """

    method: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    custom: "Callable[[StudyContext], Method] | None" = None
    decides: bool = True


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
    say: Callable[[str], None] = field(default=lambda text: None, repr=False, compare=False)
    right: dict[str, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        base, last = self.base, self.seed + self.trials - 1
        size = f"{base.subset.train_size:,} training examples" if base.subset.train_size else "all training examples"
        seeds = f"seed {self.seed}" if self.trials == 1 else f"seeds {self.seed} to {last}"
        return f"{base.data.name}, {base.model.name}, {self.threat}, {size}, {self.config.epochs} epochs, {seeds}"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
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

    @cached_property
    def train_part(self) -> IndexedDataset:
        """What networks are trained on: the training examples without those held out for validation."""
        return hold_out(self.base.load_data("train"), self.config)[0]

    def networks(self, variants: Mapping[str, Variant]) -> "Iterator[tuple[str, StudyContext, nn.Module]]":
        """Give each network of each seed, trained, by its name among ``variants``, with the context of its seed.

        Raises:
            UserError: as :meth:`trained`.
        """
        total = len(variants) * self.trials
        for number, (one, (name, variant)) in enumerate(product(self.by_seed, variants.items()), 1):
            self.say(f"network {number} of {total}: {name}, seed {one.seed}")
            custom = variant.custom(one) if variant.custom else None
            settings, decides = variant.settings, variant.decides
            net = one.trained(variant.method, custom=custom, settings=settings, decides=decides, **variant.hyperparameters)
            yield name, one, net

    def trained(
        self,
        name: str,
        *,
        custom: Method | None = None,
        settings: Mapping[str, Any] | None = None,
        decides: bool = True,
        **hyperparameters: Any,
    ) -> nn.Module:
        """Return a network trained with the first seed, in evaluation mode, from the folder if it was trained before.

        Args:
            name: of the method.
            custom: the method itself, for one that has no name elsewhere; ``name`` is then what the study calls it.
            settings: training settings other than the context's.
            decides: whether the study's verdict rests on this network; False for one that is only shown.
            **hyperparameters: settings of the method.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        changed = {**(settings or {}), **hyperparameters}
        subset = replace(self.base.subset, test_size=0)  # trained on the same for any number of test examples
        if subset.imbalance != 1:
            changed["imbalance"] = subset.imbalance
        kind = "-".join(f"{key}={value}" for key, value in changed.items()).replace("/", ":") or "plain"
        folder, all_settings = self.out / "networks" / kind, {**self.base.settings, **(settings or {})}
        one = replace(self.base, method=name, hyperparameters=hyperparameters, settings=all_settings, subset=subset)
        if not train_experiment(one, folder, self.device, self.threads, custom):
            raise UserError("stopped; the same command goes on")
        model = load(one.folder(folder) / "run", device=pick_device(self.device)).eval()
        if decides:
            x, y = self._test_examples
            with torch.no_grad():
                right = [model(some).argmax(1) == label for some, label in zip(x.split(1000), y.split(1000), strict=True)]
            self.right.setdefault(name if kind == "plain" else f"{name}, {kind}", []).append(torch.cat(right))
        return model

    def examples(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Return the examples to look at: inputs (N, ...) and labels (N,), on the device."""
        return self._test_examples if split == "test" else self._fetched(split)

    @cached_property
    def _test_examples(self) -> tuple[Tensor, Tensor]:
        return self._fetched("test")

    def _fetched(self, split: str) -> tuple[Tensor, Tensor]:
        source = self.base.load_data(split)
        count = min(self.base.subset.test_size or len(source), len(source))
        return fetch_for(nn.Linear(1, 1).to(pick_device(self.device)), source, torch.arange(count))
