"""What a study is run on: data, a network, how much of both, and the networks it trains."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError
from hauberk.data import IndexedDataset, fetch_for
from hauberk.evaluation.diagnostics.results import hardly_beats_chance
from hauberk.experiments.experiment import Experiment, train_experiment
from hauberk.experiments.studies.finding import Finding
from hauberk.methods import Method
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device
from hauberk.training.config import TrainConfig
from hauberk.training.plan import hold_out


@dataclass(frozen=True)
class Setting:
    """Data, network and sizes.

    Attributes:
        base: data, network, sizes, seed and training settings; its method is replaced by those of the study.
        out: folder for trained networks and findings.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.
        learnt: clean accuracy on the test examples, in [0, 1], of each network that a verdict rests on, as they are trained.
    """

    base: Experiment
    out: Path
    device: str = "auto"
    threads: int = 0
    learnt: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        base = self.base
        size = f"{base.subset.train_size:,} training examples" if base.subset.train_size else "all training examples"
        return f"{base.data.name}, {base.model.name}, {self.threat}, {size}, {self.schedule.epochs} epochs, seed {base.seed}"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return self.base.threat_model

    @property
    def seed(self) -> int:
        """Of everything."""
        return self.base.seed

    @property
    def schedule(self) -> TrainConfig:
        """How networks are trained."""
        return replace(self.base, method="").resolved.config

    def method(self, name: str, **choices: Any) -> Method:
        """Return a method on this data and network, as :meth:`trained` makes it."""
        return replace(self.base, method=name, hyperparameters=choices).make_method()

    @cached_property
    def train_part(self) -> IndexedDataset:
        """What networks are trained on: the training examples without those held out for validation."""
        return hold_out(self.base.load_data("train"), self.schedule)[0]

    def trained(
        self,
        method: str,
        *,
        how: Method | None = None,
        settings: Mapping[str, Any] | None = None,
        judged: bool = True,
        **choices: Any,
    ) -> nn.Module:
        """Return a trained network in evaluation mode, from the folder if it was trained before.

        Args:
            method: its name.
            how: the method itself, for one that has no name elsewhere; ``method`` is then what the study calls it.
            settings: training settings other than the setting's.
            judged: the study's verdict rests on this network; False for one that is only shown.
            **choices: settings of the method.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        changed = {**(settings or {}), **choices}
        all_settings = {**self.base.settings, **(settings or {})}
        subset = replace(self.base.subset, test_size=0)  # trains alike for any
        cell = replace(self.base, method=method, hyperparameters=choices, settings=all_settings, subset=subset)
        if subset.imbalance != 1:
            changed["imbalance"] = subset.imbalance
        kind = "-".join(f"{name}={value}" for name, value in changed.items()).replace("/", ":") or "plain"
        folder = self.out / "networks" / kind
        if not train_experiment(cell, folder, self.device, self.threads, how):
            raise UserError("stopped; the same command goes on")
        model = load(cell.folder(folder) / "run", device=pick_device(self.device)).eval()
        if judged:
            x, y = self._test_examples
            with torch.no_grad():
                right = [model(some).argmax(1) == label for some, label in zip(x.split(1000), y.split(1000), strict=True)]
            self.learnt[method if kind == "plain" else f"{method}, {kind}"] = float(torch.cat(right).double().mean())
        return model

    def sound(self, found: Finding) -> Finding:
        """Return a finding of this setting, without its verdict where that rests on networks that have learnt nothing."""
        classes = self.base.load_data("test").classes or int(self._test_examples[1].max()) + 1
        poor = {name: clean for name, clean in self.learnt.items() if hardly_beats_chance(clean, classes)}
        if not poor:
            return found
        least = min(poor, key=lambda name: poor[name])
        reason = (
            f"{len(poor)} of the {len(self.learnt)} networks it rests on are no better than chance ({least}: "
            f"{100 * poor[least]:.0f} % of {classes} classes); train longer. Measured: "
        )
        return replace(found, agrees=None, found=reason + found.found)

    @cached_property
    def _test_examples(self) -> tuple[Tensor, Tensor]:
        return self._fetched("test")

    def examples(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Return the examples to look at: inputs (N, ...) and labels (N,), on the device."""
        return self._test_examples if split == "test" else self._fetched(split)

    def _fetched(self, split: str) -> tuple[Tensor, Tensor]:
        source = self.base.load_data(split)
        count = min(self.base.subset.test_size or len(source), len(source))
        return fetch_for(nn.Linear(1, 1).to(pick_device(self.device)), source, torch.arange(count))
