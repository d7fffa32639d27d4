"""Averages of a network's weights in training."""

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn


class _Average(nn.Module):
    """A network whose weights and statistics are averages of those that another has had; buffers of whole numbers are copied.

    Args:
        model: what to follow.

    Attributes:
        module: the average, a network like ``model``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = deepcopy(model)
        self._updates = 0

    def share(self, updates: int) -> float:
        """Return the share of the network's present weights in the average, after so many updates, 1 or more."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present weights and statistics of the network; the first time they are the average."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averaged = [pair for pair in pairs if self._updates and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self._updates and pair[0].is_floating_point())]
        if averaged:
            share = self.share(self._updates)
            torch._foreach_lerp_([ours for ours, _ in averaged], [theirs for _, theirs in averaged], share)
        if copied:
            torch._foreach_copy_([ours for ours, _ in copied], [theirs for _, theirs in copied])
        self._updates += 1

    def follow(self, model: nn.Module) -> None:
        """Be the network as it is, until the first update."""
        if not self._updates:
            self.update(model)
            self.restart()

    def restart(self) -> None:
        """Let the next update copy the network, as the first one does."""
        self._updates = 0

    def get_extra_state(self) -> int:
        """Return how many updates there were, for ``state_dict``."""
        return self._updates

    def set_extra_state(self, state: int) -> None:
        """Go on from a state."""
        self._updates = state


class ExponentialMovingAverage(_Average):
    """A network whose weights and statistics follow those of another: ``θ̄ ← d·θ̄ + (1 - d)·θ``, after the first step θ itself.

    As ``torch.optim.swa_utils.AveragedModel``, which waits for a GPU at each update. Buffers of whole numbers are copied.

    Args:
        model: what to follow.
        decay: d, in [0, 1).
        warmup: let d grow with the number n of updates before: ``min(decay, (1 + n) / (10 + n))``, as TensorFlow's
            ``ExponentialMovingAverage`` and the code of Rebuffi et al. (2021) do.

    Attributes:
        module: the average, a network like ``model``.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False):
        super().__init__(model)
        self.decay, self.warmup = decay, warmup

    def share(self, updates: int) -> float:
        """Return 1 - d after so many updates."""
        return 1 - (min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay)


class StochasticWeightAverage(_Average):
    """A network whose weights and statistics are the equal average of all that another had at an update (Izmailov et al. 2018).

    Statistics of BatchNorm are averaged like weights, where SWA's own code makes a pass over the training data: which inputs,
    clean or adversarial, that pass should see would be another choice.

    Args:
        model: what to follow.

    Attributes:
        module: the average, a network like ``model``.
    """

    def share(self, updates: int) -> float:
        """Return 1 / (n + 1)."""
        return 1 / (updates + 1)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
