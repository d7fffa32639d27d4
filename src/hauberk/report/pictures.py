"""Clean inputs, adversarial inputs and the change between them, side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hauberk.core.errors import UserError
from hauberk.report import charts
from hauberk.report.blocks import Chart, Section, Text

_SHOWN = 8


def pictures(folder: Path, card: dict[str, Any]) -> Section:
    """Show some examples of a run on images: the first ones that PGD-20 breaks, then others.

    Args:
        folder: of the run.
        card: of its best checkpoint.
    """
    try:
        return Section("Examples", [_grid(folder, card)])
    except UserError as error:
        return Section("Examples", [Text(f"No pictures: {error}")])


def _grid(folder: Path, card: dict[str, Any]) -> Chart | Text:
    from hauberk.attacks import pgd
    from hauberk.core.imports import is_import_path
    from hauberk.data import fetch_for, load_data
    from hauberk.threat import threat_from_dict
    from hauberk.training import load

    shape = card["model"]["input_shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        return Text("The inputs are no images.")
    model, threat = load(folder), threat_from_dict(card["threat"])
    data = card["data"]
    if is_import_path(data["name"]):
        return Text(f"No pictures: a report imports nothing, and the data set is {data['name']}.")
    source = load_data(data["name"], "test", data["folder"] or "data", verify=False)
    x, y = fetch_for(model, source, torch.arange(min(200, len(source))))
    with torch.no_grad():
        before = model(x).argmax(1)
    seen = pgd(model, x, y, threat, steps=20, step_size="eps/4")
    with torch.no_grad():
        after = model(seen.x_adv).argmax(1)
    broken = (before == y) & (after != y)
    order = torch.cat([broken.nonzero(), (~broken).nonzero()]).squeeze(1)[:_SHOWN]
    clean, adversarial = (_images(some[order]) for some in (x, seen.x_adv))
    reach = float((seen.x_adv - x).abs().amax()) or 1.0
    rows = {
        "clean": clean,
        "adversarial": adversarial,
        f"change, ± {reach:.2g}": _signed((seen.x_adv - x)[order] / reach),
    }
    titles = [f"{y[k]}: {before[k]} → {after[k]}" for k in order.tolist()]
    caption = (
        f"The first test examples that PGD-20 breaks under {threat}, then others. Above each: label, prediction without and "
        "with the attack"
    )
    return Chart("examples", caption, charts.pictures(rows, titles))


def _images(x: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) to (N, H, W) or (N, H, W, 3)."""
    images: np.ndarray = x.clamp(0, 1).movedim(1, -1).squeeze(-1).cpu().numpy()
    return images


def _signed(change: torch.Tensor) -> np.ndarray:
    images: np.ndarray = change.movedim(1, -1).squeeze(-1).cpu().numpy()
    return images
