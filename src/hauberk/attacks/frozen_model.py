"""The attack's view of a model: gradients for the input only, and nothing of the model changed when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch
from torch import nn

from hauberk.fastpath.conv_backward import patch_conv_backward

Mode: TypeAlias = Literal["eval", "train-frozen", "train"]


@contextmanager
def frozen_model(model: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """Lend a model to an attack.

    Parameters take no gradients meanwhile; of those made under ``torch.inference_mode``, which autograd refuses, copies are
    lent. Afterwards the training flag of every module, ``requires_grad`` of every
    parameter, all buffers and the global random generators are as they were; ``.grad`` is never touched.

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
