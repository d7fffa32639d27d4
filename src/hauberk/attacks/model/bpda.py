"""Backward pass differentiable approximation: the model's answers, with the gradient of a differentiable stand-in."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.attacks.model.check_model import check_module
from hauberk.core.arguments import check_callable, shown
from hauberk.core.errors import UserError, in_one_line

StandInLike: TypeAlias = nn.Module | Callable[[Tensor], Tensor]


class BPDA(nn.Module):
    """A model whose backward pass is that of a differentiable stand-in g (Athalye et al. 2018).

    Outputs are those of the model f, to the last bit; for a loss ℓ the gradient is ``(∂g/∂x)ᵀ ∇ℓ(f(x))``, both at x. The
    stand-in is asked only where a gradient is wanted, and is always in evaluation mode.

    Args:
        model: from inputs (B, ...) to outputs.
        stand_in: from the same inputs to outputs of the same shape, with a gradient; a module or a function.

    Raises:
        UserError: if the stand-in is neither.

    Attributes:
        has_gradient: True, whether the model has gradients or not.
    """

    has_gradient = True

    def __init__(self, model: nn.Module, stand_in: StandInLike):
        super().__init__()
        if isinstance(stand_in, nn.Module):
            try:
                check_module(stand_in)
            except UserError as error:
                raise UserError(f"bpda: {error}") from error
        else:
            check_callable("bpda", stand_in, "x")
        self.model, self.stand_in = model, stand_in
        self.training = model.training

    def train(self, mode: bool = True) -> "BPDA":
        """Set the mode of the model; the stand-in stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.stand_in, nn.Module):
            self.stand_in.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's outputs."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            answer: Tensor = self.model(x)
            return answer
        with torch.no_grad():
            outputs = self.model(x.detach())
        weights = self.stand_in.parameters() if isinstance(self.stand_in, nn.Module) else ()
        dtype = next((p.dtype for p in weights if p.is_floating_point()), x.dtype)
        try:
            differentiable = self.stand_in(x.to(dtype))
        except Exception as error:  # somebody's function may raise anything
            raise UserError(f"bpda fails on inputs {tuple(x.shape)}: {type(error).__name__}: {in_one_line(error)}") from error
        if not isinstance(differentiable, Tensor) or differentiable.shape != outputs.shape:
            got = tuple(differentiable.shape) if isinstance(differentiable, Tensor) else shown(differentiable)
            raise UserError(f"bpda must return outputs of shape {tuple(outputs.shape)}, as the model, it returned {got}")
        if not differentiable.requires_grad:
            raise UserError("bpda has no gradient with respect to the inputs; let it be a differentiable function of them")
        replaced: Tensor = _Replaced.apply(differentiable.to(outputs.dtype), outputs)  # type: ignore[no-untyped-call]
        return replaced


def with_stand_in(model: nn.Module, stand_in: StandInLike | None) -> nn.Module:
    """Return the model with the backward pass of a stand-in, or as it is where there is none."""
    return model if stand_in is None else BPDA(model, stand_in)


class _Replaced(torch.autograd.Function):
    """The second of two tensors, with the gradient going to the first."""

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, outputs: Tensor) -> Tensor:
        """Return the second."""
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on to the first."""
        return grad, None
