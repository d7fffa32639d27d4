"""Accuracies over the epochs of a training, from its metrics: the mean of the seeds, with the best and the last epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hauberk.core.figures import line_style, put_legend
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import RobustMasks, join_seeds, robust_masks

# Columns of a run's metrics, by what they are called in a picture.
COLUMNS = {
    "clean": "val_clean_accuracy",
    "PGD": "val_robust_accuracy",
    "training, clean": "train_clean_accuracy",
    "training, PGD": "train_robust_accuracy",
}
EPOCHS_CAPTION = (
    "Curves: mean over seeds of the accuracy on held-out training examples (PGD: 10 steps of ε/4); band: lowest to "
    "highest seed; filled mark: best epoch of the mean, open mark: last epoch."
)
Curves = dict[str, dict[str, list[list[float]]]]  # by network and column, in percent, for each seed


def epoch_curves(context: StudyContext, variants: Mapping[str, Variant]) -> Curves:
    """Return accuracies in percent of each network over its epochs, for each seed; the networks are trained.

    A column that some epoch lacks is left out; seeds that stopped at different epochs are cut to the shortest.
    """
    found: Curves = {}
    for name, variant in variants.items():
        runs = [one.epochs(variant) for one in context.by_seed]
        shortest = min(map(len, runs))
        rows = [run[:shortest] for run in runs]
        known = {label: key for label, key in COLUMNS.items() if all(key in row for run in rows for row in run)}
        found[name] = {label: [[100 * row[key] for row in run] for run in rows] for label, key in known.items()}
    return found


def draw_epochs(
    axes: Axes,
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    column: str = "PGD",
    names: Sequence[str] | None = None,
    columns: int = 3,
    **labels: Any,
) -> None:
    """Draw a column of :func:`epoch_curves` for some networks, by default all; ``labels`` are those of ``Axes.set``.

    Where no examples were held out there is nothing to draw, which is written instead.
    """
    shown = [name for name in (names or curves) if column in curves[name]]
    for k, name in enumerate(shown):
        seeds = curves[name][column]
        style = line_style(k)
        marker = style.pop("marker")
        mean = draw_mean(axes, range(1, len(seeds[0]) + 1), seeds, **style)
        best = max(range(len(mean)), key=lambda place: mean[place])
        axes.plot([best + 1], [mean[best]], marker=marker, markersize=5, color=style["color"], linestyle="")
        end: dict[str, Any] = {
            "marker": marker,
            "markersize": 5,
            "markerfacecolor": "white",
            "color": style["color"],
            "linestyle": "",
        }
        if best != len(mean) - 1:
            axes.plot([len(mean)], [mean[-1]], **end)
        axes.plot([], [], **style, marker=marker, label=name)
    if not shown:
        axes.text(0.5, 0.5, "no examples were held out", ha="center", va="center", transform=axes.transAxes)
    elif len(shown) > 1:
        put_legend(axes, columns)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(**{"xlabel": "epoch", "ylabel": f"{column} accuracy, %", **labels})


def draw_mean(axes: Axes, epochs: Sequence[int], seeds: Sequence[Sequence[float]], **style: Any) -> list[float]:
    """Draw the mean of the seeds over epochs, with a band from the lowest to the highest seed, and return it."""
    mean = [sum(values) / len(values) for values in zip(*seeds, strict=True)]
    if len(seeds) > 1:
        low, high = ([pick(values) for values in zip(*seeds, strict=True)] for pick in (min, max))
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(epochs, mean, **style)
    return mean


def last_masks(context: StudyContext, variants: Mapping[str, Variant]) -> dict[str, RobustMasks]:
    """Attack the test examples on the last epoch of each network of each seed; they are trained."""
    return {
        name: join_seeds([robust_masks(one, one.trained_variant(variant, "last")) for one in context.by_seed])
        for name, variant in variants.items()
    }
