"""AWP: the loss at adversarially perturbed weights (Wu et al. 2020), without a copy of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.arguments import check_fields
from hauberk.core.device import copies
from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation (Wu et al. 2020).

    Attributes:
        gamma: γ, size of the perturbation relative to the norm of each weight tensor.
        warmup: epochs without it.
    """

    gamma: float = 0.01
    warmup: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.gamma < 1 or self.warmup < 0:
            raise UserError(f"gamma must be at least 0 and below 1, warmup not negative, got {self.gamma} and {self.warmup}")

    def direction(self, model: nn.Module, loss: Tensor, world: World = SINGLE_PROCESS) -> dict[str, Tensor]:
        """Return a relative step of ascent, ``v_l = γ · ‖w_l‖ / ‖g_l‖ · g_l``, by the names of the parameters w_l.

        g is the gradient of ``loss``, a scalar with a graph to the weights, averaged over the processes of ``world``. As in
        the public code, parameters with "weight" in their names and more than one dimension are perturbed: convolutions,
        linear, attention and recurrent layers, neither biases nor normalisation.
        """
        chosen = perturbed_parameters(model)
        grads = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        reached = {name: grad for name, grad in zip(chosen, grads, strict=True) if grad is not None}
        if not reached:
            return {}
        world.average(list(reached.values()))
        sizes = torch._foreach_norm([chosen[name].detach() for name in reached])
        slopes = torch._foreach_norm(list(reached.values()))
        torch._foreach_mul_(sizes, self.gamma)
        torch._foreach_add_(slopes, 1e-20)
        scales = torch._foreach_div(sizes, slopes)
        return {name: scale * grad for (name, grad), scale in zip(reached.items(), scales, strict=True)}


def perturbed_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that take gradients, with "weight" in their names and more than one dimension, by name."""
    named = model.named_parameters()
    return {name: one for name, one in named if one.requires_grad and one.ndim > 1 and "weight" in name}


@contextmanager
def applied(model: nn.Module, change: dict[str, Tensor]) -> Iterator[None]:
    """Add ``change``, which is emptied, to the weights inside the block; afterwards they are the same bits as before."""
    if not change:
        yield
        return
    weights = [parameter.detach() for name, parameter in model.named_parameters() if name in change]
    before = copies(weights)
    try:
        torch._foreach_add_(weights, [change[name] for name, _ in model.named_parameters() if name in change])
        change.clear()  # its memory is needed no longer
        yield
    finally:
        torch._foreach_copy_(weights, before)


class _HandOut(torch.autograd.Function):
    """A number, whose gradients to some parameters are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *parameters: Tensor) -> Tensor:
        """Return the number."""
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, times that of the number."""
        return None, None, *torch._foreach_mul(ctx.grads, grad)


def gradient_surrogate(model: nn.Module, loss: Tensor) -> Tensor:
    """Take the gradients of ``loss`` now, and return a loss of the same value whose ``backward`` hands them out.

    So the weights can be put back before the caller runs ``backward`` and the optimiser's step. The public code steps at the
    perturbed weights and then subtracts the perturbation: the same up to rounding, but for weight decay, which here acts on
    the weights themselves.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached = {p: grad for p, grad in zip(parameters, grads, strict=True) if grad is not None}
    surrogate: Tensor = _HandOut.apply(loss.detach(), list(reached.values()), *reached)  # type: ignore[no-untyped-call]
    return surrogate
