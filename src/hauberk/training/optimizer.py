"""The optimizer, and what changes with the step: the learning rate, by schedule or by a scheduler passed in, and ε."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig

_RISE = 0.3  # part of a one-cycle schedule that goes up
_START, _END = 1 / 25, 1e-4  # of the peak, as in torch's OneCycleLR and its paper (Smith and Topin 2018)

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


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step by the schedule of the settings: a pure function, so nothing is saved or restored.

    Args:
        config: schedule, peak and milestones.
        step: 0-based, over the whole training.
        total: number of steps of the whole training.
    """
    done = step / total
    if config.schedule == "cosine":
        return config.lr * _half_cosine(1.0, 0.0, done)
    if config.schedule == "one-cycle":
        if done < _RISE:
            return config.lr * _half_cosine(_START, 1.0, done / _RISE)
        return config.lr * _half_cosine(1.0, _END, (done - _RISE) / (1 - _RISE))
    epoch = math.floor(done * config.epochs + 1e-9)
    return config.lr * 0.1 ** sum(epoch >= first for first in _drops(config))


def first_drop(config: TrainConfig) -> int:
    """0-based epoch of the first learning-rate drop; three quarters of the training where there is none."""
    if config.schedule == "steps" and config.milestones:
        drop = math.ceil(_drops(config)[0])
        if drop < config.epochs:
            return drop
    return int(0.75 * config.epochs)


def eps_scale(config: TrainConfig, step: int, total: int) -> float:
    """Factor of ε at a step: rises from near 0 to 1 during the warm-up, then 1."""
    if config.eps_warmup == 0:
        return 1.0
    return min(1.0, (step + 1) / (config.eps_warmup * total))


def _drops(config: TrainConfig) -> list[float]:
    """0-based epochs that start with a lower rate; the papers count epochs from 1 ("at the 75-th epoch")."""
    return [m * config.epochs if m < 1 else m - 1 for m in config.milestones]


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
