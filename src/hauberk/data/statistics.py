"""What is looked at in all examples of a data set: whether they are valid, mean and deviation, how many each class has."""

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError
from hauberk.data.chunks import chunks
from hauberk.data.dataset import IndexedDataset, in_memory
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs, check_labels

_ITEMS_CHECKED = 256  # of a data set that is not in memory, whose every example costs a call


def check_dataset(dataset: IndexedDataset, threat: ThreatModel, classes: int | None = None) -> None:
    """Check all examples of arrays, or the first 256 of any other data set.

    Args:
        dataset: what to look at.
        threat: whose box the inputs must be in.
        classes: how many there are, where ``dataset`` does not know it.

    Raises:
        UserError: for NaN, inputs outside the box of the threat model (normalised by mistake), and labels out of range.
    """
    for x, y in chunks(dataset, len(dataset) if in_memory(dataset) else min(len(dataset), _ITEMS_CHECKED)):
        check_inputs(x, y, threat, classes if dataset.classes is None else dataset.classes)


def channel_statistics(dataset: IndexedDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel (first dimension of an example), for a normalisation layer."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for x, _ in chunks(dataset, len(dataset)):
        values = x.double().transpose(0, 1).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-8).tolist())


@checked
def long_tail(y: Tensor, ratio: float) -> Tensor:
    """Choose examples so that classes become ever rarer, exponentially (Cui et al. 2019).

    Class k of C keeps the fraction ``ratio^(-k / (C - 1))`` of its examples, its first ones, and one at least.

    Args:
        y: labels, (N,).
        ratio: how many times larger the fraction that the first class keeps is than that of the last one.

    Returns:
        Which examples, (M,) int64, in order.

    Raises:
        UserError: if the ratio is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"the ratio of the largest to the smallest class must be at least 1, got {ratio}")
    if y.ndim != 1 or not len(y) or y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(f"y must be labels, integers of shape (N,), got {shown(y)}")
    check_labels(y, None)
    kept, last = [], int(y.max())
    for k in range(last + 1):
        members = (y == k).nonzero().squeeze(1)
        kept.append(members[: max(1, round(len(members) * ratio ** (-k / max(last, 1))))])
    return torch.cat(kept).sort().values
