"""Figures of studies and reports: one look, and files that are the same whenever they are drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#010203", "#b0b3b8"  # text and grid; a report's page puts its own colours in their place
# Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FIGURE_FORMATS = ("png", "svg", "pdf")
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


def new_figure(columns: int = 1, width: float = 6.0, height: float = 3.4, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of some plots side by side, with these; sizes in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])


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
    for name, values in series.items():
        bars = error_bars(errors[name]) if errors else None
        axes.errorbar(x, values, bars, marker="o" if len(x) < 30 else "", markersize=4, capsize=2, label=name)
    if len(series) > 1:
        axes.legend(frameon=False)
    axes.set(**labels)


def error_bars(errors: Sequence[float | None]) -> list[float] | None:
    """Return what matplotlib takes for error bars: nothing where none is known."""
    return None if None in errors else [error for error in errors if error is not None]


def image_grid(
    rows: Mapping[str, Any],
    *,
    signed: Sequence[str] = (),
    reach: float | None = None,
    titles: Sequence[str] = (),
    size: float = 1.6,
) -> Figure:
    """Draw a row of images for each name.

    Args:
        rows: images (C, H, W) in [0, 1], as arrays or nested lists, as many in each row.
        signed: rows of numbers around 0, drawn from red to blue; channels are averaged.
        reach: largest absolute value of a signed image; by default each image has its own.
        titles: over each image of the first row.
        size: of an image, in inches.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(size * count, size * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, np.asarray(images), strict=True):
            if name in signed:
                shown = image.mean(0)
                limit = reach or float(np.abs(shown).max()) or 1.0
                axes.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
            else:
                shown = np.moveaxis(image, 0, -1)
                axes.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, color=INK)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=8, color=INK)
    return figure


def figure_file(figure: Figure, ending: str) -> bytes:
    """Return a figure as one of ``FIGURE_FORMATS``: on white, and without the time at which it was made."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "hauberk"}):
        figure.savefig(content, format=ending, dpi=200, facecolor="white", metadata=undated.get(ending))
    return content.getvalue()
