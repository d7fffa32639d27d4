"""Pictures of a report, in colours that a page can turn light or dark, and examples of a run."""

import io
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator

from hauberk.attacks import pgd
from hauberk.core.errors import UserError
from hauberk.core.figures import COLOURS, FAINT, INK, figure_file, image_grid, new_figure, plot_lines
from hauberk.core.imports import is_import_path
from hauberk.data import fetch_for, load_data
from hauberk.threat import read_threat, threats_of
from hauberk.training import load

_N_EXAMPLES = 8
_DASHES = ("-", "--", "-.", ":")


def lines(x: Sequence[float], series: Mapping[str, Sequence[float]], **labels: Any) -> Picture:
    """Draw a line for each series over x; ``labels`` of this and the other charts are those of ``Axes.set``."""
    picture, (axes,) = new_figure()
    plot_lines(axes, x, series, **labels)
    for k, drawn in enumerate(axes.containers):  # lines differ in grey, too
        drawn[0].set_linestyle(_DASHES[k % len(_DASHES)])
    if len(series) > 1:
        axes.legend(frameon=False)
    return picture


def against_eps(factors: Sequence[float], percents: Sequence[float]) -> Picture:
    """Draw robust accuracy in percent against multiples of ε, each twice as far as the one before, with ε itself marked."""
    picture = lines(factors, {"robust": percents}, xlabel="times ε", ylabel="robust, %", ylim=(0, 105), xscale="log")
    (axes,) = picture.axes
    ticks = [factor for factor in factors if math.log2(factor).is_integer()]
    ticks = ticks if factors[-1] < 2 * (ticks or [1])[-1] else [*ticks, factors[-1]]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1.0, color=INK, linestyle=":")
    return picture


def band(x: Sequence[float], series: Mapping[str, Sequence[float]], **labels: Any) -> Picture:
    """Draw the second of three series over x as a line, and a band from the first to the third."""
    picture, (axes,) = new_figure()
    (first, low), (_, middle), (last, high) = series.items()
    axes.fill_between(x, low, high, alpha=0.25, linewidth=0, label=f"{first} to {last}")
    axes.plot(x, middle, label="median")
    axes.legend(frameon=False)
    axes.set(**labels)
    return picture


def bars(
    values: Mapping[str, float], intervals: Sequence[tuple[float, float]] = (), points: bool = False, **labels: Any
) -> Picture:
    """Draw a horizontal bar, or a point, for each value, the first on top, perhaps with intervals (low, high)."""
    picture, (axes,) = new_figure(height=0.9 + 0.32 * len(values))
    names, lengths = list(values), list(values.values())
    if not points:
        axes.barh(names, lengths, alpha=0.85)
    if intervals:
        reach = np.nan_to_num(np.abs(np.transpose(intervals) - lengths))
        axes.errorbar(lengths, names, xerr=reach, fmt="o" if points else "none", color=COLOURS[0], ecolor=INK, capsize=3)
    axes.invert_yaxis()
    axes.set(**labels)
    return picture


def add_references(picture: Picture, values: Mapping[str, float]) -> None:
    """Draw thin lines across a chart at percentages, told apart by their dashes, and name them above; at most four."""
    (axes,) = picture.axes
    drawn = [
        axes.axvline(value, color=INK, linewidth=0.9, linestyle=dashes, label=f"{name}: {value:.2f} %")
        for (name, value), dashes in zip(values.items(), _DASHES, strict=False)
    ]
    width, height = picture.get_size_inches()
    picture.set_size_inches(width, height + 0.25 * math.ceil(len(drawn) / 2))
    picture.legend(handles=drawn, loc="outside upper center", ncols=2, frameon=False, fontsize="small")


def histograms(series: Mapping[str, Sequence[float]], **labels: Any) -> Picture:
    """Draw histograms on the same axes, the first filled and the others as outlines, with a vertical line at 0."""
    picture, (axes,) = new_figure()
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values, float) for values in series.values()]), bins=40)
    width = float(edges[1] - edges[0])
    edges = width * np.arange(math.floor(edges[0] / width), math.ceil(edges[-1] / width) + 1)  # with one at 0
    for k, (name, values) in enumerate(series.items()):
        look: dict[str, Any] = {"histtype": "step", "color": COLOURS[k % len(COLOURS)], "linewidth": 2} if k else {"alpha": 0.4}
        axes.hist(values, bins=list(edges), label=f"{name} (n = {len(values)})", **look)
    axes.axvline(0.0, color=INK, linestyle="--")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above, where it hides nothing
    axes.set(**labels)
    return picture


def examples(folder: Path, card: dict[str, Any]) -> tuple[Picture, str]:
    """Draw examples of the run in ``folder``, first those that PGD-20 breaks: clean, adversarial, and the change between them.

    ``card`` is that of its best checkpoint. Returns the picture and its caption. Raises UserError if the inputs are no images,
    or the network or the data cannot be loaded.
    """
    shape = card["model"]["input_shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError("the inputs are no images")
    model, threat = load(folder), threats_of(read_threat(card["threat"]))[0]
    data = card["data"]
    if is_import_path(data["name"]):
        raise UserError(f"a report imports nothing, and the data set is {data['name']}")
    source = load_data(data["name"], "test", data["folder"] or "data", verify=False)
    x, y = fetch_for(model, source, torch.arange(min(200, len(source))))
    x_adv = pgd(model, x, y, threat, steps=20, step_size="eps/4").x_adv
    with torch.no_grad():
        before, after = model(x).argmax(1), model(x_adv).argmax(1)
    broken = (before == y) & (after != y)
    shown = torch.cat([broken.nonzero(), (~broken).nonzero()]).squeeze(1)[:_N_EXAMPLES]
    change = (x_adv - x).cpu()
    largest = float(change.abs().amax()) or 1.0
    signed = f"change, ± {largest:.2g}"
    rows = {"clean": x.clamp(0, 1).cpu(), "adversarial": x_adv.clamp(0, 1).cpu(), signed: change}
    picture = image_grid(
        {name: images[shown.cpu()] for name, images in rows.items()},
        signed=[signed],
        reach=largest,
        titles=[f"{y[k]}: {before[k]} → {after[k]}" for k in shown.tolist()],
        size=1.25,
    )
    above = "Above each: label, prediction without and with the attack"
    return picture, f"The first test examples that PGD-20 breaks under {threat}, then others. {above}"


def as_markup(picture: Picture, name: str) -> str:
    """Return a picture for the inside of a page, as SVG in its colours, or as PNG of pixels; ``name`` begins its ids."""
    if any(axes.images for axes in picture.axes):
        return f'<img alt="" src="data:image/png;base64,{b64encode(figure_file(picture, "png")).decode()}">'
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        picture.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    ids = set(re.findall(r'id="([^"]+)"', svg))
    svg = re.sub(r'(id="|#)([\w.-]+)', lambda found: found[1] + f"{name}-" * (found[2] in ids) + found[2], svg)
    for drawn, shown in ((INK, "currentColor"), ("#000000", "currentColor"), ("#ffffff", "var(--bg)"), (FAINT, "var(--faint)")):
        svg = svg.replace(drawn, shown)
    return svg
