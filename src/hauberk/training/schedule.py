"""The optimizer and its learning-rate schedule, and the warm-up of ε."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]
MakeScheduler: TypeAlias = Callable[[Optimizer], LRScheduler]

_RISE = {"one-cycle": 0.3, "triangular": 0.5}  # usual part that goes up: torch's OneCycleLR, fast_adversarial's CyclicLR
_START, _END = 1 / 25, 1e-4  # of the peak, as in torch's OneCycleLR and its paper (Smith and Topin 2018)
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # in the parameter groups of an optimizer with a scheduler


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate as a part of the peak rate ``config.lr``, at a step (0-based) of so many in the training."""
    warmup = config.warmup_epochs / config.epochs * total
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.schedule == "steps":
        epoch = math.floor(step / total * config.epochs + 1e-9)
        return math.prod(rate for rate, drop in zip(config.decay_rates, _drops(config), strict=True) if epoch >= drop)
    done = (step - warmup) / (total - warmup)
    if config.schedule == "cosine":
        return _half_cosine(1.0, 0.0, done)
    if config.schedule == "linear":
        return 1.0 - done
    rise = _RISE[config.schedule] if config.pct_start < 0 else config.pct_start
    if config.schedule == "triangular":
        return done / rise if done < rise else (1.0 - done) / (1.0 - rise)
    if done < rise:
        return _half_cosine(_START, 1.0, done / rise)
    return _half_cosine(1.0, _END, (done - rise) / (1 - rise))


def first_drop(config: TrainConfig) -> int:
    """Return the 0-based epoch of the first learning-rate drop; three quarters of the training where there is none."""
    drop = math.ceil(_drops(config)[0]) if config.schedule == "steps" and config.milestones else config.epochs
    return drop if drop < config.epochs else int(0.75 * config.epochs)


def _drops(config: TrainConfig) -> list[float]:
    """Return the 0-based epochs that start with a lower rate; the papers count from 1 ("at the 75-th epoch")."""
    return [m * config.epochs if m < 1 else m - 1 for m in config.milestones]


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def swa_epoch(config: TrainConfig) -> int:
    """Return the 0-based epoch whose end is the first that the equal average of the weights takes in."""
    start = config.swa_start
    return math.ceil(start * config.epochs if start < 1 else start - 1)


def eps_scale(warmup: float, step: int, total: int) -> float:
    """Return the factor of ε at a step (0-based) of so many: rises to 1 during the part ``warmup`` of the training, then 1."""
    return min(1.0, (step + 1) / (warmup * total)) if warmup else 1.0


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    total: int,
    own_optimizer: MakeOptimizer | None = None,
    own_scheduler: MakeScheduler | None = None,
) -> tuple[Optimizer, LRScheduler | None, str]:
    """Make the optimizer and its learning-rate scheduler: those of the settings, or what was passed in.

    Args:
        model: to train.
        config: settings of the training.
        total: number of steps in the training.
        own_optimizer: what was passed in to make the optimizer, or None.
        own_scheduler: what was passed in to make the scheduler, or None.

    Returns:
        Both, no scheduler for an optimizer that was passed in without one; and after what to step it, "epoch" or "step".

    Raises:
        UserError: if what was passed in makes something else.
    """
    optimizer: Any
    if own_optimizer is not None:
        optimizer = own_optimizer(list(model.parameters()))
    elif config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(_groups(model, config), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    else:
        how: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": config.weight_decay}
        optimizer = torch.optim.SGD(_groups(model, config), lr=config.lr, fused=True, **how)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer must return a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if own_scheduler is not None:
        scheduler: Any = own_scheduler(optimizer)
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            wanted = "a torch.optim.lr_scheduler.LRScheduler (one that needs a metric is stepped by a callback)"
            raise UserError(f"scheduler must return {wanted}, not {type(scheduler).__name__}")
        return optimizer, scheduler, config.scheduler_interval
    if own_optimizer is not None:
        return optimizer, None, ""
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(config, step, total)), "step"


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters with weight decay, and those without, if some are to be left out: biases and vectors."""
    if not config.filter_bias_and_bn:
        return [{"params": list(model.parameters())}]
    named = dict(model.named_parameters())
    without = {name for name, parameter in named.items() if parameter.ndim <= 1 or name.endswith("bias")}
    decayed = {"params": [parameter for name, parameter in named.items() if name not in without]}
    return [decayed, {"params": [named[name] for name in named if name in without], "weight_decay": 0.0}]


def require_safe_state(optimizer: Optimizer) -> None:
    """Raise ValueError for a state with which a fused optimizer, which compares no shapes, would read and write elsewhere."""
    if not any(group.get("fused") for group in optimizer.param_groups):
        return
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")


def halve_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    """Halve the learning rates, now and in what is left of the schedule."""
    for group in optimizer.param_groups:
        group.update({name: group[name] * 0.5 for name in _RATES if name in group})
    for one in (scheduler, *getattr(scheduler, "_schedulers", ())):  # those that run one after another
        if hasattr(one, "base_lrs"):
            one.base_lrs = [lr * 0.5 for lr in one.base_lrs]
