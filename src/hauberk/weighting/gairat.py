"""GAIRAT: weights from the number of attack steps (Zhang et al. 2021)."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import BurnIn, MeasuredWeighting, PresetName, StepContext, is_official, mean_one

Kind: TypeAlias = Literal["tanh", "sigmoid", "discrete"]
Count: TypeAlias = Literal["kappa", "lps"]
COUNTS: tuple[Count, ...] = get_args(Count)


@checked
@torch.no_grad()
def gairat(kappa: Tensor, steps: int, lam: float = -1.0, kind: Kind = "tanh", preset: PresetName = "paper") -> Tensor:
    """GAIRAT's weights of geometry values κ (Zhang et al. 2021), scaled to mean 1.

    ``tanh``: ``(1 + tanh(λ + 5·(1 - 2κ/K))) / 2``; ``sigmoid`` of the same argument; ``discrete``: ``(K + 1 - κ)/(K + 1)``.

    Args:
        kappa: (B,), 0 to K: how many iterates were classified right, or the least number of steps.
        steps: K.
        lam: λ; -1 for GAIRAT, 0 for GAIR-FAT.
        kind: the function.
        preset: ``"paper"``, or ``"official"`` for the public code's ``5·(1 - κ/⌊K/2⌋)``, which differs for odd K.

    Returns:
        (B,), detached, mean 1.

    Raises:
        UserError: for an unknown kind or preset, and for the public code's form with K = 1, which divides by 0.
    """
    if kappa.ndim != 1 or kappa.dtype == torch.bool:
        raise UserError(f"kappa must be counts of shape (B,), got {shown(kappa)}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    half = steps // 2 if is_official(preset) else steps / 2
    if half == 0:
        raise UserError("GAIRAT's public code divides by 0 for 1 step; use more steps, or the preset 'paper'")
    argument = lam + 5 * (1 - kappa / half)
    if kind == "tanh":
        raw = (1 + argument.tanh()) / 2
    elif kind == "sigmoid":
        raw = argument.sigmoid()
    else:
        raw = (steps + 1 - kappa) / (steps + 1)
    return mean_one(raw)


@dataclass(frozen=True)
class Gairat(MeasuredWeighting):
    """GAIRAT's weighting of a batch, with ``kind``, ``lam`` and ``preset`` as in :func:`hauberk.weighting.gairat`.

    Attributes:
        lam_end: λ at the end of the training, reached linearly from the end of the burn-in; None to keep it.
        measure: "kappa" (iterates classified right) or "lps" (least PGD steps that fool the model, K where none does).
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops.
    """

    kind: Kind = "tanh"
    lam: float = -1.0
    lam_end: float | None = None
    measure: Count = "kappa"
    burn_in: BurnIn = "first-drop"
    preset: PresetName = "paper"

    @property
    def follows_progress(self) -> bool:
        """Whether λ depends on the part of the training that is done."""
        return self.lam_end is not None

    def lam_at(self, context: StepContext) -> float:
        """Return λ in an epoch: its value at the end of the burn-in, that at the end of the training, or one in between."""
        begin, epochs = context.burn_in, context.schedule.epochs
        if self.lam_end is None or epochs <= begin + 1:
            return self.lam
        done = min(max((context.epoch - begin) / (epochs - 1 - begin), 0.0), 1.0)
        return self.lam + done * (self.lam_end - self.lam)

    def measured(self, context: StepContext) -> Tensor:
        """Step counts, (b,)."""
        if context.attack is None:
            raise UserError(f"measure {self.measure!r} needs a method whose attack counts its steps")
        counts: Tensor = getattr(context.attack, self.measure)
        return counts.to(torch.promote_types(context.x.dtype, torch.float32))

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """GAIRAT's function of the counts, (B,)."""
        return unchecked(gairat)(measure, context.attack.steps, self.lam_at(context), self.kind, self.preset)
