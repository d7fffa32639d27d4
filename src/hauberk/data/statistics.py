"""Looks at all examples of a data set: checks, labels, statistics."""

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.data.dataset import Arrays, Part, Source, in_memory
from hauberk.threat import ThreatModel
from hauberk.threat.checks import check_inputs

_AT_ONCE = 2**20  # numbers looked at together


def check_source(source: Source, threat: ThreatModel) -> None:
    """Check all examples of arrays (which may be mapped from a file), or the first ones of any other data set.

    Raises:
        UserError: as :func:`hauberk.checks.check_inputs`.
    """
    last = len(source) if in_memory(source) else min(len(source), 256)
    for index in _chunks(source, last):
        x, y = source.fetch(index)
        check_inputs(x, y, threat, source.classes)


def labels(source: Source) -> Tensor:
    """Return all labels, (N,) int64. Costs a pass over the data where they are not in memory."""
    if isinstance(source, Arrays):
        return source.y
    if isinstance(source, Part):
        return labels(source.whole)[source.index]
    return torch.cat([source.fetch(torch.tensor([i]))[1] for i in range(len(source))])


def long_tail(y: Tensor, ratio: float) -> Tensor:
    """Choose examples so that classes become ever rarer, exponentially (Cui et al. 2019).

    Class k of C keeps the share ``ratio^(-k / (C - 1))`` of its examples, its first ones, and one at least.

    Args:
        y: labels, (N,).
        ratio: of the shares that the first and the last class keep.

    Returns:
        Which examples, (M,) int64, in order.

    Raises:
        UserError: if the ratio is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"the ratio of the largest to the smallest class must be at least 1, got {ratio}")
    classes = int(y.max()) + 1
    kept = []
    for k in range(classes):
        those = (y == k).nonzero().squeeze(1)
        kept.append(those[: max(1, round(len(those) * ratio ** (-k / max(classes - 1, 1))))])
    return torch.cat(kept).sort().values


def channel_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel (first dimension of an example), for a normalisation layer."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for index in _chunks(source, len(source)):
        rows = source.fetch(index)[0].double().transpose(0, 1).flatten(1)
        count, total, squares = count + rows.shape[1], total + rows.sum(1), squares + rows.square().sum(1)
    mean = total / count
    std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-8).tolist())


def _chunks(source: Source, count: int) -> tuple[Tensor, ...]:
    """Indices of the first examples, in parts that are small however large an example is."""
    size = source.fetch(torch.arange(1))[0].numel()
    parts: tuple[Tensor, ...] = torch.arange(count).split(max(1, _AT_ONCE // max(size, 1)))
    return parts
