"""What a training step sees of a batch: this process's part of it, fetched, augmented and mixed."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.attacks.model.frozen_model import kept_buffers
from hauberk.core.device import send
from hauberk.core.distributed import World
from hauberk.core.random import ExampleRng
from hauberk.data import augment, fetch_for, to_device
from hauberk.data.extra import target_probabilities
from hauberk.training.dom_da import augment_again
from hauberk.training.plan import Plan

_AGAIN = -3  # stage of the draws of the first try to augment again; those of the others count down from there


@dataclass(frozen=True, eq=False)
class Batch:
    """This process's part of a batch.

    Attributes:
        x: inputs, (b, ...).
        y: labels, (b,); of a mixed example that of the larger share.
        index: which examples these are, (b,), on the CPU.
        rng: random draws of the step, keyed by example.
        targets: probabilities of the classes, (b, C), where some examples have them in place of labels.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    rng: ExampleRng
    targets: Tensor | None


class BatchLoader:
    """Makes batches for the steps of a training.

    Args:
        plan: of the training.
        device: where to train.
        world: the processes that share each batch.
    """

    def __init__(self, plan: Plan, device: torch.device, world: World):
        self.plan, self.device, self.world = plan, device, world
        self._examples = to_device(plan.examples, device)

    def load(self, model: nn.Module, batch: Tensor, step: int) -> Batch:
        """Make this process's part of a batch.

        Each example is mixed with the one before it in the whole batch, both augmented by their own draws, so that the result
        does not depend on the number of processes. Those draws are the batch's: free training replays the same inputs
        (Shafahi et al. 2019, Algorithm 1), and only the draws of the step differ.

        Args:
            model: what the inputs are for, in training mode.
            batch: indices of the whole batch, (B,).
            step: of the whole training, from 0.
        """
        number, mixing = step // self.plan.method.n_replays, self.plan.mixing
        found = self._augmented(model, self.world.local_shard(batch), number)
        rng = found.rng if number == step else self._draws(found.index, step)  # the same draws are sent once
        if mixing is None:
            return replace(found, x=self._again(model, found, number) if self._is_late(step) else found.x, rng=rng)
        other = self._augmented(model, self.world.local_shard(batch.roll(1)), number)
        x, share = mixing(found.x, other.x, found.rng)
        assert found.targets is not None
        assert other.targets is not None
        targets = torch.lerp(other.targets, found.targets, share[:, None])
        return replace(found, x=x, y=torch.where(share >= 0.5, found.y, other.y), rng=rng, targets=targets)

    def _is_late(self, step: int) -> bool:
        """Whether what is learned by heart is augmented again: in the second half, as DOM's code counts."""
        return self.plan.again is not None and 2 * (step + 1) >= self.plan.total_steps

    def _again(self, model: nn.Module, found: Batch, number: int) -> Tensor:
        """Augment again what is learned by heart; the statistics of the model stay as they are."""
        plan, config = self.plan, self.plan.config
        augmentation = plan.again
        assert augmentation is not None

        def losses(x: Tensor) -> Tensor:
            return F.cross_entropy(model(x).float(), found.y, reduction="none")

        def again(x: Tensor, k: int) -> Tensor:
            return augment(x, augmentation, self._draws(found.index, _AGAIN - number * config.again_tries - k))

        with kept_buffers(model):
            return augment_again(found.x, losses, again, config.again_threshold, config.again_tries, config.again_share)

    def _draws(self, index: Tensor, stage: int) -> ExampleRng:
        return ExampleRng(self.plan.config.seed, send(index, self.device), stage)

    def _augmented(self, model: nn.Module, index: Tensor, number: int) -> Batch:
        """Make the examples ``index`` of the batch ``number`` of the whole training, replays not counted, before mixing."""
        plan = self.plan
        x, y = fetch_for(model, self._examples, index)
        rng = self._draws(index, number)
        if plan.augmentation is not None:
            x = augment(x, plan.augmentation, rng)
        targets = None
        if plan.soft_labels:
            targets = target_probabilities(self._examples, index, y, plan.spec.classes, x.dtype)
        return Batch(x, y, index, rng, targets)
