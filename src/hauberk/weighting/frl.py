"""FRL: weights of classes that rise where the robust error is too far above that of all (Xu et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.class_means import ClassMeans
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, BurnIn, MeasuredWeighting, StepContext


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


@dataclass(eq=False)
class Frl(MeasuredWeighting, nn.Module):
    """FRL's weights of the classes, from their robust errors at the x' of training in the last epoch.

    ``rate``, ``bound`` and ``limit`` as in :func:`hauberk.weighting.frl`, their values the public code's. That takes errors of
    held-out images after each epoch, those of the clean inputs and of what the attack adds each for its own term, begins with a
    trained network and halves the rate every 40 epochs; this is its rule alone.

    Attributes:
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop": until the learning rate
            first drops. In them, too, errors are counted and the rule is at work.
    """

    rate: float = 0.1
    bound: float = 0.1
    limit: float = 0.5
    burn_in: BurnIn = 0
    needs: ClassVar[frozenset[str]] = ADVERSARIAL
    looks_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        nn.Module.__init__(self)
        super().__post_init__()
        if self.rate < 0 or not 0 <= self.limit < 1:
            raise UserError(f"rate must not be negative, and limit at least 0 and below 1, got {self.rate} and {self.limit}")
        self.means = ClassMeans()
        self._classes: tuple[Tensor, Tensor] | None = None  # weights and multipliers

    def fresh(self) -> "Frl":
        """Return the same weighting with nothing remembered."""
        return replace(self)

    def before_step(self, context: StepContext) -> None:
        """Count the step before; update the weights at the end of an epoch."""
        before = self.means.values
        self.means.begin_step(context)
        values = self.means.values
        if values is not None and values is not before:
            error = 1 - values[:, 0]
            last = torch.zeros_like(error) if self._classes is None else self._classes[1].to(error)
            self._classes = unchecked(frl)(error, last, self.rate, self.bound, self.limit)

    def measured(self, context: StepContext) -> Tensor:
        """Weights of the classes of this process's part of the batch, (b,)."""
        logits = context.logits_adv
        if logits is None:
            raise UserError("FRL weighs by errors at adversarial inputs, which this method does not look at")
        self.means.note(context, (logits.argmax(1) == context.y)[:, None].double(), logits.shape[1])
        if self._classes is None:
            return torch.ones_like(logits[:, 0])
        return self._classes[0].to(logits)[context.y]

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """The same of the whole batch, (B,)."""
        return measure

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``."""
        return {"classes": self._classes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._classes = state["classes"]
