"""Verification: a claimed adversarial example counts only if the caller's untouched model, asked again, says so."""

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.frozen_model import ModelQueries
from hauberk.objectives.functional import fooled, logit_margin
from hauberk.threat import FeasibleSet


def verify_adversarial(
    queries: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, batch_size: int, has_reject_class: bool
) -> dict[str, np.ndarray]:
    """Check claimed adversarial examples (b, ...) with labels (b,) again, in passes of one fixed shape, the last filled up.

    Returns:
        Arrays (b,): "holds", whether a point is misclassified, and within ball and box; and "predicted", "margin", "finite" and
        "norm", as in :class:`hauberk.evaluation.records.Records`.
    """
    parts = []
    for part in points.split(batch_size):
        filled = torch.cat([part, part[:1].expand(batch_size - len(part), *part.shape[1:])])
        parts.append(queries.logits(filled)[: len(part)])
    logits = torch.cat(parts)
    found = {
        "holds": fooled(logits, y, has_reject_class) & region.contains(points),
        "predicted": logits.argmax(1),
        "margin": finite_margin(logits, y),
        "finite": logits.isfinite().all(1),
        "norm": region.norm.length((points - region.x).flatten(1).double()),
    }
    return {name: column.cpu().numpy() for name, column in found.items()}


def finite_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin ``z_y - max_{k≠y} z_k``, and 0 where logits are not finite: (B, C), (B,) -> (B,)."""
    return torch.where(logits.isfinite().all(1), logit_margin(logits, y), 0.0)
