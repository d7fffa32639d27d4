"""The rule by which FRL weighs classes: multipliers of the constraint that no class be much worse than all (Xu et al. 2021)."""

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError


@checked
@torch.no_grad()
def frl(error: Tensor, multipliers: Tensor, rate: float = 0.1, bound: float = 0.1, limit: float = 0.5) -> tuple[Tensor, Tensor]:
    """One update of FRL's weights of the classes (Xu et al. 2021, Reweight).

    ``φ_c ← max(φ_c + η·(e_c - mean e - τ), 0)``, scaled down where their sum is above a limit; ``w_c = 1 + C·(φ_c - mean φ)``.

    Args:
        error: e, robust error of each class, (C,).
        multipliers: φ, of the constraints that no class be worse by more than τ, (C,); 0 at first.
        rate: η ≥ 0.
        bound: τ.
        limit: of the sum of φ, in [0, 1), so that every weight is positive.

    Returns:
        Weights and new multipliers, (C,) each, detached; the mean of the weights is 1.

    Raises:
        UserError: for other shapes, a negative rate and a limit outside [0, 1).
    """
    if error.ndim != 1 or error.shape != multipliers.shape:
        raise UserError(f"error and multipliers must be (C,) each, got {shown(error)} and {shown(multipliers)}")
    if rate < 0 or not 0 <= limit < 1:
        raise UserError(f"rate must not be negative, and limit at least 0 and below 1, got {rate} and {limit}")
    new = (multipliers + rate * (error - error.mean() - bound)).clamp_min(0)
    new = new * (limit / new.sum().clamp_min(torch.finfo(new.dtype).tiny)).clamp_max(1)
    return 1 + len(new) * (new - new.mean()), new
