"""FRL: weights of classes that rise where the robust error is too far above that of all (Xu et al. 2021)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hauberk.core.arguments import unchecked
from hauberk.core.class_means import ClassMeans
from hauberk.core.class_weights import frl
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, BurnIn, MeasuredWeighting, StepContext

__all__ = ["Frl", "frl"]  # the function of this name would else be this module


@dataclass(eq=False)
class Frl(MeasuredWeighting, nn.Module):
    """FRL's weights of the classes, from their robust errors at the x' of training in the last epoch.

    ``rate``, ``bound`` and ``limit`` as in :func:`hauberk.weighting.frl`, their values the public code's. That has weights of
    their own for the two terms of TRADES, as :class:`hauberk.objectives.FRL` has; this is its rule for any objective.

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
