"""The nearest valid row: integers are whole, and of each category exactly one value is set."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        self.integers = list(integers)
        self.groups = [list(group) for group in groups]
        self.rounds_on_purpose = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if not self.rounds_on_purpose:
            return x
        with torch.no_grad():
            row = x.detach().clone()
            row[:, self.integers] = row[:, self.integers].round()
            for group in self.groups:
                row[:, group] = F.one_hot(row[:, group].argmax(1), len(group)).to(row.dtype)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return row
        through: Any = _Through.apply
        found: Tensor = through(x, row)
        return found


class _Through(torch.autograd.Function):
    """The value of one tensor with the gradient to another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor) -> Tensor:
        return row.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
