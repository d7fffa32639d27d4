"""Studies of examples that are harder than others: those of rare classes."""

from dataclasses import replace
from math import isfinite

from matplotlib.figure import Figure

from hauberk.experiments.figures import new_figure, plot_lines
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies, trained_masks
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, number_text, only, percent, sentence

RATIO = 10.0  # of the number of examples of the first class to that of the last


def imbalance(context: StudyContext) -> StudyResult:
    """Thin the training set out so that classes become ever rarer, train, and attack each class of the whole test set."""
    subset = replace(context.base.subset, imbalance=RATIO)
    thin = replace(context, base=replace(context.base, subset=subset), say=lambda text: context.say(f"thinned out, {text}"))
    y = context.examples()[1]
    classes = int(y.max()) + 1
    rare = y >= classes - classes // 3
    variants = {
        name: Variant(name.partition(",")[0], {}, {"class_weights": "balanced"} if "," in name else {}, decides="," not in name)
        for name in ("at", "trades", "mart", "at, balanced", "mart, balanced")
    }
    found = trained_masks(thin, variants)
    whole = trained_masks(context, {name: variants[name] for name in ("at", "mart")})
    by_class = {name: [percent(one.strong[:, y == k]) for k in range(classes)] for name, one in found.items()}
    thin_gain, whole_gain = (only(rare, gain(some["mart"].strong, some["at"].strong)) for some in (found, whole))
    rows = []
    for name, one in found.items():
        known = [number for number in by_class[name] if isfinite(number)]
        extra = accuracies({"strong, rarest third, %": only(rare, one.strong)}) | {"strong, worst class, %": min(known)}
        rows.append(one.row(training=name, **extra))
    return StudyResult(
        f"the first class has {RATIO:g} times the examples of the last. In the rarest third, under the stronger attacks, "
        + ", ".join(
            f"{name} has {number_text(row['strong, rarest third, %'])} % right" for name, row in zip(found, rows, strict=True)
        ),
        [
            sentence("MART helps the rarest third more than AT does", thin_gain),
            sentence("and by more than where classes are balanced", thin_gain - whole_gain),
        ],
        rows,
        {"by class": by_class},
        about=f"thinned out, {len(y):,} test examples",
    )


def draw_imbalance(result: StudyResult) -> Figure:
    """Accuracy under the stronger attacks of each class, the rarest last."""
    figure, (axes,) = new_figure()
    series = result.series["by class"]
    plot_lines(axes, range(len(series["at"])), series)
    axes.set(xlabel="class, from the most frequent to the rarest", ylabel="accuracy under stronger attacks, %")
    return figure
