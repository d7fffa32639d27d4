"""The moving average of a network's weights in training."""

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """A network whose weights and statistics follow those of another: ``θ̄ ← d·θ̄ + (1 - d)·θ``, after the first step θ itself.

    As ``torch.optim.swa_utils.AveragedModel``, which waits for a GPU at each update. Buffers of whole numbers are copied.

    Args:
        model: what to follow.
        decay: d, in [0, 1).

    Attributes:
        module: the average, a network like ``model``.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = deepcopy(model), decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present weights and statistics of the network."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averaged = [pair for pair in pairs if self._updates and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self._updates and pair[0].is_floating_point())]
        if averaged:
            torch._foreach_lerp_([ours for ours, _ in averaged], [theirs for _, theirs in averaged], 1 - self.decay)
        if copied:
            torch._foreach_copy_([ours for ours, _ in copied], [theirs for _, theirs in copied])
        self._updates += 1

    def restart(self) -> None:
        """Let the next update copy the network, as the first one does."""
        self._updates = 0

    def get_extra_state(self) -> int:
        """Return how many updates there were, for ``state_dict``."""
        return self._updates

    def set_extra_state(self, state: int) -> None:
        """Go on from a state."""
        self._updates = state


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
