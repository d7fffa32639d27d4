"""A classifier that answers and has no gradient, as a module."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError


class GradientFree(nn.Module):
    """A classifier that answers and has no gradient, such as a forest. It refuses every pass that a gradient is wanted of.

    Only attacks that go by its answers can be run on it (Square, random search). What they do not find proves less than what an
    attack with gradients does not find. A differentiable stand-in (``bpda=``) or transfer from another model goes further.

    Args:
        answer: a function of inputs (B, ...) as a NumPy array of float64, or what ``rows`` makes of them, that returns logits
            (B, C).
        name: of what answers, for messages.
        digest: of what answers; bytes that are others where it is another.
        rows: what inputs are turned to before, such as a data frame.

    Attributes:
        has_gradient: False. Any module may say so of itself: evaluations then run no attack with gradients.
    """

    has_gradient = False

    def __init__(
        self,
        answer: Callable[[Any], np.ndarray],
        name: str,
        digest: bytes = b"",
        rows: Callable[[np.ndarray], Any] | None = None,
    ):
        super().__init__()
        self.answer, self.name, self.rows = answer, name, rows
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, C)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError(f"{self.name} has no gradient; attack it by its answers (Square, random search), or give bpda=")
        inputs: Any = x.detach().cpu().double().numpy()
        logits = self.answer(inputs if self.rows is None else self.rows(inputs))
        return torch.from_numpy(np.ascontiguousarray(logits)).to(x)

    def extra_repr(self) -> str:
        """What answers."""
        return self.name
