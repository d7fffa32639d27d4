"""Means over the examples of each class in the last epoch, for losses that look back at them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.step_context import StepContext


class ClassMeans(nn.Module):
    """Means of something over the examples of each class, of all processes, in the epoch before this one.

    A part of a method calls :meth:`begin_step` before the attack and :meth:`note` where it has looked. What is noted last in a
    step counts, once, so that the two looks of weight perturbation are one. The host does not wait for any of it.

    Attributes:
        values: (C, K), means of the last epoch; None before there is one. Of a class without examples they are those before, at
            first 1/K.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor | None = None
        self._sums: Tensor | None = None  # (C, K + 1) of this epoch, in float64: sums, and how many examples
        self._last: Tensor | None = None  # the same of the last step, which is not in the sums yet
        self._epoch = 0

    def begin_step(self, context: StepContext) -> None:
        """Count the step before, and begin anew with a new epoch."""
        if self._last is not None:
            self._last = self._last.to(context.x.device)
            self._sums = self._last if self._sums is None else self._sums.to(self._last.device) + self._last
            self._last = None
        if context.epoch != self._epoch and self._sums is not None:
            sums, count = self._sums[:, :-1], self._sums[:, -1:]
            before = torch.full_like(sums, 1 / sums.shape[1]) if self.values is None else self.values.to(sums)
            self.values = torch.where(count > 0, sums / count.clamp_min(1), before)
            self._sums = None
        self._epoch = context.epoch

    @torch.no_grad()
    def note(self, context: StepContext, rows: Tensor, classes: int) -> None:
        """Note rows (b, K) of the examples of this step."""
        rows = F.pad(rows.detach().double(), (0, 1), value=1.0)
        self._last = context.world.sum(F.one_hot(context.y, classes).double().T @ rows)

    def of(self, y: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """Return the means of the classes of examples, (b, K); 1/K before there are any."""
        if self.values is None:
            return torch.full((len(y), size), 1 / size, dtype=dtype, device=y.device)
        self.values = self.values.to(y.device)
        return self.values.to(dtype)[y]

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``."""
        return {"values": self.values, "sums": self._sums, "last": self._last, "epoch": self._epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.values, self._sums, self._last, self._epoch = (state[key] for key in ("values", "sums", "last", "epoch"))
