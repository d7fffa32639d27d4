"""ModelQueries through the model on behalf of an attack: cast, averaged over a random model's draws, and counted."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.objectives.kl import at_least_float32

LossOfLogits = Callable[[Tensor], Tensor]


class ModelQueries:
    """How an attack looks at a model.

    Args:
        view: the model, lent by ``frozen_model``, or a form of it in lower precision.
        draws: passes to average over, for models that are random (expectation over transformation, Athalye et al. 2018).

    Attributes:
        precision: dtype of a model in less than float32, which its inputs are cast to; otherwise None.
        forwards: examples that went forward, so far.
        backwards: examples that went backward to the input, so far.
    """

    def __init__(self, view: nn.Module, draws: int = 1):
        self.view, self.draws = view, draws
        self.forwards = self.backwards = 0
        parameter = next((p for p in view.parameters() if p.is_floating_point()), None)
        self.precision = parameter.dtype if parameter is not None and parameter.dtype.itemsize < 4 else None

    def look(self, point: Tensor) -> Tensor:
        """Return logits at points (B, ...), without a graph; log of the mean probabilities where there are several draws."""
        with torch.no_grad():
            return _average([self._forward(point) for _ in range(self.draws)])

    def gradient(self, point: Tensor, loss: LossOfLogits) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), loss (B,) and its gradient with respect to the points (B, ...), means over the draws."""
        point = point.detach().requires_grad_()
        seen, values, grads = [], [], []
        for _ in range(self.draws):
            logits = self._forward(point)
            value = loss(logits)
            seen.append(logits.detach())
            values.append(value.detach())
            grads.append(self._back(value, point))
        if self.draws == 1:
            return seen[0], values[0], grads[0]
        return _average(seen), torch.stack(values).mean(0), torch.stack(grads).mean(0)

    def _back(self, value: Tensor, point: Tensor) -> Tensor:
        if not value.requires_grad:  # no path leads back to the input; a diagnostic says so
            return torch.zeros_like(point)
        self.backwards += len(point)
        (grad,) = torch.autograd.grad(value.sum(), point, allow_unused=True, materialize_grads=True)
        return grad.nan_to_num(0.0, 0.0, 0.0)

    def gradients(self, point: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the gradients of ``z_k - z_label`` for every class k, (B, C, ...); C backward passes."""
        point = point.detach().requires_grad_()
        logits = self._forward(point)
        gaps = logits - logits.gather(1, label[:, None])
        if not gaps.requires_grad:
            return logits, torch.zeros(len(point), logits.shape[1], *point.shape[1:]).to(point)
        rows = [
            torch.autograd.grad(gaps[:, k].sum(), point, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for k in range(logits.shape[1])
        ]
        self.backwards += len(point) * logits.shape[1]
        return logits.detach(), torch.stack(rows, 1).nan_to_num(0.0, 0.0, 0.0)

    def _forward(self, point: Tensor) -> Tensor:
        self.forwards += len(point)
        logits: Tensor = self.view(point if self.precision is None else point.to(self.precision))
        return at_least_float32(logits)


def _average(logits: list[Tensor]) -> Tensor:
    if len(logits) == 1:
        return logits[0]
    return torch.stack([z.softmax(1) for z in logits]).mean(0).clamp_min(1e-38).log()
