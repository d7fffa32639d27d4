"""Verification: a claimed adversarial example counts only if the caller's untouched model, asked again, says so."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.frozen_model import ModelQueries
from hauberk.objectives.functional import fooled, logit_margin
from hauberk.threat import FeasibleSet


def verify_adversarial(
    queries: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, batch_size: int, has_reject_class: bool
) -> dict[str, Tensor]:
    """Check claimed adversarial examples (b, ...) with labels (b,) again, in passes of one fixed shape, the last filled up.

    Returns:
        Columns (b,) on the device: "holds", whether a point is misclassified, and within ball and box; and "predicted",
        "margin", "finite" and "norm", as in :class:`hauberk.evaluation.records.Records`.
    """
    parts = []
    for part in points.split(batch_size):
        filled = torch.cat([part, part[:1].expand(batch_size - len(part), *part.shape[1:])])
        parts.append(queries.logits(filled)[: len(part)])
    logits = torch.cat(parts)
    return {
        "holds": fooled(logits, y, has_reject_class) & region.contains(points),
        "predicted": logits.argmax(1),
        "margin": finite_margin(logits, y),
        "finite": logits.isfinite().all(1),
        "norm": region.norm.length((points - region.x).flatten(1).double()),
    }


def read_columns(columns: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy columns (b,) from a device, all at once, because each read would wait for it; floats become float64."""
    rows = [value.double().view(torch.int64) if value.is_floating_point() else value.long() for value in columns.values()]
    read = dict(zip(columns, torch.stack(rows).cpu().numpy(), strict=True))
    for name, value in columns.items():
        if value.dtype == torch.bool:
            read[name] = read[name] != 0
        elif value.is_floating_point():
            read[name] = read[name].view(np.float64)
    return read


def finite_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin ``z_y - max_{k≠y} z_k``, and 0 where logits are not finite: (B, C), (B,) -> (B,)."""
    return torch.where(logits.isfinite().all(1), logit_margin(logits, y), 0.0)
