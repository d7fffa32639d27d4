"""Figures of studies and reports: one look, and files that are the same whenever they are drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#010203", "#b0b3b8"  # text and grid; a report's page puts its own colours in their place
# Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def new_figure(columns: int = 1, width: float = 6.0, height: float = 4.0, sharey: bool = False) -> "tuple[Figure, list[Axes]]":
    """Return a figure of some plots side by side, with these.

    Args:
        columns: number of plots.
        width: of the figure, in inches.
        height: of the figure, in inches.
        sharey: whether the plots have one y-axis.
    """
    from cycler import cycler
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    plots: list[Axes] = list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])
    for axes in plots:
        axes.set_prop_cycle(cycler(color=(*COLOURS, INK)))
        axes.tick_params(colors=INK)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    return figure, plots


def image_grid(
    rows: Mapping[str, Sequence[Any]],
    *,
    signed: Sequence[str] = (),
    reach: float | None = None,
    titles: Sequence[str] = (),
    size: float = 1.6,
) -> "Figure":
    """Draw a row of images for each name.

    Args:
        rows: images (C, H, W) in [0, 1], as arrays or nested lists.
        signed: rows of numbers around 0, drawn from red to blue; channels are averaged.
        reach: largest absolute value of a signed image; by default each image has its own.
        titles: over each image of the first row.
        size: of an image, in inches.
    """
    from matplotlib.figure import Figure

    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(size * count, size * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, np.asarray(images), strict=False):
            if name in signed:
                shown = image.mean(0)
                limit = reach or float(np.abs(shown).max()) or 1.0
                axes.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
            else:
                shown = np.moveaxis(image, 0, -1)
                axes.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
        for axes in line:
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, color=INK)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=8, color=INK)
    return figure


def figure_files(figure: "Figure", dpi: int = 150) -> dict[str, bytes]:
    """Return a figure as PNG, SVG and PDF, by ending: on white, and without the time at which it was made.

    Args:
        figure: of matplotlib.
        dpi: dots per inch of the PNG.
    """
    from matplotlib import rc_context

    undated: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    files = {}
    for ending, metadata in undated.items():
        content = io.BytesIO()
        with rc_context({"svg.hashsalt": "hauberk"}):
            figure.savefig(content, format=ending, dpi=dpi, facecolor="white", metadata=metadata)
        files[ending] = content.getvalue()
    return files
