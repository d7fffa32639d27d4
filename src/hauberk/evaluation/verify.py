"""Verification: a claimed adversarial example counts only if the caller's untouched model, asked again, says so."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.model.queries import ModelQueries
from hauberk.objectives.functional import AttackLoss, logit_margin
from hauberk.threat import FeasibleSet


def verify_adversarial(
    queries: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, batch_size: int, goal: AttackLoss
) -> dict[str, Tensor]:
    """Check claimed adversarial examples (b, ...) with labels (b,) again, in passes of one fixed shape, the last filled up.

    Returns:
        Columns (b,) on the device: "holds", whether a point is a mistake, and within ball and box; and "predicted",
        "margin", "finite" and "norm", as in :class:`hauberk.evaluation.records.Records`.
    """
    parts = []
    for part in points.split(batch_size):
        filled = torch.cat([part, part[:1].expand(batch_size - len(part), *part.shape[1:])])
        parts.append(queries.logits(filled)[: len(part)])
    logits = torch.cat(parts)
    return {
        "holds": goal.criterion(logits, y) & region.contains(points),
        "predicted": predicted_class(logits, goal),
        "margin": finite_margin(logits, y, goal),
        "finite": finite_rows(logits),
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


def predicted_class(logits: Tensor, goal: AttackLoss) -> Tensor:
    """The class of the largest logit, or -1 where outputs are not of classes: (B, ...) -> (B,)."""
    return logits.argmax(1) if goal.of_classes else torch.full((len(logits),), -1, device=logits.device)


def margin(logits: Tensor, y: Tensor, goal: AttackLoss) -> Tensor:
    """What is left until a mistake: ``z_y - max_{k≠y} z_k``; minus the loss of a task that has its own. (B, ...) -> (B,)."""
    return -goal(logits, y) if goal.is_own else logit_margin(logits, y)


def finite_margin(logits: Tensor, y: Tensor, goal: AttackLoss) -> Tensor:
    """The margin, and 0 where outputs are not finite: (B, ...), (B, ...) -> (B,)."""
    return torch.where(finite_rows(logits), margin(logits, y, goal), 0.0)


def finite_rows(logits: Tensor) -> Tensor:
    """Which outputs are finite: (B, ...) -> (B,) bool."""
    return logits.isfinite().reshape(len(logits), -1).all(1)
