"""Expected cost of a prediction, for attacks that do the most harm and not only any."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError


@checked
def read_costs(costs: Any, classes: int | None = None) -> Tensor:
    """Return a cost matrix as float64, (C, C): row the true class, column the predicted one.

    Raises:
        UserError: if it is not square, finite and at least 0, with 0 for what is right, or not of so many classes.
    """
    try:
        matrix = torch.as_tensor(costs, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"costs must be a matrix of numbers, got {shown(costs)}") from error
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2
    if not square or not bool((matrix.isfinite() & (matrix >= 0)).all()) or bool((matrix.diagonal() != 0).any()):
        raise UserError(f"costs must be a square matrix, finite, at least 0, and 0 on the diagonal, got {shown(matrix)}")
    if classes is not None and len(matrix) != classes:
        raise UserError(f"costs are of {len(matrix)} classes, the model has {classes}")
    return matrix


@dataclass(frozen=True, eq=False)
class ExpectedCost:
    """Loss of an attack: the expected cost of the prediction, ``Σ_k softmax(z)_k · C[y, k]``.

    It draws an example to the classes whose confusion is dear, where cross-entropy leaves its label for any. Give it to an
    attack, ``hb.attacks.PGD(loss=hb.objectives.ExpectedCost(costs))``, in training or evaluation, or as ``loss=`` to
    :func:`hauberk.evaluate`, so that all attacks maximise it.

    Attributes:
        costs: C, (C, C), row the true class, column the predicted one; 0 on the diagonal.
    """

    costs: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", read_costs(self.costs))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the expected cost of each example. (B, C), (B,) -> (B,)."""
        if logits.shape[1] != len(self.costs):
            raise UserError(f"costs are of {len(self.costs)} classes, the model has {logits.shape[1]}")
        rows: Tensor = self.costs.to(logits)[y]
        return (logits.softmax(1) * rows).sum(1)
