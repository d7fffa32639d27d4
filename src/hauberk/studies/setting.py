"""What a study is run on: data, a network, how much of both, and the networks it trains."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.compare.cell import Cell, train_cell
from hauberk.data import Source, fetch_for
from hauberk.errors import UserError
from hauberk.methods import Method
from hauberk.published import find_published
from hauberk.settings import TrainSettings
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device
from hauberk.training.plan import hold_out

_AT_ONCE = 250


@dataclass(frozen=True)
class Setting:
    """Data, network and sizes.

    Attributes:
        base: data, network, sizes, seed and training settings; its method is replaced by those of the study.
        out: folder for trained networks and findings.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.
        verify: compare checksums of the data files.
        learnt: clean accuracy on the test examples of each network that was asked for, and its number of classes.
    """

    base: Cell
    out: Path
    device: str = "auto"
    threads: int = 0
    verify: bool = True
    learnt: dict[str, tuple[float, int]] = field(
        default_factory=dict, compare=False
    )  # one for all that are made of this by replace()

    def __str__(self) -> str:
        base = self.base
        size = f"{base.train_size:,} training examples" if base.train_size else "all training examples"
        return f"{base.data}, {base.model}, {self.threat}, {size}, {self.schedule.epochs} epochs, seed {base.seed}"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return self.base.threat

    @property
    def seed(self) -> int:
        """Of everything."""
        return self.base.seed

    @property
    def schedule(self) -> TrainSettings:
        """How networks are trained."""
        found = find_published(self.base.data, self.base.model, recipe=self.base.recipe)
        return TrainSettings(**{**found.settings, **self.base.settings})

    def method(self, name: str, **choices: Any) -> Method:
        """Return a method on this data and network, as :meth:`trained` makes it."""
        return replace(self.base, method=name, choices=choices).bound

    @cached_property
    def train_part(self) -> Source:
        """What networks are trained on: the training examples without those held out for validation."""
        return hold_out(self.base.source("train", self.verify), self.schedule)[0]

    def trained(
        self, method: str, *, how: Method | None = None, settings: Mapping[str, Any] | None = None, **choices: Any
    ) -> nn.Module:
        """Return a trained network in evaluation mode, from the folder if it was trained before.

        Args:
            method: its name.
            how: the method itself, for one that has no name elsewhere; ``method`` is then what the study calls it.
            settings: training settings other than the setting's.
            **choices: settings of the method.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        changed = {**(settings or {}), **choices}
        all_settings = {**self.base.settings, **(settings or {})}
        cell = replace(self.base, method=method, choices=choices, settings=all_settings, test_size=0)  # trains alike for any
        if self.base.imbalance != 1:
            changed["imbalance"] = self.base.imbalance
        kind = "-".join(f"{name}={value}" for name, value in changed.items()).replace("/", ":") or "plain"
        folder = self.out / "networks" / kind
        if not train_cell(cell, folder, self.device, self.threads, self.verify, how):
            raise UserError("stopped; the same command goes on")
        model = load(cell.folder(folder) / "run", device=pick_device(self.device)).eval()
        self.learnt[method if kind == "plain" else f"{method} ({kind})"] = self._clean_accuracy(model)
        return model

    @torch.no_grad()
    def _clean_accuracy(self, model: nn.Module) -> tuple[float, int]:
        x, y = self.examples()
        logits = torch.cat([model(some) for some in x.split(_AT_ONCE)])
        return float((logits.argmax(1) == y).double().mean()), logits.shape[1]

    def examples(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Return the examples to look at: inputs (N, ...) and labels (N,), on the device."""
        source = self.base.source(split, self.verify)
        count = min(self.base.test_size or len(source), len(source))
        return fetch_for(nn.Linear(1, 1).to(pick_device(self.device)), source, torch.arange(count))
