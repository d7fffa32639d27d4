"""What every study is made of: what it runs on, what it measures, and what it finds, beside what its source claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import apgd, pgd
from hauberk.core.errors import UserError
from hauberk.core.io import json_file, make_folder, write_together
from hauberk.core.text_table import TextTable
from hauberk.data import IndexedDataset, fetch_for
from hauberk.evaluation.diagnostics.results import hardly_beats_chance
from hauberk.experiments.experiment import Experiment, train_experiment
from hauberk.experiments.figures import FIGURE_FORMATS, figure_file
from hauberk.methods import Method
from hauberk.threat import ThreatModel
from hauberk.training import load, pick_device
from hauberk.training.config import TrainConfig
from hauberk.training.plan import hold_out

_BATCH = 250
ACCURACIES = ("clean, %", "PGD-20, %", "strong, %")  # the columns of :class:`RobustMasks`


@dataclass(frozen=True)
class StudyContext:
    """What a study runs on: data, a network, how much of both, and the networks it trains.

    Attributes:
        base: data, network, sizes, seed and training settings; its method is replaced by those of the study.
        out: folder for trained networks and results.
        device: where networks are trained and attacked.
        threads: CPU threads; 0 leaves torch's choice.
        clean_accuracy: on the test examples, in [0, 1], of each network that the verdict rests on, as they are trained.
    """

    base: Experiment
    out: Path
    device: str = "auto"
    threads: int = 0
    clean_accuracy: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        base = self.base
        size = f"{base.subset.train_size:,} training examples" if base.subset.train_size else "all training examples"
        return f"{base.data.name}, {base.model.name}, {self.threat}, {size}, {self.config.epochs} epochs, seed {base.seed}"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return self.base.threat_model

    @property
    def seed(self) -> int:
        """Seed of trainings and attacks."""
        return self.base.seed

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

    def trained(
        self,
        name: str,
        *,
        custom: Method | None = None,
        settings: Mapping[str, Any] | None = None,
        decides: bool = True,
        **hyperparameters: Any,
    ) -> nn.Module:
        """Return a trained network in evaluation mode, from the folder if it was trained before.

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
            self.clean_accuracy[name if kind == "plain" else f"{name}, {kind}"] = float(torch.cat(right).double().mean())
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


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study found, beside what its source claims.

    Attributes:
        found: what was measured, in a sentence or two with its numbers.
        agrees: whether that agrees with the claim; None where it cannot be told.
        rows: the table; all rows have the same keys. None where a number cannot be told.
        series: numbers for the picture, in plain types.
        about: on which examples, if not simply the test examples; :meth:`Study.run` puts data, network and sizes before it.
        study: its name. This and the claim are given by :meth:`Study.run`.
        claim: what the source says, and which it is.
    """

    found: str
    agrees: bool | None
    rows: list[dict[str, Any]]
    series: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    study: str = ""
    claim: str = ""

    @property
    def verdict(self) -> str:
        """Agreement in a word."""
        return {True: "agrees", False: "does not agree", None: "cannot be told"}[self.agrees]

    def column(self, name: str) -> list[Any]:
        """Return a column of the rows."""
        return [row[name] for row in self.rows]

    @property
    def table(self) -> TextTable:
        """The rows as a table."""
        return TextTable("", list(self.rows[0]), [list(row.values()) for row in self.rows])

    def to_markdown(self) -> str:
        """Return claim, finding and table."""
        said = [f"# {self.study}", f"{self.about}.", f"Claim: {self.claim}", f"Found ({self.verdict}): {self.found}."]
        return "\n\n".join([*said, self.table.to_markdown()])

    def save(self, folder: Path, draw: "Callable[[StudyResult], Figure]") -> None:
        """Write NAME.json, .md, .csv, and the picture as .png, .svg and .pdf.

        Raises:
            UserError: if it cannot be written.
        """
        make_folder(folder)
        figure = draw(self)
        files = {"json": json_file(asdict(self)), "md": self.to_markdown().encode(), "csv": self.table.to_csv().encode()}
        files |= {ending: figure_file(figure, ending) for ending in FIGURE_FORMATS}
        write_together({folder / f"{self.study}.{ending}": content for ending, content in files.items()})


@dataclass(frozen=True)
class Study:
    """An experiment of a source, on any data.

    Attributes:
        name: of the study.
        claim: what its source says, and which it is.
        experiment: trains, attacks, and says whether the claim holds.
        draw: makes the picture of a result.
    """

    name: str
    claim: str
    experiment: Callable[[StudyContext], StudyResult]
    draw: Callable[[StudyResult], Figure]

    def run(self, context: StudyContext) -> StudyResult:
        """Run it; the verdict is left open where it would rest on a network that is no better than chance.

        Args:
            context: data, network, sizes.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        watched = replace(context, clean_accuracy={})
        result = without_chance_verdict(self.experiment(watched), watched)
        about = f"{context}, {result.about or f'{len(watched.examples()[1]):,} test examples'}"
        return replace(result, about=about, study=self.name, claim=self.claim)


def without_chance_verdict(result: StudyResult, context: StudyContext) -> StudyResult:
    """Return a result without its verdict where that rests on networks that have learnt nothing."""
    source = context.base.load_data("test")
    classes = source.classes or int(context.examples()[1].max()) + 1
    accuracy = context.clean_accuracy
    poor = {name: clean for name, clean in accuracy.items() if hardly_beats_chance(clean, classes)}
    if not poor:
        return result
    least = min(poor, key=lambda name: poor[name])
    reason = (
        f"{len(poor)} of the {len(accuracy)} networks it rests on are no better than chance ({least}: "
        f"{100 * poor[least]:.0f} % of {classes} classes); train longer. Measured: "
    )
    return replace(result, agrees=None, found=reason + result.found)


@dataclass(frozen=True, eq=False)
class RobustMasks:
    """Which examples a network has right, each (N,) bool.

    Attributes:
        clean: without an attack.
        pgd: and under PGD-20 (steps of ε/4).
        strong: and under APGD on cross-entropy, and on the targeted DLR loss towards the 3 most likely wrong classes: less than
            AutoAttack, of which the first is one attack and the second a third of another.
    """

    clean: Tensor
    pgd: Tensor
    strong: Tensor

    def row(self, **more: Any) -> dict[str, Any]:
        """Return a row of a table: what it is, and accuracies in percent."""
        return more | dict(zip(ACCURACIES, map(percent, (self.clean, self.pgd, self.strong)), strict=True))


def robust_masks(context: StudyContext, model: nn.Module) -> RobustMasks:
    """Attack the test examples on a network."""
    x, y = context.examples()
    parts = []
    for seed, (some_x, some_y) in enumerate(zip(x.split(_BATCH), y.split(_BATCH), strict=True), context.seed):
        with torch.no_grad():
            clean = model(some_x).argmax(1) == some_y
        left = clean & ~pgd(model, some_x, some_y, context.threat, steps=20, step_size="eps/4", seed=seed).success
        strong = left.clone()
        for loss in ("ce", "dlr-targeted"):
            places = strong.nonzero().squeeze(1)
            if len(places):
                found = apgd(model, some_x[places], some_y[places], context.threat, loss=loss, targets=3, seed=seed)
                strong[places] = ~found.success
        parts.append((clean, left, strong))
    return RobustMasks(*(torch.cat(masks) for masks in zip(*parts, strict=True)))


def percent(right: Tensor) -> float:
    """Share of True, in percent; NaN of nothing."""
    return 100 * float(right.double().mean())


def paired_difference(ours: Tensor, others: Tensor) -> tuple[float, float]:
    """Return by how many points one network is better on the same examples, and the standard error of that (paired)."""
    points = ours.double() - others.double()
    return 100 * float(points.mean()), 100 * float(points.std()) / sqrt(len(points))


def difference_text(ours: Tensor, others: Tensor) -> str:
    """Return a paired difference in points with its standard error."""
    return "{:+.1f} ± {:.1f}".format(*paired_difference(ours, others))


def larger_by_two_errors(differences: Sequence[tuple[float, float]]) -> bool | None:
    """Judge claims that differences, each with its standard error, are above 0.

    Returns:
        True if all are, by two standard errors; False if one is below 0 by two; otherwise None. The error is that of the test
        examples only: a second training would scatter further.
    """
    if any(points < -2 * error for points, error in differences):
        return False
    return True if all(points > 2 * error for points, error in differences) else None


def all_better(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool | None:
    """Judge claims that the first network of each pair is better on the same examples, as :func:`larger_by_two_errors`."""
    return larger_by_two_errors([paired_difference(*pair) for pair in pairs])
