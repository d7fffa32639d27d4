"""PGD under way on a batch, and what it has seen."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hauberk.attacks.state import AttackState
from hauberk.objectives.functional import Criterion
from hauberk.threat import expand_to


@dataclass
class PGDState(AttackState):
    """PGD under way."""

    reference: Tensor  # clean logits, targets, or labels
    point: Tensor
    previous: Tensor | None  # the point before, with Nesterov's momentum
    velocity: Tensor | None
    chances: Tensor | None  # τ less the times that an example has been misclassified
    stopped: Tensor | None  # which examples friendly training has stopped
    right: Tensor  # how many iterates were classified right
    moves: Tensor  # how many steps were taken
    lps: Tensor | None  # logits at the first misclassified iterate, or at the last one seen
    looks: "Looks | None" = None  # in place of the three above, and of ``found`` and ``found_at``

    def report(self) -> dict[str, Any]:
        """Return what an :class:`AttackResult` says of each example, where K iterates were looked at whatever was found."""
        if self.looks is not None:
            return {"x_adv": self.best, "loss": self.best_loss, "count": partial(self.looks.counts, self.y)}
        assert self.lps is not None  # there was a look
        return super().report() | {"logits_lps": self.lps, "kappa": self.right, "steps_taken": self.moves}


@dataclass
class Looks:
    """Logits of all iterates of a batch, so that what there is to count is counted once and not at each step.

    Attributes:
        criterion: which outputs are mistakes.
        logits: (B, C) of each iterate.
    """

    criterion: Criterion
    logits: list[Tensor] = field(default_factory=list)

    def counts(self, y: Tensor) -> dict[str, Tensor]:
        """Return what an :class:`AttackResult` says of examples with labels y, (B,)."""
        steps, logits = len(self.logits), torch.stack(self.logits)
        wrong = self.criterion(logits.flatten(0, 1), y.repeat(steps, *[1] * (y.ndim - 1))).view(steps, -1)
        first = torch.where(wrong.any(0), wrong.byte().argmax(0), -1)
        place = expand_to(first % steps, logits[0]).expand_as(logits[0])[None]
        return {
            "success": wrong[-1],
            "logits_lps": logits.gather(0, place)[0],
            "kappa": steps - wrong.sum(0),
            "first_success": first,
            "steps_taken": torch.full_like(first, steps),
        }
