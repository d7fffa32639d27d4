"""Studies of how much: of ε in training, of the network's width, of labelled and of unlabelled training examples."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hauberk.core.errors import UserError
from hauberk.core.figures import column_figure, from_zero, plot_lines, put_legend, same_limits
from hauberk.data import IndexedDataset, pseudo_label
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, SHORT, draw_accuracy_points, strong_caption
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
from hauberk.experiments.studies.masks import ACCURACIES, error_of, trained_masks
from hauberk.experiments.studies.method_variants import with_eps
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, percent, sentence
from hauberk.training.config import TrainConfig

EPS_FACTORS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)  # of ε, in training; with 0 it is standard training
WIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0)
SIZE_FACTORS = (0.125, 0.25, 0.5, 1.0)
LABELLED = 0.25  # of the training examples, where the others have no labels
# Networks whose width is in their name, with that of the name without one.
_WIDTHS = {r"mlp(?:-(\d+))?": ("mlp-{}", 128), r"small-cnn(?:-(\d+))?": ("small-cnn-{}", 32)}
_WIDTHS |= {r"resnet18(?:-(\d+))?": ("resnet18-{}", 64), r"preact-resnet18(?:-(\d+))?": ("preact-resnet18-{}", 64)}
_WIDE_RESNET = re.compile(r"(wrn-\d+)-(\d+)")


def epsilon(context: StudyContext) -> StudyResult:
    """Train with multiples of ε, and attack with ε itself."""
    variants = {}
    for factor in EPS_FACTORS:
        own = Variant(f"at at {factor:g} ε", custom=with_eps("at", factor), decides=factor < 2)
        variants[f"{factor:g} ε"] = {0.0: Variant("standard"), 1.0: Variant("at")}.get(factor, own)
    found = trained_masks(context, variants)
    usual, most = found["1 ε"], found["4 ε"]
    said = [
        sentence(f"trained with {factor:g} ε a network is less robust at ε than with ε", gain(usual.strong, other.strong))
        for factor, other in ((2.0, found["2 ε"]), (4.0, most))
    ]
    said.append(sentence("and with 4 ε has fewer clean examples right", gain(usual.clean, most.clean)))
    return StudyResult(
        "under the stronger attacks at ε, "
        + ", ".join(f"{percent(one.strong):.1f} % are right after training with {name}" for name, one in found.items()),
        said,
        [one.row(**{"ε in training": name}) for name, one in found.items()],
        {"x": list(EPS_FACTORS), "epochs": epoch_curves(context, variants)},
        caption=f"All attacked with ε itself. {ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION} Held-out "
        "examples are attacked with the ε of the training.",
    )


def draw_epsilon(result: StudyResult) -> Figure:
    """Accuracies at ε over the ε of the training, and PGD accuracy at the ε of the training over epochs."""
    figure, (ends, curves) = column_figure((2.0, 2.0))
    _draw_growth(ends, result.rows, result.series["x"], xlabel="ε in training, multiples of ε")
    shown = {name: one for name, one in result.series["epochs"].items() if name != "0 ε"}
    draw_epochs(curves, shown, "PGD")
    return figure


def capacity(context: StudyContext) -> StudyResult:
    """Train networks of several widths, with and without an attack."""
    names = widths(context.base.model.name)
    variants = {
        f"{method}, {width}": Variant(
            method, parts={} if name == context.base.model.name else {"model": {"name": name}}, decides=width == max(names)
        )
        for width, name in names.items()
        for method in ("standard", "at")
    }
    return _growth(context, variants, list(names), "width", ("the widest network", "the narrowest"))


def widths(model: str) -> dict[int, str]:
    """Return names of the network with a quarter, half, once and twice its width, by their width.

    Raises:
        UserError: for a network that has no width in its name.
    """
    for pattern, (name, usual) in _WIDTHS.items():
        if found := re.fullmatch(pattern, model):
            width = int(found[1] or usual)
            sizes = {max(1, round(factor * width)): factor for factor in WIDTH_FACTORS}
            return {size: model if factor == 1 else name.format(size) for size, factor in sizes.items()}
    if found := _WIDE_RESNET.fullmatch(model):
        sizes = {max(1, round(factor * int(found[2]))): factor for factor in WIDTH_FACTORS}
        return {size: f"{found[1]}-{size}" for size in sizes}
    raise UserError(
        f"study capacity needs mlp, small-cnn, resnet18, preact-resnet18 or wrn-d-k, with or without a width; not {model}"
    )


def draw_capacity(result: StudyResult) -> Figure:
    """Accuracies over the width."""
    return _draw_both(result, "width of the network")


def examples(context: StudyContext) -> StudyResult:
    """Train on a part of the training examples for as many steps, with and without an attack."""
    count = len(context.base.load_data("train"))
    sizes = {max(1, round(factor * count)): factor for factor in SIZE_FACTORS}
    variants = {
        f"{method}, {size}": Variant(
            method,
            settings=same_steps(context.config, factor),
            parts={"subset": {"train_size": size}} if factor < 1 else {},
            decides=factor == 1,
        )
        for size, factor in sizes.items()
        for method in ("standard", "at")
    }
    return _growth(context, variants, list(sizes), "training examples", ("all training examples", "an eighth of them"))


def same_steps(config: TrainConfig, fraction: float) -> dict[str, Any]:
    """Return settings with which a part of the examples is trained on for as many steps as all of them would be."""
    if fraction == 1:
        return {}
    epochs = max(1, round(config.epochs / fraction))
    found: dict[str, Any] = {"epochs": epochs}
    if config.schedule == "steps":
        found["milestones"] = tuple(1 + (m - 1) / fraction if m >= 1 else m for m in config.milestones)
    if config.warmup_epochs:
        found["warmup_epochs"] = config.warmup_epochs / fraction
    if config.val_size > 0:
        found["val_size"] = max(1, round(config.val_size * min(1.0, fraction)))
    return found


def draw_examples(result: StudyResult) -> Figure:
    """Accuracies over the number of training examples."""
    figure = _draw_both(result, "training examples")
    figure.axes[2].set_xscale("log")  # fewer examples make more epochs
    return figure


def _growth(
    context: StudyContext, variants: Mapping[str, Variant], values: Sequence[int], what: str, ends: tuple[str, str]
) -> StudyResult:
    """Compare what standard training gains in clean accuracy from more of something with what AT gains in robustness."""
    found = trained_masks(context, variants)
    low, high = min(values), max(values)
    robust = gain(found[f"at, {high}"].strong, found[f"at, {low}"].strong)
    clean = gain(found[f"standard, {high}"].clean, found[f"standard, {low}"].clean)
    rows = [
        found[f"{method}, {value}"].row(**{"training": method, what: value})
        for method in ("standard", "at")
        for value in values
    ]
    first, second = ends
    return StudyResult(
        f"from {low:,} to {high:,} ({what}) adversarial training gains {100 * float(robust.mean()):.1f} points under the "
        "stronger "
        f"attacks, standard training {100 * float(clean.mean()):.1f} points without an attack",
        [
            sentence(f"adversarial training is more robust with {first} than with {second}", robust),
            sentence("and gains more in robustness than standard training in clean accuracy", robust - clean),
        ],
        rows,
        {
            "x": list(values),
            "epochs": epoch_curves(context, {name: variants[name] for name in variants if name.startswith("at")}),
        },
        caption=f"{ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION}",
    )


def _draw_both(result: StudyResult, xlabel: str) -> Figure:
    figure, (robust, standard, curves) = column_figure((1.6, 1.4, 1.8))
    for axes, method in ((robust, "at"), (standard, "standard")):
        rows = [row for row in result.rows if row["training"] == method]
        _draw_growth(axes, rows, result.series["x"], xlabel=xlabel)
        axes.set_ylabel("AT: right, %" if method == "at" else "standard: right, %")
        axes.set_xscale("log")
        axes.set_xticks(result.series["x"], [f"{x:,}" for x in result.series["x"]])
        axes.xaxis.set_minor_locator(NullLocator())
    standard.legend().remove()
    same_limits([robust, standard])
    curve_names = {name.removeprefix("at, "): one for name, one in result.series["epochs"].items()}
    draw_epochs(curves, curve_names, "PGD", columns=4)
    return figure


def _draw_growth(axes: Axes, rows: Sequence[dict[str, Any]], x: Sequence[float], xlabel: str) -> None:
    """Draw clean, PGD-20 and strong accuracy of the rows of a table over x, from 0."""
    series = {SHORT[name]: [row[name] for row in rows] for name in ACCURACIES}
    errors = {SHORT[name]: [row[error_of(name)] for row in rows] for name in ACCURACIES}
    plot_lines(axes, x, series, errors, xlabel=xlabel, ylabel="accuracy, %")
    from_zero(axes)
    put_legend(axes)


def unlabelled(context: StudyContext) -> StudyResult:
    """Train on a part of the examples with labels, and with the rest under labels that a standard network gives them."""
    whole = context.base.load_data("train")
    count = max(1, round(LABELLED * len(whole)))
    part, config = {"subset": {"train_size": count}}, context.config
    few, more = same_steps(config, LABELLED), same_steps(config, LABELLED / (1 - config.extra_share))
    teacher = Variant("standard", settings=few, parts=part, decides=False)

    def others(one: StudyContext) -> IndexedDataset:
        data = one.base.load_data("train")
        return pseudo_label(one.trained_variant(teacher), data.fetch(torch.arange(count, len(data)))[0])

    if "val_size" in few:
        more["val_size"] = few["val_size"]
    variants = {"standard, labelled": teacher}
    for name in ("at", "mart"):
        variants[f"{name}, labelled"] = Variant(name, settings=few, parts=part)
        variants[f"{name}, and unlabelled"] = Variant(name, settings=more, parts=part, extra=others)
    variants["at, all labelled"] = Variant("at", decides=False)
    found = trained_masks(context, variants)
    gains = {name: gain(found[f"{name}, and unlabelled"].strong, found[f"{name}, labelled"].strong) for name in ("at", "mart")}
    return StudyResult(
        f"{count:,} of {len(whole):,} training examples have labels; the others, under labels of a standard network that has "
        f"{percent(found['standard, labelled'].clean):.1f} % of the test examples right, gain AT "
        f"{100 * float(gains['at'].mean()):.1f} "
        f"and MART {100 * float(gains['mart'].mean()):.1f} points under the stronger attacks",
        [
            sentence("unlabelled examples make adversarial training more robust", gains["at"]),
            sentence("and MART", gains["mart"]),
            sentence(
                "with them MART is more robust than adversarial training",
                gain(found["mart, and unlabelled"].strong, found["at, and unlabelled"].strong),
            ),
        ],
        [one.row(training=name) for name, one in found.items()],
        {"epochs": epoch_curves(context, variants)},
        caption=f"All make about as many steps. {ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION}",
    )


def draw_unlabelled(result: StudyResult) -> Figure:
    """Accuracies of each training, and PGD accuracy over epochs."""
    figure, (points, curves) = column_figure((2.1, 2.1))
    draw_accuracy_points(points, result.rows, result.column("training"))
    shown = {name: one for name, one in result.series["epochs"].items() if not name.startswith("standard")}
    draw_epochs(curves, shown, "PGD", columns=2)
    curves.set_xscale("log")  # fewer labels make more epochs
    return figure
