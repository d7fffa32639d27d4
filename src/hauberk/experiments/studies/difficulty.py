"""Studies of examples that are harder than others: those of rare classes, of small margins, and with wrong labels."""

from math import isfinite

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.figures import INK, bar_style, column_figure, error_bars, plot_points
from hauberk.data import labels
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, strong_caption
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
from hauberk.experiments.studies.masks import RobustMasks, accuracies, error_of, join_seeds, robust_masks, trained_masks
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import (
    difference_of,
    gain,
    mean_and_error,
    number_or_none,
    number_text,
    only,
    percent,
    sentence,
)
from hauberk.weighting import probabilistic_margin

QUARTERS = ("hardest", "second", "third", "easiest")
NOISE = 0.2  # of the training labels
RATIO = 10.0  # of the number of examples of the first class to that of the last


def imbalance(context: StudyContext) -> StudyResult:
    """Thin the training set out so that classes become ever rarer, train, and attack each class of the whole test set."""
    y, classes = context.examples()[1], context.classes
    rare, rarest = y >= classes - max(1, classes // 3), "rarest third" if classes >= 3 else "rarer class"
    thin = {"subset": {"imbalance": RATIO}}
    counts = labels(context.with_parts(thin).train_part).bincount(minlength=classes).tolist()
    if counts[0] <= counts[-1]:
        raise UserError(
            f"study imbalance thins later classes out, and here leaves {counts[0]} examples of the first, {counts[-1]} of the "
            "last; number the classes from the most frequent to the rarest"
        )
    variants = {
        name: Variant(
            name.partition(",")[0],
            {},
            {"class_weights": "balanced"} if "," in name else {},
            decides="," not in name,
            parts=thin,
        )
        for name in ("at", "trades", "mart", "at, balanced", "mart, balanced")
    }
    whole = {name: f"{name}, all examples" for name in ("at", "mart")}
    both = trained_masks(context, variants | {label: Variant(name) for name, label in whole.items()})
    found = {name: both[name] for name in variants}
    by_class = {name: [percent(one.strong[:, y == k]) for k in range(classes)] for name, one in found.items()}
    errors = {name: [100 * mean_and_error(one.strong[:, y == k])[1] for k in range(classes)] for name, one in found.items()}
    thin_gain = only(rare, gain(found["mart"].strong, found["at"].strong))
    whole_gain = only(rare, gain(both[whole["mart"]].strong, both[whole["at"]].strong))
    rows = []
    for name, one in found.items():
        known = [number for number in by_class[name] if isfinite(number)]
        extra = accuracies({f"strong, {rarest}, %": only(rare, one.strong)}) | {"strong, worst class, %": min(known)}
        rows.append(one.row(training=name, **extra))
    return StudyResult(
        f"the first class has {counts[0]:,} training examples, the last {counts[-1]:,}. In the {rarest}, under the "
        "stronger attacks, "
        + ", ".join(
            f"{name} has {number_text(row[f'strong, {rarest}, %'])} % right" for name, row in zip(found, rows, strict=True)
        ),
        [
            sentence(f"MART helps the {rarest} more than AT does", thin_gain),
            sentence("and by more than with all examples", thin_gain - whole_gain),
        ],
        rows,
        {
            "by class": by_class,
            "by class ±": {name: [number_or_none(error) for error in some] for name, some in errors.items()},
            "training": counts,
            "test": y.bincount(minlength=classes).tolist(),
        },
        about=f"thinned out, {len(y):,} test examples",
        caption="Bars: accuracy of each class under the stronger attacks, with standard errors; outline: that of AT; above: "
        "number "
        f"of training examples (of test examples in brackets). {strong_caption(context)}",
    )


def draw_imbalance(result: StudyResult) -> Figure:
    """Numbers of examples of each class, and below them its accuracy under the stronger attacks, a plot for each training."""
    by_class, training = result.series["by class"], result.series["training"]
    figure, (counts, *plots) = column_figure((1.2, *[0.95] * len(by_class)), sharex=True)
    places = range(len(training))
    counts.bar(places, training, **bar_style(0))
    for place, (count, tested) in enumerate(zip(training, result.series["test"], strict=True)):
        counts.annotate(f"{count}\n({tested})", (place, count), ha="center", va="bottom", fontsize=5.5)
    counts.set(ylabel="examples", ylim=(0, 1.45 * max(training)))
    for k, (axes, (name, values)) in enumerate(zip(plots, by_class.items(), strict=True)):
        bars = error_bars(result.series["by class ±"][name])
        axes.bar(places, values, yerr=bars, error_kw={"capsize": 1.5, "elinewidth": 0.7}, **bar_style(k))
        if name != "at":
            axes.step(
                [-0.5, *places, len(training) - 0.5],
                [by_class["at"][0], *by_class["at"], by_class["at"][-1]],
                where="mid",
                color=INK,
                linewidth=0.8,
            )
        axes.set(ylim=(0, 100), yticks=(0, 50, 100))
        axes.set_ylabel(f"{name}\nstrong, %", fontsize=6.5)
    plots[-1].set(xlabel="class, from the most frequent to the rarest", xticks=places)
    return figure


def difficulty(context: StudyContext) -> StudyResult:
    """Sort the test examples by the margin of a standard network, and attack each quarter; and train with noisy labels, too."""
    x, y = context.examples()
    noisy = {"subset": {"label_noise": NOISE}}
    variants = {"standard": Variant("standard")} | {name: Variant(name) for name in ("at", "mart", "mail-at")}
    variants |= {f"{name}, noisy": Variant(name, parts=noisy) for name in ("at", "mart")}
    masks: dict[str, list[RobustMasks]] = {name: [] for name in variants if name != "standard"}
    quarters: list[Tensor] = []
    for name, one, model in context.networks(variants):
        if name == "standard":
            with torch.no_grad():
                ranks = probabilistic_margin(model(x), y).argsort().argsort()
            quarters.append(ranks * len(QUARTERS) // len(y))
        else:
            masks[name].append(robust_masks(one, model))
    found, which = {name: join_seeds(some) for name, some in masks.items()}, torch.stack(quarters)
    ahead = gain(found["mart"].strong, found["at"].strong)
    hard, easy = only(which == 0, ahead), only(which == len(QUARTERS) - 1, ahead)
    noise = gain(found["mart, noisy"].strong, found["at, noisy"].strong)
    rows = [
        one.row(
            training=name,
            **accuracies({f"strong, {label}, %": only(which == k, one.strong) for k, label in enumerate(QUARTERS)}),
        )
        for name, one in found.items()
    ]
    return StudyResult(
        "under the stronger attacks MART is ahead of AT by "
        + ", ".join(
            f"{number_text(100 * float(only(which == k, ahead).nanmean()))} points in the {label} quarter"
            for k, label in enumerate(QUARTERS)
        )
        + f"; with {100 * NOISE:.0f} % random labels by {100 * float(noise.mean()):.1f} points",
        [
            sentence("MART is more robust than AT in the hardest quarter", hard),
            sentence("and is further ahead there than in the easiest", difference_of(hard, easy)),
            sentence(f"with {100 * NOISE:.0f} % random labels MART is more robust than AT", noise),
        ],
        rows,
        {"epochs": epoch_curves(context, {name: variants[name] for name in found})},
        caption="Test examples in quarters by the probabilistic margin of a standard network of the same seed, the smallest "
        f"first; noisy: {100 * NOISE:.0f} % of the training labels are random, of those held out, too. {ERRORS_CAPTION} "
        f"{strong_caption(context)} {EPOCHS_CAPTION}",
    )


def draw_difficulty(result: StudyResult) -> Figure:
    """Accuracy under the stronger attacks of each training in each quarter, and PGD accuracy over epochs."""
    figure, (points, curves) = column_figure((3.0, 1.8))
    names = [f"strong, {label}, %" for label in QUARTERS]
    series = {row["training"]: [row[name] for name in names] for row in result.rows}
    errors = {row["training"]: [row[error_of(name)] for name in names] for row in result.rows}
    plot_points(points, QUARTERS, series, errors, xlabel="accuracy under stronger attacks, %", xlim=(-2, 102), spread=0.16)
    draw_epochs(curves, result.series["epochs"], "PGD")
    return figure
