"""What a study is run on: data, a network, and how much of both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.data import fetch_for
from hauberk.errors import UserError
from hauberk.studies.cell import Cell, train_cell
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device


@dataclass(frozen=True)
class Setting:
    """Data, network and sizes.

    Attributes:
        out: folder for trained networks and findings.
        data: name of the data set.
        data_dir: folder with its files.
        model: name of the network.
        eps: radius of the L∞ threat model; empty for the literature's.
        train_size: training examples, the first ones; 0 for all.
        test_size: examples looked at, the first ones of the test set; 0 for all.
        seed: of everything.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.
        verify: compare checksums of the data files.
        settings: fields of ``TrainSettings``.
    """

    out: Path
    data: str = "digits"
    data_dir: Path = Path("data")
    model: str = "small-cnn"
    eps: str = ""
    train_size: int = 0
    test_size: int = 500
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    verify: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        size = f"{self.train_size:,} training examples" if self.train_size else "all training examples"
        return f"{self.data}, {self.model}, {self.threat}, {size}, seed {self.seed}"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return self._cell("at").threat

    def trained(self, method: str, **choices: Any) -> nn.Module:
        """Return a trained network in evaluation mode, from the folder if it was trained before.

        Args:
            method: its name.
            **choices: settings of the method.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        cell, folder = self._cell(method, **choices), self.out / "networks"
        if not train_cell(cell, folder, self.device, self.threads, self.verify):
            raise UserError("stopped; the same command goes on")
        return load(cell.folder(folder) / "run", device=pick_device(self.device)).eval()

    def examples(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Return the examples to look at: inputs (N, ...) and labels (N,), on the device."""
        source = self._cell("at").source(split, self.verify)
        count = min(self.test_size or len(source), len(source))
        return fetch_for(nn.Linear(1, 1).to(pick_device(self.device)), source, torch.arange(count))

    def _cell(self, method: str, **choices: Any) -> Cell:
        same = {"data": self.data, "data_dir": str(self.data_dir), "model": self.model, "eps": self.eps, "seed": self.seed}
        return Cell(method, train_size=self.train_size, settings=self.settings, choices=choices, **same)  # type: ignore[arg-type]
