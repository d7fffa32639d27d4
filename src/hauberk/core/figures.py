"""Figures of studies and reports: one look, and files that are the same whenever they are drawn."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from textwrap import wrap
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hauberk.core.errors import printable

INK, FAINT = "#010203", "#b0b3b8"  # text and grid; a report's page puts its own colours in their place
# Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FIGURE_FORMATS = ("png", "svg", "pdf")
COLUMN = 3.4  # inches: the width of a column of a paper
# What differs in grey, too: no two series of a plot have the same line, marker or hatching.
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
_MARKERS = "os^DvPX*"
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
_CAPTION_SIZE, _CAPTION_LINE, _LETTERS = 5.8, 0.1, 23.0  # points, inches, and letters of the caption in an inch
_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=(*COLOURS, INK)),
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
}
_SMALL: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
}


def small_text() -> AbstractContextManager[None]:
    """Return a context in which letters and lines have the sizes for figures of one column of a paper."""
    return rc_context(_SMALL)


def new_figure(columns: int = 1, width: float = 6.0, height: float = 3.4, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of some plots side by side, with these; sizes in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])


def column_figure(heights: Sequence[float], sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of one column of a paper with plots below each other, and these; their heights are in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(COLUMN, sum(heights)), layout="constrained")
        grid = figure.subplots(len(heights), 1, squeeze=False, sharex=sharex, height_ratios=list(heights))
        plots = list(grid[:, 0])
        for axes in plots:  # matplotlib would look the size up when it draws the ticks
            axes.tick_params(labelsize=rcParams["xtick.labelsize"])
        return figure, plots


def put_caption(figure: Figure, text: str) -> None:
    """Write a caption below the plots, in as many lines as it needs; the figure grows by these."""
    width, height = figure.get_size_inches()
    shown = "\N{NO-BREAK SPACE}".join(map(printable, text.split("\N{NO-BREAK SPACE}")))  # which is printable, in a caption
    lines = wrap(shown, int(width * _LETTERS))
    figure.set_size_inches(width, height + _CAPTION_LINE * len(lines) + 0.05)
    look: dict[str, Any] = {"fontsize": _CAPTION_SIZE, "color": INK, "linespacing": 1.25}
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", parse_math=False, **look)  # a "$" in a name is no formula


def line_style(number: int) -> dict[str, Any]:
    """Return colour, line and marker of a series, which differ from those of the others in grey, too."""
    colours = (*COLOURS, INK)
    dashes = _DASHES[(number + 2 * (number // len(colours))) % len(_DASHES)]
    shapes = {"linestyle": dashes, "marker": _MARKERS[number % len(_MARKERS)]}
    return {"color": colours[number % len(colours)], **shapes}


def bar_style(number: int) -> dict[str, Any]:
    """Return colour and hatching of the bars of a series, likewise."""
    return {"color": COLOURS[number % len(COLOURS)], "hatch": _HATCHES[number % len(_HATCHES)], "edgecolor": "white"}


def same_limits(plots: Sequence[Axes]) -> None:
    """Give all plots the same y axis, that of all their numbers."""
    low, high = min(axes.get_ylim()[0] for axes in plots), max(axes.get_ylim()[1] for axes in plots)
    for axes in plots:
        axes.set_ylim(low, high)


def from_zero(axes: Axes) -> None:
    """Begin the y axis at 0, with room above the highest mark however little the values differ."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def put_legend(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the plot, where it hides nothing."""
    axes.legend(
        frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2
    )


def plot_lines(
    axes: Axes,
    x: Sequence[Any],
    series: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float | None]] | None = None,
    **labels: Any,
) -> None:
    """Draw a line over x for each series, with its standard errors, with a legend of several.

    ``labels`` are those of ``Axes.set``.
    """
    for k, (name, values) in enumerate(series.items()):
        bars = error_bars(errors[name]) if errors else None
        style = line_style(k) | ({} if len(x) < 30 else {"marker": ""})
        axes.errorbar(x, values, bars, **style, markersize=4, capsize=2, label=name)
    if len(series) > 1:
        axes.legend(frameon=False)
    axes.set(**labels)


def plot_points(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    errors: Mapping[str, Sequence[float | None]],
    spread: float = 0.22,
    **labels: Any,
) -> None:
    """Draw a row for each name, the first on top, with a point and its standard error for each series.

    Points of a row stand above each other, ``spread`` of a row apart, so that none hides another; no line joins categories.
    ``labels`` are those of ``Axes.set``.
    """
    for k, (name, values) in enumerate(series.items()):
        known = {place: value for place, value in enumerate(values) if value is not None}
        rows = [place + spread * (k - (len(series) - 1) / 2) for place in known]
        reach = error_bars([errors[name][place] for place in known])
        style = line_style(k) | {"linestyle": "", "capsize": 1.5, "elinewidth": 0.8}
        axes.errorbar(list(known.values()), rows, xerr=reach, **style, label=name)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), **labels)
    if len(series) > 1:
        put_legend(axes)


def error_bars(errors: Sequence[float | None]) -> list[float] | None:
    """Return what matplotlib takes for error bars: nothing where none is known."""
    return None if None in errors else [error for error in errors if error is not None]


def image_grid(
    rows: Mapping[str, Any],
    *,
    signed: Sequence[str] = (),
    reach: float | None = None,
    titles: Sequence[str] = (),
    texts: Mapping[str, Sequence[str]] | None = None,
    size: float = 1.6,
    key: str = "",
) -> Figure:
    """Draw a row of images for each name.

    Args:
        rows: images (C, H, W) in [0, 1], as arrays or nested lists, as many in each row.
        signed: rows of numbers around 0, drawn from red to blue; channels are averaged.
        reach: largest absolute value of a signed image; by default each image has its own.
        titles: over each image of the first row.
        texts: below each image of a row.
        size: of an image, in inches.
        key: what signed images are; where it is given, a bar says what is red and blue.
    """
    count, letters = len(next(iter(rows.values()))), 8 if size > 1.2 else 6
    figure = Figure(figsize=(size * count, (size + (0.12 if texts else 0.0)) * len(rows)), layout="constrained")
    grid, drawn = figure.subplots(len(rows), count, squeeze=False), None
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for k, (axes, image) in enumerate(zip(line, np.asarray(images), strict=True)):
            if name in signed:
                shown = image.mean(0)
                limit = reach or float(np.abs(shown).max()) or 1.0
                drawn = axes.imshow(shown / limit, cmap="RdBu", vmin=-1.0, vmax=1.0, interpolation="nearest")
            else:
                shown = np.moveaxis(image, 0, -1)
                gray = shown.squeeze(-1) if shown.shape[-1] == 1 else shown
                axes.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if texts:
                axes.set_xlabel(texts[name][k], fontsize=letters, color=INK, labelpad=1.5)
        line[0].set_ylabel(name, color=INK)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=letters, color=INK)
    if key and drawn is not None:
        bar = figure.colorbar(drawn, ax=grid, shrink=0.5, ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["lowers\n" + key, "0", "raises\n" + key], fontsize=letters)
    return figure


def figure_file(figure: Figure, ending: str) -> bytes:
    """Return a figure as one of ``FIGURE_FORMATS``: on white, and without the time at which it was made."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "hauberk"}):
        figure.savefig(content, format=ending, dpi=200, facecolor="white", metadata=undated.get(ending))
    return content.getvalue()
