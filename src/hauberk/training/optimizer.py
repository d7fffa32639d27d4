"""The optimizer of a training and its learning rate: SGD by the settings, or an optimizer and a scheduler passed in."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig, learning_rate

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
MakeScheduler: TypeAlias = Callable[[Optimizer], LRScheduler]

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # in the parameter groups of an optimizer with a scheduler


class Optimization:
    """Steps the optimizer, and its learning rate as settings or scheduler want it.

    Args:
        parameters: of the model.
        config: SGD and schedule, where nothing is passed in; when the scheduler is stepped.
        total_steps: of the whole training.
        make_optimizer: makes the optimizer of the parameters, or None.
        make_scheduler: makes the scheduler of the optimizer, or None.

    Attributes:
        optimizer, scheduler: torch's; the scheduler is None where the settings, or nothing, change the rate.
        lr: the rate of the last step, of the first group of parameters.
        n_rollbacks: how often the training went back to its best weights; each halves the rate.

    Raises:
        UserError: if what is passed in makes something else.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        total_steps: int,
        make_optimizer: MakeOptimizer | None = None,
        make_scheduler: MakeScheduler | None = None,
    ):
        made: Any = (make_optimizer or partial(_sgd, config))(parameters)
        if not isinstance(made, Optimizer):
            raise UserError(f"optimizer must return a torch.optim.Optimizer, not {type(made).__name__}")
        self.optimizer: Optimizer = made
        made = None if make_scheduler is None else make_scheduler(made)
        if make_scheduler is not None and (not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau)):
            wanted = "a torch.optim.lr_scheduler.LRScheduler (one that needs a metric is stepped by a callback)"
            raise UserError(f"scheduler must return {wanted}, not {type(made).__name__}")
        self.scheduler: LRScheduler | None = made
        self.lr: Any = 0.0
        self.n_rollbacks = 0
        self._config, self._total_steps = config, total_steps
        self._by_config = make_optimizer is None and make_scheduler is None
        self._epoch_start: dict[str, Any] = {}

    def begin_epoch(self) -> None:
        """Remember rates and scheduler, for an epoch that has to begin again."""
        groups, scheduler = self.optimizer.state_dict()["param_groups"], self.scheduler and self.scheduler.state_dict()
        self._epoch_start = deepcopy({"groups": groups, "scheduler": scheduler})

    def begin_step(self, step: int) -> None:
        """Set the rate of a step, counted from 0 over the whole training, and drop the old gradients."""
        if self._by_config:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self._config, step, self._total_steps) * 0.5**self.n_rollbacks
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the weights."""
        self.optimizer.step()
        if self.scheduler is not None and self._config.scheduler_interval == "step":
            self.scheduler.step()

    def end_epoch(self) -> None:
        """Step a scheduler that is stepped after each epoch."""
        if self.scheduler is not None and self._config.scheduler_interval == "epoch":
            self.scheduler.step()

    def restart_epoch(self) -> None:
        """Forget momentum and the like, and go back to the beginning of the epoch with half the learning rate."""
        start = deepcopy(self._epoch_start)
        self.optimizer.load_state_dict({"state": {}, "param_groups": start["groups"]})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(start["scheduler"])
        self.n_rollbacks += 1
        if self._by_config:
            return
        for group in self.optimizer.param_groups:
            group.update({name: group[name] * 0.5 for name in _RATES if name in group})
        for one in (self.scheduler, *getattr(self.scheduler, "_schedulers", ())):  # those that run one after another
            if hasattr(one, "base_lrs"):
                one.base_lrs = [lr * 0.5 for lr in one.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "epoch_start": self._epoch_start,
            "n_rollbacks": self.n_rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._epoch_start, self.n_rollbacks = dict(state["epoch_start"]), int(state["n_rollbacks"])


def _sgd(config: TrainConfig, parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
