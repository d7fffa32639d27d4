"""Verification: a claimed adversarial example counts only if the caller's untouched model, asked again, says so."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import ModelQueries
from hauberk.objectives.functional import ATTACK_LOSSES, fooled, logit_margin
from hauberk.threat import FeasibleSet

_SMALLEST_BATCH = 16


def verify_adversarial(
    queries: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, batch_size: int, has_reject_class: bool
) -> dict[str, np.ndarray]:
    """Check points (b, ...) with labels (b,) again, in batches of one fixed shape.

    Args:
        queries: the model, in its own precision.
        region: the sets that the points must be in.
        points: claimed adversarial examples.
        y: labels.
        batch_size: of each pass; the last is filled up.
        has_reject_class: the last output is a class of adversarial inputs.

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


def smaller_batch_sizes(forms: Iterable[nn.Module], x: Tensor, y: Tensor) -> list[int]:
    """Return eighths of the size of a batch at which all forms of a model compute the same bits as with all of it."""

    def bits(form: nn.Module, size: int) -> tuple[Tensor, Tensor]:
        logits, _, grad = ModelQueries(form).value_and_grad(x[:size], ATTACK_LOSSES["cw"], y[:size])
        return logits, grad

    sizes = [len(y) * k // 8 for k in range(7, 0, -1) if len(y) * k // 8 >= _SMALLEST_BATCH]
    for form in forms:
        whole = bits(form, len(y))
        sizes = [n for n in sizes if all(torch.equal(a, b[:n]) for a, b in zip(bits(form, n), whole, strict=True))]
    return sizes
