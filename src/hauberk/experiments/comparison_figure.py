"""The figure of a comparison: a row for each method, legible in one column of a paper."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.figure import Figure

from hauberk.core.errors import printable
from hauberk.core.figures import COLOURS, INK, new_figure

_MARKERS = "os^"  # told apart in grey, too
_WIDTH = 62  # characters of the caption in a line


def draw_methods(
    names: Sequence[str], series: Mapping[str, Sequence[tuple[float, tuple[float, float]]]], caption: str
) -> Figure:
    """Draw accuracies in percent of methods, the first on top.

    Args:
        names: of the methods.
        series: by what it is called in the legend, at most three, for each method an accuracy with the ends of its bar.
        caption: below the axis.
    """
    figure, (axes,) = new_figure(width=3.4, height=1.5 + 0.3 * len(names))
    for k, (label, values) in enumerate(series.items()):
        means = [mean for mean, _ in values]
        reach = [max(0.0, mean - low) for mean, (low, _) in values], [max(0.0, high - mean) for mean, (_, high) in values]
        rows = [row + 0.16 * (k - (len(series) - 1) / 2) for row in range(len(names))]
        axes.errorbar(
            means, rows, xerr=reach, fmt=_MARKERS[k], color=COLOURS[k], ecolor=INK, elinewidth=0.8, capsize=2, markersize=5,
            label=label,
        )  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=[_plain(name) for name in names], xlim=(0, 100))
    axes.set_xlabel("accuracy, %", fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=8)
    figure.supxlabel(fill(_plain(caption), _WIDTH), fontsize=6, color=INK)
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False, fontsize=8)
    return figure


def _plain(text: str) -> str:
    return printable(text).replace("$", r"\$")  # no formula
