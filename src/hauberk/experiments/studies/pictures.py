"""Pictures in rows, for studies that show inputs or gradients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_rows(rows: Mapping[str, Sequence[Any]], signed: Sequence[str] = ()) -> "Figure":
    """Draw a row of images for each name.

    Args:
        rows: images (C, H, W) as nested lists, as many for each name.
        signed: rows of numbers around 0, each image on its own scale; channels are averaged.
    """
    from matplotlib.figure import Figure

    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.6 * count, 1.6 * len(rows)), layout="constrained")
    for line, (name, some) in zip(figure.subplots(len(rows), count, squeeze=False), rows.items(), strict=True):
        for axes, image in zip(line, torch.tensor(some), strict=True):
            if name in signed:
                shown = image.mean(0)
                reach = float(shown.abs().max()) or 1.0
                axes.imshow(shown.numpy(), cmap="RdBu", vmin=-reach, vmax=reach)
            else:
                axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    return figure
