"""The figure of a comparison: a row for each method, legible in one column of a paper."""

from collections.abc import Sequence
from math import isnan
from textwrap import fill

from matplotlib.figure import Figure

from hauberk.core.errors import printable
from hauberk.core.intervals import wilson_interval
from hauberk.experiments.comparison import CERTIFIED, CLEAN, Comparison, column_title
from hauberk.experiments.figures import COLOURS, INK, new_figure

_MARKERS = "os^"  # told apart in grey, too


def draw_comparison(found: Comparison) -> Figure:
    """Draw :meth:`Comparison.figure`."""
    columns = [column for column in dict.fromkeys((CLEAN, CERTIFIED, found.columns[-1])) if column in found.columns]
    several, last = len(found.seeds) > 1, found.columns[-1]
    figure, (axes,) = new_figure(width=3.4, height=1.5 + 0.3 * len(found.methods))
    for k, column in enumerate(columns):
        means, ends = [found.mean(method, column) for method in found.methods], []
        for method, mean in zip(found.methods, means, strict=True):
            spread = found.deviation(method, column)
            low, high = (0.0, 0.0) if isnan(spread) else (spread, spread)
            if not several and found.n:
                share = [100 * end for end in wilson_interval(round(mean / 100 * found.n), found.n)]
                low, high = max(0.0, mean - share[0]), max(0.0, share[1] - mean)
            ends.append((low, high))
        title = column if column == CLEAN else column_title(column)
        label = f"{title} (upper bound)" if column == last != CLEAN else title
        rows = [row + 0.16 * (k - (len(columns) - 1) / 2) for row in range(len(means))]
        axes.errorbar(
            means, rows, xerr=list(zip(*ends, strict=True)), fmt=_MARKERS[k], color=COLOURS[k], ecolor=INK, elinewidth=0.8,
            capsize=2, markersize=5, label=label,
        )  # fmt: skip
    names = [_plain(method) + _mark(found.doubts.get(method, ())) for method in found.methods]
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
    axes.set_xlabel("accuracy, %", fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=8)
    bars = f"; bars: standard deviation over {len(found.seeds)} seeds"
    if not several:
        bars = "; bars: 95 % interval from the number of test examples" if found.n else ""
    figure.supxlabel(_wrapped(found.about + bars), fontsize=6, color=INK)
    figure.legend(loc="outside upper center", ncols=len(columns), frameon=False, fontsize=8)
    return figure


def _mark(doubts: Sequence[str]) -> str:
    return " (INVALID)" if any("INVALID" in doubt for doubt in doubts) else " (!)" if doubts else ""


def _plain(text: str) -> str:
    return printable(text).replace("$", r"\$")  # no formula


def _wrapped(text: str, width: int = 62) -> str:
    return fill(_plain(text), width)
