"""Questions of an attack to a model: logits and gradients for the input, passes counted."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.objectives.functional import AttackLoss, at_least_float32

_GRADIENTS_AT_ONCE = 2**26  # numbers


class ModelQueries:
    """An attack's questions to a model: logits widened to float32, averaged over a random model's draws, and counted.

    Args:
        model: lent by :func:`frozen_model`, or a form of it in lower precision.
        eot_iter: passes to average over, for models that are random (expectation over transformation, Athalye et al. 2018).

    Attributes:
        precision: dtype of a model in less than float32, which its inputs are cast to; otherwise None.
        forwards: examples that went forward, so far.
        backwards: examples that went backward to the input, so far.
    """

    def __init__(self, model: nn.Module, eot_iter: int = 1):
        self.model, self.eot_iter = model, eot_iter
        self.forwards = self.backwards = 0
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.precision = parameter.dtype if parameter is not None and parameter.dtype.itemsize < 4 else None

    def logits(self, point: Tensor) -> Tensor:
        """Return logits at points (B, ...), without a graph; log of the mean probabilities where there are several draws."""
        with torch.no_grad():
            return _average([self.forward(point) for _ in range(self.eot_iter)])

    def value_and_grad(
        self, point: Tensor, loss: AttackLoss, y: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), loss (B,) and its gradient with respect to the points (B, ...), means over the draws.

        Args:
            point: where to look, (B, ...).
            loss: what to differentiate.
            y: labels, (B,).
            reference: what the loss compares with besides.
        """
        point = point.detach().requires_grad_()
        seen, values, grads = [], [], []
        for _ in range(self.eot_iter):
            logits = self.forward(point)
            value = loss(logits, y, reference)
            seen.append(logits.detach())
            values.append(value.detach())
            grads.append(self._backward(value, point))
        if self.eot_iter == 1:
            return seen[0], values[0], grads[0]
        return _average(seen), torch.stack(values).mean(0), torch.stack(grads).mean(0)

    def logit_gradients(self, point: Tensor, label: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the gradients of ``z_k - z_label`` for every class k, a few classes at a time; C backward passes in all.

        Each time: which c classes, no more than their gradients are 2²⁶ numbers, but one at least; the logits of all classes
        (B, C); and the gradients (B, c, ...).
        """
        point = point.detach().requires_grad_()
        logits = self.forward(point)
        gaps, seen = logits - logits.gather(1, label[:, None]), logits.detach()
        keep: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        count, width = logits.shape[1], max(1, _GRADIENTS_AT_ONCE // point.numel())
        for start in range(0, count, width):
            classes = range(start, min(start + width, count))
            if gaps.requires_grad:
                rows = [torch.autograd.grad(gaps[:, k].sum(), point, **keep)[0] for k in classes]
                self.backwards += len(point) * len(rows)
                grads = torch.stack(rows, 1).nan_to_num_(0.0, 0.0, 0.0)
            else:
                grads = point.new_zeros(len(point), len(classes), *point.shape[1:])
            yield slice(classes.start, classes.stop), seen, grads

    def forward(self, point: Tensor) -> Tensor:
        """Return logits at points (B, ...), with a graph if there is one."""
        self.forwards += len(point)
        logits: Tensor = self.model(point if self.precision is None else point.to(self.precision))
        return at_least_float32(logits)

    def _backward(self, value: Tensor, point: Tensor) -> Tensor:
        if not value.requires_grad:  # no path leads back to the input; a diagnostic says so
            return torch.zeros_like(point)
        self.backwards += len(point)
        ones = torch.ones_like(value)  # the gradient of the sum, without the sum
        (grad,) = torch.autograd.grad(value, point, ones, allow_unused=True, materialize_grads=True)
        return grad.nan_to_num(0.0, 0.0, 0.0)


def _average(logits: list[Tensor]) -> Tensor:
    if len(logits) == 1:
        return logits[0]
    return torch.stack([z.softmax(1) for z in logits]).mean(0).clamp_min(1e-38).log()
