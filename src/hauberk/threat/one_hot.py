"""One-hot groups: features of which exactly one is 1, as the values of a category, and how attacks move among them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OneHotGroups:
    """The one-hot groups of the features of an example.

    In the box of a group, [0, 1] for each value, several values can be 1 at once, and which of them counts is then decided by
    their order and by nothing that an attack sees. So points are moved to one value of a group.

    Attributes:
        index: number of each feature's group, from 1; 0 for a feature of none; flattened, (D,) int64.
        count: number of groups.
    """

    index: Tensor
    count: int

    @property
    def inside(self) -> Tensor:
        """Which features are in a group, (D,) bool."""
        return self.index > 0

    def largest(self, values: Tensor) -> Tensor:
        """Say which features have the largest of the values in their group, (B, ...) -> (B, D) bool; all of those alike."""
        flat = values.flatten(1)
        return flat == self._reduce(flat, "amax")

    def steepest(self, grad: Tensor) -> Tensor:
        """Return the direction of steepest ascent from one value of each group to another.

        A gradient is known up to a constant in each group, because the sum over a group is always 1: the sign of a partial
        derivative means nothing there. The value with the largest one rises, all others fall; where they are all alike, none.

        Args:
            grad: gradient of what is to be maximised, (B, ...).

        Returns:
            (B, ...): 1 for the best value of each group, -1 for the others; the sign of the gradient for all other features.
        """
        flat = grad.flatten(1)
        highest, lowest = self._reduce(flat, "amax"), self._reduce(flat, "amin")
        towards = torch.where(flat == highest, 1.0, -1.0).to(grad.dtype) * (highest > lowest)
        return torch.where(self.inside, towards, flat.sign()).view_as(grad)

    def redrawn(self, point: Tensor, before: Tensor, draws: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Put another value, drawn at random, in each group that a proposal changes.

        Args:
            point: the proposal, (B, ...).
            before: what it changes, (B, ...).
            draws: uniform, of which the largest of a group wins, (B, ...).
            lower: of what the features can be, (B, ...).
            upper: likewise.

        Returns:
            The proposal, (B, ...).
        """
        changed = self._reduce((point != before).flatten(1).to(draws.dtype), "amax") > 0
        value = torch.where(self.largest(draws).view_as(point), upper, lower)
        return torch.where((changed & self.inside).view_as(point), value, point)

    def _reduce(self, flat: Tensor, how: str) -> Tensor:
        """The largest or smallest of values (B, D) in the group of each feature, (B, D)."""
        index = self.index.to(flat.device).expand_as(flat)
        start = -torch.inf if how == "amax" else torch.inf
        found = flat.new_full((len(flat), self.count + 1), start).scatter_reduce(1, index, flat, how)
        return found.gather(1, index)
