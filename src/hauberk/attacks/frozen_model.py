"""How an attack looks at a model: gradients for the input only, passes counted, and nothing of the model changed afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.objectives.functional import AttackLoss, at_least_float32

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
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        buffers,
        _plain_parameters(model),
        patch_conv_backward(model),
    ):
        learnable = [p for p in model.parameters() if p.requires_grad]
        try:
            for parameter in learnable:
                parameter.requires_grad_(False)
            model.train(mode != "eval")
            yield model
        finally:
            for module, flag in flags:
                module.training = flag
            for parameter in learnable:
                parameter.requires_grad_(True)


@contextmanager
def _plain_parameters(model: nn.Module) -> Iterator[None]:
    """Put copies in the place of parameters that were made under inference_mode, inside the block."""
    made_there = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_inference()
    ]
    copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for _, _, p in made_there}  # one for tied ones
    try:
        for module, name, parameter in made_there:
            module._parameters[name] = copies[id(parameter)]
        yield
    finally:
        for module, name, parameter in made_there:
            module._parameters[name] = parameter


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Let passes inside the block work on copies of the buffers, and put the old ones back.

    Copies, because a graph that the caller still holds forbids writing into what it has saved.
    """
    buffers = [
        (module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items() if buffer is not None
    ]
    try:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


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

    def logit_gradients(self, point: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the gradients of ``z_k - z_label`` for every class k, (B, C, ...); C backward passes."""
        point = point.detach().requires_grad_()
        logits = self.forward(point)
        gaps = logits - logits.gather(1, label[:, None])
        if not gaps.requires_grad:
            return logits, torch.zeros(len(point), logits.shape[1], *point.shape[1:]).to(point)
        rows = [
            torch.autograd.grad(gaps[:, k].sum(), point, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for k in range(logits.shape[1])
        ]
        self.backwards += len(point) * logits.shape[1]
        return logits.detach(), torch.stack(rows, 1).nan_to_num(0.0, 0.0, 0.0)

    def forward(self, point: Tensor) -> Tensor:
        """Return logits at points (B, ...), with a graph if there is one."""
        self.forwards += len(point)
        logits: Tensor = self.model(point if self.precision is None else point.to(self.precision))
        return at_least_float32(logits)

    def _backward(self, value: Tensor, point: Tensor) -> Tensor:
        if not value.requires_grad:  # no path leads back to the input; a diagnostic says so
            return torch.zeros_like(point)
        self.backwards += len(point)
        (grad,) = torch.autograd.grad(value.sum(), point, allow_unused=True, materialize_grads=True)
        return grad.nan_to_num(0.0, 0.0, 0.0)


def _average(logits: list[Tensor]) -> Tensor:
    if len(logits) == 1:
        return logits[0]
    return torch.stack([z.softmax(1) for z in logits]).mean(0).clamp_min(1e-38).log()
