"""SAAD: weights by how unsure a teacher is of the adversarial input."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, MeasuredWeighting, StepContext


@checked
@torch.no_grad()
def saad(entropy: Tensor, *, entropy_scale: float = 5.0) -> Tensor:
    """SAAD's weights (Lee and Chung 2026), not normalised: ``ω_i = s·(H_i - min_j H_j)``.

    A teacher that is unsure of an adversarial input has been moved by it, too; where it is sure, the example teaches little.

    Args:
        entropy: H, of the teacher's softmax at each adversarial input of a batch, in nats, (B,).
        entropy_scale: s; the public code has 5.

    Returns:
        ω, (B,), detached; 0 for the example that the teacher is surest of.
    """
    return entropy_scale * (entropy - entropy.amin())


@dataclass(frozen=True)
class Saad(MeasuredWeighting):
    """SAAD's weighting of a batch by the entropy of the teacher, see :func:`hauberk.weighting.saad`.

    Attributes:
        entropy_scale: s.
        burn_in: number of epochs with weights 1, or "first-drop": until the learning rate first drops.
    """

    entropy_scale: float = 5.0
    burn_in: int | Literal["first-drop"] = 0
    needs: ClassVar[frozenset[str]] = ADVERSARIAL
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entropy_scale <= 0:
            raise UserError(f"entropy_scale must be positive, got {self.entropy_scale}")

    def measured(self, context: StepContext) -> Tensor:
        """Entropy of the teacher's predictions at the adversarial inputs, (b,)."""
        log_p = context.ask("teacher", "adversarial").log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """The weights of the whole batch, (B,)."""
        found: Tensor = saad(measure, entropy_scale=self.entropy_scale)
        return found
