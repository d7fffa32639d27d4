"""When a training has gone wrong: a loss that is not finite, or robust accuracy that is suddenly lost."""

from math import isfinite, sqrt
from typing import Any

MOST_RETURNS = 3  # to earlier weights in one run, each with half the learning rate


class TrainingDiverged(Exception):
    """What went wrong, for the user."""


def require_finite(loss: float, where: str) -> None:
    """Raise TrainingDiverged if the loss is not finite."""
    if not isfinite(loss):
        raise TrainingDiverged(f"the loss became {loss} at {where}")


def check_catastrophic_overfitting(row: dict[str, Any], best: dict[str, Any], held_out: int, classes: int) -> None:
    """Raise TrainingDiverged for catastrophic overfitting (Wong et al. 2020): the training attack fails, and others succeed.

    That is taken to have happened when robust accuracy on held-out examples is under half of the best so far, by more than
    four standard errors, while robust accuracy in training has reached that best one. A training that merely stumbles, at a
    high learning rate, loses both, and is left to recover; and one that was no better than chance has nothing to lose.

    Args:
        row: metrics of this epoch.
        best: metrics of the best one before; empty if there is none.
        held_out: examples that validation looks at.
        classes: of the data.
    """
    now, then, seen = (
        metrics.get(name)
        for metrics, name in ((row, "val_robust_accuracy"), (best, "val_robust_accuracy"), (row, "train_robust_accuracy"))
    )
    if now is None or then is None or seen is None:
        return
    rng = 4 * sqrt(then * (1 - then) / held_out)
    if then <= 1 / classes + 4 * sqrt((1 - 1 / classes) / classes / held_out):
        return
    if now < then / 2 and then - now > rng and seen >= then:
        raise TrainingDiverged(
            f"robust accuracy on held-out examples fell from {100 * then:.1f} % to {100 * now:.1f} % in epoch {row['epoch']}, "
            f"while {100 * seen:.1f} % withstand the training attack: catastrophic overfitting, usual where it has one step"
        )
