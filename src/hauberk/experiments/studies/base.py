"""What every study is made of: what it runs on, what it measures, and what it finds, beside what its source claims."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from math import isfinite, nan, sqrt
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import apgd, pgd
from hauberk.core.errors import UserError
from hauberk.core.io import json_file, make_folder, write_together
from hauberk.core.numerics import float32_mode
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
AGREES, DISAGREES, UNTOLD = "agrees", "does not agree", "cannot be told"
ACCURACIES = ("clean, %", "PGD-20, %", "strong, %")  # the columns of :class:`RobustMasks`
NOTHING = 1.0  # points of accuracy, or percent: where a source says "nothing", "almost nothing" or "as many" (ours)
# What stands below a table with one of these words in a heading.
_WORDS = {
    "±": "±: standard error over seeds and examples.",
    "PGD-20": "PGD-20: right under 20 steps of ε/4.",
    "strong": "strong: right under APGD on cross-entropy, and on targeted DLR towards 3 classes.",
    "LPS": "LPS: least number of PGD steps that break an example.",
    "stuck": "stuck: not broken, though the other attack breaks it.",
    "PM": "PM: probabilistic margin, nat of x, adv of x'.",
    "critical": "critical: broken by stronger attacks though PGD does not.",
    "effective": "effective: (Σ ω)² / Σ ω², in percent of the examples.",
    "alignment": "alignment: of input and gradient, 1 for parallel ones.",
    "roughness": "roughness: difference of neighbouring pixels of the gradient over its mean size.",
}


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


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean over seeds of means over examples, and its standard error from both.

    The error is ``sqrt(var_s(m_s) / S + var_i(u_i) / N)``, m_s the mean of seed s over its examples, u_i the mean over seeds of
    what example i moves m_s by; networks of all seeds are tried on the same examples. Where seeds and examples interact, that
    part counts twice, so the error is rather too large.

    Args:
        values: (S, N), one for each seed and example; NaN where there is none.

    Returns:
        Mean and standard error; both NaN if a seed has no value, and the error if there is one seed, or one example.
    """
    plain = _without_gaps(values)
    means, (seeds, count) = plain.mean(1), plain.shape
    if seeds < 2 or count < 2:
        return float(means.mean()), nan
    moved = (plain - means[:, None]).mean(0)
    return float(means.mean()), sqrt(float(means.var()) / seeds + float(moved.var()) / count)


def sentence(says: str, values: Tensor, unit: str = "points") -> dict[str, Any]:
    """Test a sentence of a claim: that a difference is above 0, by two standard errors over seeds and examples.

    Args:
        says: the sentence.
        values: (S, N), the difference for each seed and example, NaN where there is none.
        unit: of the difference; "points" are those of percent, of values that are shares. Of n examples these have a standard
            error of 1/n at least: that none of a few was seen does not say that there are none.

    Returns:
        A row of a table: the sentence, the difference, its standard error, and "agrees" where the difference is above 0 by two,
        "does not agree" where it is below 0 by two, otherwise "cannot be told". None for a number that cannot be told.
    """
    difference, error = mean_and_error(values)
    if unit == "points":
        known = int(values.isfinite().any(0).sum())
        difference, error = 100 * difference, 100 * (max(error, 1 / known) if known and isfinite(error) else error)
    verdict = AGREES if difference > 2 * error else DISAGREES if difference < -2 * error else UNTOLD
    numbers = {"difference": difference, "±": error}
    return {"sentence": says} | {k: v if isfinite(v) else None for k, v in numbers.items()} | {"unit": unit, "verdict": verdict}


def difference_of(ours: Tensor, others: Tensor) -> Tensor:
    """Return values (S, N) with the differences of the means of ``ours`` and ``others``, whose NaN may be in other places."""
    return _without_gaps(ours) - _without_gaps(others)


def _without_gaps(values: Tensor) -> Tensor:
    """Return values (S, N) without NaN, of which each row has the same mean, and each example moves it by as much."""
    values = values.double()
    known = values.isfinite()
    counts = known.sum(1, keepdim=True)
    means = values.where(known, 0.0).sum(1, keepdim=True) / counts  # NaN of a row of NaN
    return means + ((values - means) * values.shape[1] / counts).where(known, 0.0)


def only(mask: Tensor, values: Tensor) -> Tensor:
    """Return values (S, N) as numbers where the mask is True, and NaN elsewhere."""
    return values.double().where(mask, nan)


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study found, beside what its source claims.

    Attributes:
        found: what was measured, in a sentence or two with its numbers.
        sentences: those of the claim, each with the difference that it names, as :func:`sentence` tests it.
        rows: the table; all rows have the same keys. None where a number cannot be told.
        series: numbers for the picture, in plain types.
        about: on which examples, if not simply the test examples; :meth:`Study.run` puts data, network and sizes before it.
        study: its name. This, the claim and the verdict are given by :meth:`Study.run`.
        claim: what the source says, and which it is.
        verdict: "agrees" if all sentences do, "does not agree" if one does not, otherwise "cannot be told".
    """

    found: str
    sentences: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    series: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    study: str = ""
    claim: str = ""
    verdict: str = ""

    def column(self, name: str) -> list[Any]:
        """Return a column of the rows."""
        return [row[name] for row in self.rows]

    @property
    def table(self) -> TextTable:
        """The rows as a table, with what the words in its headings mean."""
        notes = [what for word, what in _WORDS.items() if any(word in name for name in self.rows[0])]
        return TextTable("", list(self.rows[0]), [list(row.values()) for row in self.rows], notes)

    @property
    def tested(self) -> TextTable:
        """The sentences of the claim as a table."""
        rows = [
            [one["sentence"], f"{_signed(one['difference'])} ± {_signed(one['±'], '')} {one['unit']}", one["verdict"]]
            for one in self.sentences
        ]
        return TextTable("", ["the claim says", "difference", "verdict"], rows)

    def to_markdown(self) -> str:
        """Return claim, finding, what was tested, and the table."""
        said = [f"# {self.study}", f"{self.about}.", f"Claim: {self.claim}", f"Found ({self.verdict}): {self.found}."]
        tables = [self.tested, self.table] if self.sentences else [self.table]
        return "\n\n".join([*said, *(table.to_markdown().rstrip() for table in tables)]) + "\n"

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
        experiment: trains, attacks, and tests the sentences of the claim.
        draw: makes the picture of a result.
    """

    name: str
    claim: str
    experiment: Callable[[StudyContext], StudyResult]
    draw: Callable[[StudyResult], Figure]

    def run(self, context: StudyContext) -> StudyResult:
        """Run it, and judge: never by networks that are no better than chance, nor by those of a single seed.

        What it measures is in true float32; trainings are in the precision of their settings.

        Args:
            context: data, network, sizes, number of seeds.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        watched = replace(context, right={})
        with float32_mode("fp32"):
            result = judged(self.experiment(watched), watched)
        about = f"{context}, {result.about or f'{len(watched.examples()[1]):,} test examples'}"
        return replace(result, about=about, study=self.name, claim=self.claim)


def judged(result: StudyResult, context: StudyContext) -> StudyResult:
    """Return a result with its verdict: that of its sentences, left open where they rest on networks that have learnt nothing.

    A network has learnt something if it is right at least twice as often as guessing, of two classes more often, and more often
    than naming the most frequent class by two standard errors of the test examples.
    """
    y = context.examples()[1]
    classes = context.base.load_data("test").classes or int(y.max()) + 1
    constant = float(y.bincount().max()) / len(y)
    poor: dict[str, float] = {}
    for name, masks in context.right.items():
        for clean in (float(mask.double().mean()) for mask in masks):
            error = sqrt(clean * (1 - clean) / len(y))
            if hardly_beats_chance(clean, classes) or clean - 2 * error <= max(constant, 1 / classes):
                poor[name] = min(clean, poor.get(name, 1.0))
    verdicts = [one["verdict"] for one in result.sentences]
    verdict = DISAGREES if DISAGREES in verdicts else AGREES if verdicts and set(verdicts) == {AGREES} else UNTOLD
    if poor:
        least = min(poor, key=lambda name: poor[name])
        reason = (
            f"{len(poor)} of the {len(context.right)} networks it rests on are no better than chance ({least}: "
            f"{100 * poor[least]:.0f} % of {classes} classes); train longer, or look at more test examples. Measured: "
        )
        open_sentences = [one | {"verdict": UNTOLD} for one in result.sentences]
        return replace(result, verdict=UNTOLD, found=reason + result.found, sentences=open_sentences)
    if context.trials == 1:
        return replace(result, verdict=verdict, found="one seed tells nothing of others. Measured: " + result.found)
    return replace(result, verdict=verdict)


def _signed(number: float | None, sign: str = "+") -> str:
    """Return a number with as many digits as a reader wants, "?" where it cannot be told."""
    if number is None:
        return "?"
    return f"{number:{sign}.1f}" if abs(number) >= 1 else f"{number:{sign}.2g}"


@dataclass(frozen=True, eq=False)
class RobustMasks:
    """Which examples networks have right, each (S, N) bool, a row for each seed.

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
        """Return a row of a table: what it is, and accuracies in percent with their standard errors."""
        return more | accuracies(dict(zip(ACCURACIES, (self.clean, self.pgd, self.strong), strict=True)))


def accuracies(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return cells of a table: for each mask (S, N) its share of True in percent, and the standard error of that."""
    cells: dict[str, Any] = {}
    for name, mask in masks.items():
        cells[name], cells[f"{name.removesuffix(', %')} ±"] = (number_or_none(100 * one) for one in mean_and_error(mask))
    return cells


def robust_masks(context: StudyContext, model: nn.Module) -> RobustMasks:
    """Attack the test examples on a network; the masks have one row."""
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
    return RobustMasks(*(torch.cat(masks)[None] for masks in zip(*parts, strict=True)))


def trained_masks(context: StudyContext, variants: Mapping[str, Variant]) -> dict[str, RobustMasks]:
    """Train each network with each seed, and attack the test examples."""
    found: dict[str, list[RobustMasks]] = {name: [] for name in variants}
    for name, one, model in context.networks(variants):
        found[name].append(robust_masks(one, model))
    return {name: join_seeds(masks) for name, masks in found.items()}


def join_seeds(masks: Sequence[RobustMasks]) -> RobustMasks:
    """Put the masks of several seeds together."""
    return RobustMasks(*(torch.cat([getattr(one, kind) for one in masks]) for kind in ("clean", "pgd", "strong")))


def number_or_none(value: float) -> float | None:
    """Return a number, or None in place of NaN and infinities."""
    return value if isfinite(value) else None


def number_text(value: float | None, digits: int = 1) -> str:
    """Return a number with so many digits behind the point, "?" where it cannot be told."""
    return "?" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def percent(right: Tensor) -> float:
    """Share of True, in percent, over all seeds and examples; NaN of nothing."""
    return 100 * float(right.double().mean())
