"""Pictures of a report, drawn with matplotlib; ink and grid are marked so that the page can colour them light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand for the page's own colours in the SVG; printed as such, dark on white, in files for papers.
INK, FAINT = "#010203", "#b0b3b8"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
Series = Mapping[str, Sequence[float]]


def lines(x: Sequence[float], series: Series, *, xlabel: str, ylabel: str, ylim: tuple[float, float] | None = None) -> "Figure":
    """Draw a line for each series over x."""
    figure, axes = _axes()
    for k, (name, values) in enumerate(series.items()):
        axes.plot(x, values, color=COLOURS[k % len(COLOURS)], marker="o" if len(x) < 30 else "", markersize=4, label=name)
    return _labelled(figure, axes, xlabel, ylabel, len(series) > 1, ylim)


def band(x: Sequence[float], low: Sequence[float], middle: Sequence[float], high: Sequence[float], **labels: Any) -> "Figure":
    """Draw a line with a band around it."""
    figure, axes = _axes()
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="10 % to 90 %")
    axes.plot(x, middle, color=COLOURS[0], label="median")
    return _labelled(figure, axes, labels["xlabel"], labels["ylabel"], True, labels.get("ylim"))


def bars(
    values: Mapping[str, float], *, xlabel: str, errors: Sequence[tuple[float, float]] = (), limit: float | None = None
) -> "Figure":
    """Draw horizontal bars, the first on top, perhaps with intervals (low, high)."""
    figure, axes = _axes(0.9 + 0.32 * len(values))
    names, shares = list(values), list(values.values())
    axes.barh(names, shares, color=COLOURS[0], alpha=0.85)
    if errors:
        reach = [[share - low for share, (low, _) in zip(shares, errors, strict=True)],
                 [high - share for share, (_, high) in zip(shares, errors, strict=True)]]  # fmt: skip
        axes.errorbar(shares, names, xerr=reach, fmt="none", ecolor=INK, capsize=3)
    axes.invert_yaxis()
    if limit is not None:
        axes.set_xlim(0, limit)
    return _labelled(figure, axes, xlabel, "", False, None)


def histogram(values: Sequence[float | None], *, xlabel: str, ylabel: str, mark: float | None = None) -> "Figure":
    """Draw a histogram of the numbers that are there, perhaps with a vertical line."""
    figure, axes = _axes()
    axes.hist([value for value in values if value is not None], bins=40, color=COLOURS[0], alpha=0.85)
    if mark is not None:
        axes.axvline(mark, color=INK, linestyle="--")
    return _labelled(figure, axes, xlabel, ylabel, False, None)


def intervals(values: Mapping[str, tuple[float, float]], *, xlabel: str) -> "Figure":
    """Draw points with deviations (mean, deviation), a row for each."""
    figure, axes = _axes(0.9 + 0.32 * len(values))
    means, errors = zip(*values.values(), strict=True)
    axes.errorbar(means, list(values), xerr=np.nan_to_num(errors), fmt="o", color=COLOURS[0], ecolor=INK, capsize=3)
    axes.invert_yaxis()
    return _labelled(figure, axes, xlabel, "", False, None)


def pictures(rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> "Figure":
    """Draw images (N, H, W) or (N, H, W, 3) in [0, 1], or signed ones in [-1, 1] under a name that begins with "change"."""
    from matplotlib.figure import Figure

    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.15 * count + 0.6, 1.25 * len(rows) + 0.3), layout="constrained")
    figure.patch.set_alpha(0)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        signed = name.startswith("change")
        for axes, image in zip(line, images, strict=False):
            shown = image.mean(-1) if signed and image.ndim == 3 else image
            axes.imshow(shown, cmap="RdBu" if signed else "gray", vmin=-1 if signed else 0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, color=INK)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=8, color=INK)
    return figure


def as_svg(figure: "Figure", name: str) -> str:
    """Return a picture as SVG for the inside of a page, in its colours; ``name`` keeps its ids apart from others'."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    for match in set(re.findall(r'id="([^"]+)"', svg)):
        svg = svg.replace(f'id="{match}"', f'id="{name}-{match}"').replace(f'#{match}"', f'#{name}-{match}"')
        svg = svg.replace(f"url(#{match})", f"url(#{name}-{match})")
    for drawn, shown in ((INK, "currentColor"), ("#000000", "currentColor"), ("#ffffff", "var(--bg)"), (FAINT, "var(--faint)")):
        svg = svg.replace(drawn, shown)
    return svg


def _axes(height: float = 3.0) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _labelled(
    figure: "Figure", axes: "Axes", xlabel: str, ylabel: str, legend: bool, ylim: tuple[float, float] | None
) -> "Figure":
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if ylim:
        axes.set_ylim(*ylim)
    if legend:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure
