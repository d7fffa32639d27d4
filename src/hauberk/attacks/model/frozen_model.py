"""A model lent to an attack: gradients for the input only, normalisation frozen, nothing changed afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.device import copies

_FEW_CHANNELS = 4


def patch_conv_backward(model: nn.Module) -> list[nn.Conv2d]:
    """Let plain 2-d convolutions of a model on a CPU take their input gradients by the faster kernel.

    Which one is a fixed rule, not a measurement, so that numbers repeat: for up to 4 input channels PyTorch's im2col kernel (2
    to 5 times faster than the default, with AVX-512 and torch 2.13), for strides oneDNN's in channels-last order (1.6 to 3.6).
    Values are the same up to rounding. Only while parameters need no gradients.

    Returns:
        The convolutions that it concerns; ``del module.__dict__["forward"]`` undoes it.
    """
    chosen = [module for module in model.modules() if type(module) is nn.Conv2d and _is_slow(module)]
    for module in chosen:
        module.forward = partial(_convolve, module)  # type: ignore[method-assign]
    return chosen


def _is_slow(conv: nn.Conv2d) -> bool:
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1 and max(conv.dilation) == 1
    here = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32 and "forward" not in conv.__dict__
    return plain and here and (conv.in_channels <= _FEW_CHANNELS or max(conv.stride) > 1)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of a module, with our backward where only the input needs a gradient."""
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
        aten, size, wanted = torch.ops.aten, list(weight.shape[2:]), [True, False, False]
        if weight.shape[1] <= _FEW_CHANNELS:
            back, *_ = aten._slow_conv2d_backward.output_mask(
                grad.contiguous(), x, weight, size, ctx.stride, ctx.padding, wanted
            )
        else:
            grad, weight = (a.contiguous(memory_format=torch.channels_last) for a in (grad, weight))
            how = ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, wanted
            back, *_ = aten.convolution_backward(grad, x, weight, None, *how)
        return back.contiguous(), None, None, None, None


Mode: TypeAlias = Literal["eval", "train-frozen", "train"]


@contextmanager
def frozen_model(model: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """Lend a model to an attack.

    Parameters take no gradients meanwhile; of those made under ``torch.inference_mode``, which autograd refuses, copies are
    lent. Afterwards the training flag of every module, ``requires_grad`` of every parameter, all buffers and the global
    random generators are as they were; ``.grad`` is never touched.

    Args:
        model: the caller's model.
        mode: ``"eval"``: evaluation mode, as nearly every method's public code attacks. ``"train-frozen"``: training mode
            (batch statistics, dropout) with all buffers put back. ``"train"``: training mode, and the BatchNorm statistics
            that the attack's passes leave behind are kept, as robust_overfitting's and AT-AWP's public code does.

    Yields:
        The same model, ready for ``torch.autograd.grad`` on its input.
    """
    flags = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    buffers = nullcontext() if mode == "train" else kept_buffers(model)
    refused = [entry for entry in _entries(model, "_parameters") if entry[2].is_inference()]
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        buffers,
        _replaced(refused, lambda all_of_them: [nn.Parameter(p.detach().clone(), requires_grad=False) for p in all_of_them]),
    ):
        learnable = [p for p in model.parameters() if p.requires_grad]
        patched = patch_conv_backward(model)
        try:
            for parameter in learnable:
                parameter.requires_grad_(False)
            model.train(mode != "eval")
            yield model
        finally:
            for conv in patched:
                del conv.__dict__["forward"]
            for module, flag in flags:
                module.training = flag
            for parameter in learnable:
                parameter.requires_grad_(True)


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Let passes inside the block work on copies of the buffers, and put the old ones back.

    Copies, because a graph that the caller still holds forbids writing into what it has saved.
    """
    with _replaced(_entries(model, "_buffers"), copies):
        yield


_Entry: TypeAlias = tuple[dict[str, Any], str, Tensor]  # a table of a module, and a name and a tensor in it


def _entries(model: nn.Module, table: str) -> list[_Entry]:
    tables: list[dict[str, Any]] = [getattr(module, table) for module in model.modules()]
    return [(one, name, tensor) for one in tables for name, tensor in one.items() if tensor is not None]


@contextmanager
def _replaced(entries: Sequence[_Entry], copy: Callable[[list[Tensor]], list[Any]]) -> Iterator[None]:
    """Put copies of the tensors in their places, one copy for tied ones, inside the block."""
    tensors = {id(tensor): tensor for _, _, tensor in entries}
    made = dict(zip(tensors, copy(list(tensors.values())), strict=True))
    try:
        for table, name, tensor in entries:
            table[name] = made[id(tensor)]
        yield
    finally:
        for table, name, tensor in entries:
            table[name] = tensor
