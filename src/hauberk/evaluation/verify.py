"""Verification: a claimed adversarial example counts only if the caller's untouched model, asked again, says so."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import ModelQueries
from hauberk.objectives.functional import ATTACK_LOSSES, fooled, logit_margin
from hauberk.threat import FeasibleSet

_SMALLEST_BATCH = 16


@dataclass(frozen=True)
class Verification:
    """What was found at some points, one row each, as NumPy arrays.

    Attributes:
        holds: (b,) bool, misclassified, and within ball and box.
        predicted: (b,) int64.
        margin: (b,) ``z_y - max_{k≠y} z_k``; 0 where the logits are not finite.
        finite: (b,) bool, whether the logits are finite. Where they are not, the example counts as misclassified.
        norm: (b,) length of the change in the norm of the threat model, in units of the input.
    """

    holds: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    finite: np.ndarray
    norm: np.ndarray


def verify_adversarial(
    queries: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, batch_size: int, has_reject_class: bool
) -> Verification:
    """Check points (b, ...) with labels (b,) again, in batches of one fixed shape.

    Args:
        queries: the model, in its own precision.
        region: the sets that the points must be in.
        points: claimed adversarial examples.
        y: labels.
        batch_size: of each pass; the last is filled up.
        has_reject_class: the last output is a class of adversarial inputs.
    """
    parts = []
    for part in points.split(batch_size):
        filled = torch.cat([part, part[:1].expand(batch_size - len(part), *part.shape[1:])])
        parts.append(queries.logits(filled)[: len(part)])
    logits = torch.cat(parts)
    change = (points - region.x).flatten(1).double()
    found = (
        fooled(logits, y, has_reject_class) & region.contains(points),
        logits.argmax(1),
        finite_margin(logits, y),
        logits.isfinite().all(1),
        region.norm.length(change),
    )
    return Verification(*(column.cpu().numpy() for column in found))


def finite_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin ``z_y - max_{k≠y} z_k``, and 0 where logits are not finite: there is none, and files hold finite numbers only.

    (B, C), (B,) -> (B,).
    """
    return torch.where(logits.isfinite().all(1), logit_margin(logits, y), 0.0)


def smaller_batch_sizes(forms: Iterable[nn.Module], x: Tensor, y: Tensor) -> list[int]:
    """Return eighths of a batch size at which all forms of a model compute the same bits as with the whole batch.

    Args:
        forms: of the model.
        x: inputs of the whole batch, (B, ...).
        y: labels, (B,).
    """

    def bits(form: nn.Module, size: int) -> tuple[Tensor, Tensor]:
        logits, _, grad = ModelQueries(form).value_and_grad(x[:size], ATTACK_LOSSES["cw"], y[:size])
        return logits, grad

    sizes = [len(y) * k // 8 for k in range(7, 0, -1) if len(y) * k // 8 >= _SMALLEST_BATCH]
    for form in forms:
        whole = bits(form, len(y))
        sizes = [n for n in sizes if all(torch.equal(a, b[:n]) for a, b in zip(bits(form, n), whole, strict=True))]
    return sizes
