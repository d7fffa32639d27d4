"""Layers that go before a network: normalisation, and the nearest valid row of a table."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """Input normalisation as a layer, so that attacks and bounds live in the units of the data.

    Args:
        mean: one number per channel (first dimension of an example), or one number for all.
        std: likewise, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape)


class StraightThroughRound(nn.Module):
    """Take every input for the nearest valid row of a table, with the gradient of the identity.

    As the first layer of a network it makes attacks, which move in steps of any size, attack valid rows only: what the network
    says of a point is what it says of the row. (Straight-through gradients: Bengio et al. 2013.)

    Args:
        integers: columns that take whole values.
        groups: columns of each category; of a group the largest is 1, the others 0.

    Attributes:
        rounds_on_purpose: True; while it is False, points pass as they are. Any module may have such an attribute: the
            evaluation then asks the network behind it, and not its rounding, whether gradients tell the truth.
    """

    rounds_on_purpose: bool

    def __init__(self, integers: Sequence[int] = (), groups: Sequence[Sequence[int]] = ()):
        super().__init__()
        self.integers, self.groups = list(integers), [list(group) for group in groups]
        self.rounds_on_purpose = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if not self.rounds_on_purpose:
            return x
        row: Tensor = _NearestRow.apply(x, self.integers, self.groups)  # type: ignore[no-untyped-call]
        return row


class _NearestRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: list[int], groups: list[list[int]]) -> Tensor:
        row = x.clone()
        row[:, integers] = row[:, integers].round()
        for group in groups:
            row[:, group] = F.one_hot(row[:, group].argmax(1), len(group)).to(row.dtype)
        return row

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None
