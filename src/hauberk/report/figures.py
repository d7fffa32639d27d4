"""Pictures of a report, drawn with matplotlib in colours that a page can turn light or dark, and examples of a run."""

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from hauberk.attacks import pgd
from hauberk.core.errors import UserError, is_import_path
from hauberk.data import fetch_for, load_data
from hauberk.experiments.figures import COLOURS, FAINT, INK  # the page shows ink and faint in its own colours
from hauberk.threat import threat_from_dict
from hauberk.training import load

_N_EXAMPLES = 8


def lines(x: Sequence[float], series: Mapping[str, Sequence[float]], **labels: Any) -> Picture:
    """Draw a line for each series over x; ``labels`` of this and the other charts are those of ``Axes.set``."""
    picture, axes = _axes()
    for k, (name, values) in enumerate(series.items()):
        axes.plot(x, values, color=COLOURS[k % len(COLOURS)], marker="o" if len(x) < 30 else "", markersize=4, label=name)
    return _finished(picture, axes, legend=len(series) > 1, **labels)


def band(x: Sequence[float], series: Mapping[str, Sequence[float]], **labels: Any) -> Picture:
    """Draw the second of three series over x as a line, and a band from the first to the third."""
    picture, axes = _axes()
    (first, low), (_, middle), (last, high) = series.items()
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label=f"{first} to {last}")
    axes.plot(x, middle, color=COLOURS[0], label="median")
    return _finished(picture, axes, legend=True, **labels)


def bars(
    values: Mapping[str, float], intervals: Sequence[tuple[float, float]] = (), points: bool = False, **labels: Any
) -> Picture:
    """Draw a horizontal bar, or a point, for each value, the first on top, perhaps with intervals (low, high)."""
    picture, axes = _axes(0.9 + 0.32 * len(values))
    names, lengths = list(values), list(values.values())
    if not points:
        axes.barh(names, lengths, color=COLOURS[0], alpha=0.85)
    if intervals:
        reach = np.nan_to_num(np.abs(np.transpose(intervals) - lengths))
        axes.errorbar(lengths, names, xerr=reach, fmt="o" if points else "none", color=COLOURS[0], ecolor=INK, capsize=3)
    axes.invert_yaxis()
    return _finished(picture, axes, **labels)


def histogram(values: Sequence[float], **labels: Any) -> Picture:
    """Draw a histogram, with a vertical line at 0."""
    picture, axes = _axes()
    axes.hist(values, bins=40, color=COLOURS[0], alpha=0.85)
    axes.axvline(0.0, color=INK, linestyle="--")
    return _finished(picture, axes, **labels)


def examples(folder: Path, card: dict[str, Any]) -> tuple[Picture, str]:
    """Draw examples of the run in ``folder``, first those that PGD-20 breaks: clean, adversarial, and the change between them.

    ``card`` is that of its best checkpoint. Returns the picture and its caption. Raises UserError if the inputs are no images,
    or the network or the data cannot be loaded.
    """
    shape = card["model"]["input_shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError("the inputs are no images")
    model, threat = load(folder), threat_from_dict(card["threat"])
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
    change = x_adv - x
    largest = float(change.abs().amax()) or 1.0
    signed = change.mean(1, keepdim=True) / largest
    rows = {"clean": x.clamp(0, 1), "adversarial": x_adv.clamp(0, 1), f"change, ± {largest:.2g}": signed}
    picture = Picture(figsize=(1.15 * len(shown) + 0.6, 1.25 * len(rows) + 0.3), layout="constrained")
    grid = picture.subplots(len(rows), len(shown), squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        colours, least = ("RdBu", -1) if images is signed else ("gray", 0)
        for axes, image in zip(line, images[shown].movedim(1, -1).squeeze(-1).cpu().numpy(), strict=True):
            axes.imshow(image, cmap=colours, vmin=least, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, color=INK)
    for axes, k in zip(grid[0], shown.tolist(), strict=True):
        axes.set_title(f"{y[k]}: {before[k]} → {after[k]}", fontsize=8, color=INK)
    above = "Above each: label, prediction without and with the attack"
    return picture, f"The first test examples that PGD-20 breaks under {threat}, then others. {above}"


def as_bytes(picture: Picture, ending: str, dpi: int = 200) -> bytes:
    """Return a picture as a file of matplotlib's format ``ending``."""
    file = io.BytesIO()
    picture.savefig(file, format=ending, dpi=dpi, facecolor="white")
    return file.getvalue()


def as_markup(picture: Picture, name: str) -> str:
    """Return a picture for the inside of a page, as SVG in its colours, or as PNG of pixels; ``name`` begins its ids."""
    if any(axes.images for axes in picture.axes):
        return f'<img alt="" src="data:image/png;base64,{b64encode(as_bytes(picture, "png", dpi=150)).decode()}">'
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        picture.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    ids = set(re.findall(r'id="([^"]+)"', svg))
    svg = re.sub(r'(id="|#)([\w.-]+)', lambda found: found[1] + f"{name}-" * (found[2] in ids) + found[2], svg)
    for drawn, shown in ((INK, "currentColor"), ("#000000", "currentColor"), ("#ffffff", "var(--bg)"), (FAINT, "var(--faint)")):
        svg = svg.replace(drawn, shown)
    return svg


def _axes(height: float = 3.0) -> tuple[Picture, Axes]:
    picture = Picture(figsize=(5.6, height), layout="constrained")
    return picture, picture.subplots()


def _finished(picture: Picture, axes: Axes, legend: bool = False, **labels: Any) -> Picture:
    axes.set(**labels)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if legend:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return picture
