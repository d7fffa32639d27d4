"""Learning rate and ε as pure functions of how far the training is: nothing to save, nothing to restore."""

import math

from hauberk.training.config import TrainConfig

_RISE = 0.3  # share of a one-cycle schedule that goes up
_START, _END = 1 / 25, 1e-4  # of the peak, as torch's OneCycleLR and its paper (Smith and Topin 2018) have them


def learning_rate(settings: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step.

    Args:
        settings: schedule, peak and milestones.
        step: 0-based, over the whole training.
        total: number of steps of the whole training.
    """
    done = step / total
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "one-cycle":
        if done < _RISE:
            return settings.lr * _between(_START, 1.0, done / _RISE)
        return settings.lr * _between(1.0, _END, (done - _RISE) / (1 - _RISE))
    epoch = math.floor(done * settings.epochs + 1e-9)
    return settings.lr * 0.1 ** sum(epoch >= first for first in _drops(settings))


def first_drop(settings: TrainConfig) -> int:
    """0-based epoch of the first learning-rate drop; three quarters of the training where there is none."""
    if settings.schedule == "steps" and settings.milestones:
        drop = math.ceil(_drops(settings)[0])
        if drop < settings.epochs:
            return drop
    return int(0.75 * settings.epochs)


def _drops(settings: TrainConfig) -> list[float]:
    """0-based epochs that start with a lower rate; the papers count epochs from 1 ("at the 75-th epoch")."""
    return [m * settings.epochs if m < 1 else m - 1 for m in settings.milestones]


def eps_scale(settings: TrainConfig, step: int, total: int) -> float:
    """Factor of ε at a step: rises from near 0 to 1 during the warm-up, then 1."""
    if settings.eps_warmup == 0:
        return 1.0
    return min(1.0, (step + 1) / (settings.eps_warmup * total))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
