"""Faster input gradients of convolutions on a CPU, where PyTorch's own choice of kernel is several times slower."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS = 4


@contextmanager
def patch_conv_backward(model: nn.Module) -> Iterator[None]:
    """Let plain 2-d convolutions of a model on a CPU take their input gradients by the faster kernel, inside the block.

    Which one is a fixed rule, not a measurement, so that numbers repeat: for up to 4 input channels PyTorch's im2col kernel (2
    to 5 times faster than the default, with AVX-512 and torch 2.13), for strides oneDNN's in channels-last order (1.6 to 3.6).
    Values are the same up to rounding. Only while parameters need no gradients.
    """
    changed = quicken(model)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def quicken(model: nn.Module) -> list[nn.Conv2d]:
    """Do so for good, and return which convolutions it concerns."""
    chosen = [module for module in model.modules() if type(module) is nn.Conv2d and _is_slow(module)]
    for module in chosen:
        module.forward = _Forward(module)  # type: ignore[method-assign, assignment]
    return chosen


def _is_slow(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1 and max(conv.dilation) == 1
    here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32 and "forward" not in conv.__dict__
    return plain and here and (conv.in_channels <= _FEW_CHANNELS or max(conv.stride) > 1)


class _Forward:
    """The convolution of a module, with our backward where only the input needs a gradient."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv

    def __call__(self, x: Tensor) -> Tensor:
        conv = self.conv
        usual = not x.requires_grad or conv.weight.requires_grad or x.ndim != 4 or x.dtype != torch.float32
        if usual or torch.is_autocast_enabled("cpu"):
            return nn.Conv2d.forward(conv, x)
        out: Tensor = _Convolution.apply(x, conv.weight, conv.bias, conv.stride, conv.padding)  # type: ignore[no-untyped-call]
        return out


class _Convolution(torch.autograd.Function):
    """``F.conv2d`` with a gradient for its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Convolve back."""
        (weight,) = ctx.saved_tensors
        x = grad.new_empty(1).expand(ctx.shape)  # only its shape is looked at
        only = [True, False, False]
        if weight.shape[1] <= _FEW_CHANNELS:
            size = list(weight.shape[2:])
            back = torch.ops.aten._slow_conv2d_backward.output_mask(
                grad.contiguous(), x, weight, size, ctx.stride, ctx.padding, only
            )[0]
        else:
            grad, weight = (a.contiguous(memory_format=torch.channels_last) for a in (grad, weight))
            back = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, only
            )[0]
        return back.contiguous(), None, None, None, None
