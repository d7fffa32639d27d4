"""One cell of a study: a training and its evaluation, kept in a folder; a finished cell is never made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import UserError
from hauberk.core.io import json_roundtrip, make_folder, read_json, write_json
from hauberk.data import Part, Source, labels, load_data, long_tail
from hauberk.evaluation import evaluate
from hauberk.methods import Method
from hauberk.methods.named import published_method
from hauberk.tables import default_model, default_threat
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device
from hauberk.training.published import find_published
from hauberk.training.train import train

EVALUATION = "evaluation.json"
_CELL = "cell.json"
_PLACES = ("data_dir", "surrogate")  # may differ where a folder was moved


@dataclass(frozen=True)
class Cell:
    """What to train and how to evaluate it, in plain types, so that it can be written down and sent to another process.

    Attributes:
        method: name of the method.
        seed: of weights, order of the data, augmentation, random starts, and of the evaluation.
        data: name of the data set.
        data_dir: folder with its files.
        model: name of the network.
        norm: of the threat model.
        eps: its radius; empty for the literature's.
        preset: "paper" or "official".
        recipe: where training settings that are not given come from, "published" or "express".
        train_size: training examples, the first ones; 0 for all.
        test_size: test examples, the first ones; 0 for all.
        imbalance: how many times more training examples the first class keeps than the last; 1 leaves them as they are.
        suite: of the evaluation.
        attacks: of the evaluation, instead of a suite.
        surrogate: folder of the run that transfer attacks are crafted on; empty for none.
        label: what it is called in a table and in the folder; empty for the method.
        settings: fields of ``TrainConfig``.
        choices: settings of the method, over those that are published for it on this data set and network.
    """

    method: str
    seed: int
    data: str = "digits"
    data_dir: str = "data"
    model: str = "small-cnn"
    norm: str = "Linf"
    eps: str = ""
    preset: str = "paper"
    recipe: str = "published"
    train_size: int = 0
    test_size: int = 0
    imbalance: float = 1.0
    suite: str = "papers"
    attacks: tuple[str, ...] = ()
    surrogate: str = ""
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return default_threat(self.data, self.norm, self.eps)

    @property
    def bound(self) -> Method:
        """The method, bound to the threat model."""
        same: dict[str, Any] = {"preset": self.preset, "recipe": self.recipe, "seed": self.seed}
        return published_method(self.method, self.threat, self.data, self.model, **same, **self.choices)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, with the published settings of the method among its choices."""
        published = find_published(self.data, self.model, self.method, self.preset, self.recipe).method
        return asdict(self) | {"choices": {**published, **self.choices}}

    def source(self, split: str, verify: bool = True) -> Source:
        """Load the examples of a split."""
        whole = load_data(self.data, "train" if split == "train" else "test", self.data_dir, verify=verify)
        size = self.train_size if split == "train" else self.test_size
        part: Source = whole if size == 0 else Part(whole, torch.arange(min(size, len(whole))))
        return part if split != "train" or self.imbalance == 1 else Part(part, long_tail(labels(part), self.imbalance))

    def folder(self, out: Path) -> Path:
        """Where it is kept, below the folder of the study."""
        return out / self.name.replace("/", ":") / f"seed-{self.seed}"

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label or self.method


def run_cell(cell: Cell, out: Path, device: str = "auto", threads: int = 0, verify: bool = True) -> bool:
    """Train and evaluate, or go on with what is in the folder.

    Args:
        cell: what to do.
        out: folder of the study.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.
        verify: compare checksums of the data files.

    Returns:
        Whether it is finished; otherwise it was asked to stop, and the same call goes on.

    Raises:
        UserError: if the folder holds another cell, and as :func:`hauberk.train` and :func:`hauberk.evaluate`.
    """
    folder = cell.folder(out)
    if is_finished(cell, out):
        return True
    if threads:
        torch.set_num_threads(threads)
    if not train_cell(cell, out, device, threads, verify):
        return False
    found = evaluate(
        load(folder / "run", device=pick_device(device)),
        cell.source("test", verify),
        threat=cell.threat,
        suite=cell.suite,
        attacks=cell.attacks,
        surrogate=load(cell.surrogate, device=pick_device(device)) if cell.surrogate else None,
        seed=cell.seed,
        has_reject_class=cell.bound.extra_outputs > 0,
        out=folder / "evaluation",
        quiet=True,
    )
    found.save(folder / EVALUATION)
    return True


def train_cell(
    cell: Cell, out: Path, device: str = "auto", threads: int = 0, verify: bool = True, how: Method | None = None
) -> bool:
    """Train only, or go on; arguments otherwise as in :func:`run_cell`. The network is in ``run`` of the cell's folder.

    ``how`` is the method itself, for one that ``cell.method`` does not find by its name.
    """
    folder = cell.folder(out)
    _claim(folder, cell)
    run = folder / "run"
    done = folder / "trained.json"
    if done.exists():
        return True
    bound, source = how or cell.bound, cell.source("train", verify)
    trained = train(
        default_model(cell.data, cell.model, source, extra=bound.extra_outputs),
        source,
        method=bound,
        out=run,
        resume=(run / "run.json").exists(),
        recipe=cell.recipe,
        quiet=True,
        **{"seed": cell.seed, "device": device, "threads": threads, **cell.settings},
    )
    if not trained.interrupted:
        write_json(done, {"best_epoch": trained.best["epoch"] + 1})
    return not trained.interrupted


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether nothing is left to do.

    Raises:
        UserError: if the folder holds another cell.
    """
    folder = cell.folder(out)
    if (folder / _CELL).exists():
        _claim(folder, cell)
    return (folder / EVALUATION).exists()


def _claim(folder: Path, cell: Cell) -> None:
    """Write down whose folder it is, or refuse one that is another's."""
    now, path = json_roundtrip(cell.to_dict()), folder / _CELL
    if not path.exists():
        make_folder(folder)
        write_json(path, now)
        return
    there = json_roundtrip(asdict(Cell("", 0))) | read_json(path)  # a cell of an earlier version knows fewer fields
    for key, value in now.items():
        if key not in _PLACES and there[key] != value:
            raise UserError(f"{folder} was made with {key} = {there[key]!r}, not {value!r}; choose another folder by --out")
