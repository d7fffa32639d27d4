"""The judge: looks again, on the caller's untouched model in full precision, before anything counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.frozen_model import ModelQueries
from hauberk.objectives.functional import fooled, logit_margin
from hauberk.threat import FeasibleSet


@dataclass(frozen=True)
class Look:
    """What the judge saw at some points, one row each, on the host.

    Attributes:
        wrong: (b,) bool, misclassified.
        inside: (b,) bool, within ball and box.
        predicted: (b,) int64.
        margin: (b,) ``z_y - max_{k≠y} z_k``; 0 where the logits are not finite.
        finite: (b,) bool, whether the logits are finite. Where they are not, the example counts as misclassified.
        norm: (b,) length of the change in the norm of the threat model, in units of the input.
    """

    wrong: Tensor
    inside: Tensor
    predicted: Tensor
    margin: Tensor
    finite: Tensor
    norm: Tensor


def judge(passes: ModelQueries, region: FeasibleSet, points: Tensor, y: Tensor, chunk: int, evading: bool) -> Look:
    """Look at points (b, ...) with labels (b,) again, in batches of one fixed shape.

    Args:
        passes: the model, in its own precision.
        region: the sets that the points must be in.
        points: claimed adversarial examples.
        y: labels.
        chunk: size of the batches; the last is filled up.
        evading: whether the last output is a class of adversarial inputs.
    """
    parts = []
    for start in range(0, len(points), chunk):
        part = points[start : start + chunk]
        filled = torch.cat([part, part[:1].expand(chunk - len(part), *part.shape[1:])])
        parts.append(passes.logits(filled)[: len(part)])
    logits = torch.cat(parts)
    change = (points - region.x).flatten(1).double()
    return Look(
        wrong=fooled(logits, y, evading).cpu(),
        inside=region.contains(points).cpu(),
        predicted=logits.argmax(1).cpu(),
        margin=finite_margin(logits, y).cpu(),
        finite=logits.isfinite().all(1).cpu(),
        norm=region.norm.length(change).cpu(),
    )


def finite_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin ``z_y - max_{k≠y} z_k``, and 0 where logits are not finite: there is none, and files hold finite numbers only.

    (B, C), (B,) -> (B,).
    """
    return torch.where(logits.isfinite().all(1), logit_margin(logits, y), 0.0)
