"""A faster copy of a model for attacks to look at: BatchNorm folded, fewer copies in memory, lower precision if wanted."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hauberk.attacks.model.check_model import has_gradient
from hauberk.attacks.model.frozen_model import patch_conv_backward
from hauberk.core.errors import UserError
from hauberk.core.numerics import Precision, float32_mode
from hauberk.objectives.functional import at_least_float32

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_RELUS = (F.relu, torch.relu)
_SUMS = (operator.add, operator.iadd, torch.add)


def fuse_conv_bn(net: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Leave out each BatchNorm that follows a convolution directly, and let ReLU work in place where nobody else looks.

    Args:
        net: in evaluation mode; modified in place. A network that cannot be traced, because its control flow depends on the
            input, stays as it is.

    Returns:
        The network without these BatchNorms, whose convolutions have a bias now, with the weights still as they were; and which
        BatchNorm is to be folded into which convolution, by the convolution's name.
    """
    try:
        traced = fx.symbolic_trace(net)
    except Exception:  # whatever the code of a network may raise when it sees no numbers
        return net, {}
    modules: dict[str, Any] = dict(traced.named_modules())
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")

    def kind(node: Any) -> type | None:
        """Type of the module that an operation calls, None for other operations."""
        return type(modules[str(node.target)]) if isinstance(node, fx.Node) and node.op == "call_module" else None

    folded = {}
    for node in list(traced.graph.nodes):
        source: Any = node.args[0] if node.args else None
        if kind(node) not in NORMS or kind(source) not in CONVOLUTIONS or len(source.users) > 1:
            continue
        name, norm = str(source.target), str(node.target)
        if calls[name] > 1 or modules[norm].running_mean is None:
            continue
        layer = modules[name]
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
        folded[name] = norm
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    for node in traced.graph.nodes:
        source = node.args[0] if node.args else None
        # The output of these is not needed to go backward.
        layer_or_sum = kind(source) in (*CONVOLUTIONS, *NORMS, nn.Linear) or getattr(source, "target", None) in _SUMS
        relu = kind(node) is nn.ReLU or (node.op == "call_function" and node.target in _RELUS)
        if layer_or_sum and relu and len(source.users) == 1:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (source,), {}
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, folded


DTYPES: dict[Precision, torch.dtype | None] = {"model": None, "fp32": None, "tf32": None, "bf16": torch.bfloat16}
# How far a copy's logits, input gradients, and logits without a graph may be from the model's, relative to their size.
# ResNet-18 with random weights moves by 3e-4 and 3e-2 where its convolutions round to TF32, by 4e-3 and 0.1 in bfloat16.
CLOSE: dict[Precision, tuple[float, float, float]] = {
    "fp32": (1e-4, 1e-2, 1e-4), "tf32": (4e-3, 0.1, 4e-3), "bf16": (0.05, 0.3, 0.05),
}  # fmt: skip


def make_inference_copy(model: nn.Module, like: Tensor, precision: Precision = "fp32") -> nn.Module:
    """Return the fastest form of a model in evaluation mode that computes what the model computes in true float32.

    Args:
        model: classifier, lent by ``frozen_model``; not changed.
        like: inputs (B, ...) to compare logits and input gradients on.
        precision: that the form will run in: "bf16" for bfloat16; "fp32", or "tf32" under
            :func:`hauberk.float32_mode`, for the model's own dtype.

    Returns:
        An :class:`InferenceCopy` if one can be made and agrees with the model; otherwise (a random model, too) the model
        itself, under autocast where the dtype is lower; a model without gradients as it is.

    Raises:
        UserError: from hooks of the model that check what it is used for.
    """
    if not has_gradient(model):
        return model
    dtype = DTYPES[precision]
    fallback = model if dtype is None else _Autocast(model, dtype)
    try:
        with float32_mode("fp32"):
            seen = _look(model, like)
            with torch.no_grad():
                if not torch.equal(model(like).float(), seen[2]):
                    return fallback  # tracing a random model could freeze its noise
            copy = InferenceCopy(model, dtype)
        with float32_mode(precision):
            return copy if _near(seen, _look(copy, like), precision) else fallback
    except UserError:
        raise
    except Exception:  # other people's modules may refuse in any way to be copied, traced or cast
        return fallback


def outputs_match(model: nn.Module, other: nn.Module, like: Tensor, precision: Precision) -> bool:
    """Whether two forms of a model have the same logits and gradients at inputs (B, ...), up to what a precision rounds."""
    with float32_mode(precision):
        return _near(_look(model, like), _look(other, like), precision)


def use_channels_last(model: nn.Module) -> None:
    """Lay images and the weights of their convolutions out channels last, in place: faster in bfloat16."""
    for _, tensor in _tensors(model):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


class InferenceCopy(nn.Module):
    """A copy of a model in evaluation mode, for input gradients only.

    Where the model can be traced, BatchNorm after a convolution is folded into it, and ReLU works in place. In lower precision,
    convolutions and linear layers have their weights cast once and compute in ``dtype``, images laid out channels last;
    everything else computes in the model's own precision. Logits are float32 at least.

    Args:
        model: classifier; not changed.
        dtype: bfloat16, or None for the model's own.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        super().__init__()
        self.net, self._folded = fuse_conv_bn(deepcopy(model).eval().requires_grad_(False))
        self.lower = dtype
        if dtype is not None:
            for module in self.net.modules():
                if type(module) in (*CONVOLUTIONS, nn.Linear):
                    module.to(dtype)
                if type(module) not in NORMS and next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_pre_hook(_cast)
            use_channels_last(self.net)
        patch_conv_backward(self.net)
        self.refresh(model)

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Take over the present weights and statistics of the model that this is a copy of."""
        theirs, ours = dict(_tensors(model)), dict(_tensors(self.net))
        layers: dict[str, Any] = dict(model.named_modules())
        pairs = [(layers[name], layers[norm]) for name, norm in self._folded.items()]
        _fold(pairs, [(ours.pop(f"{name}.weight"), ours.pop(f"{name}.bias")) for name in self._folded])
        kept = [name for name in ours if name in theirs]  # what tracing has added is constant
        if kept:
            torch._foreach_copy_([ours[name] for name in kept], [theirs[name] for name in kept])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...)."""
        logits: Tensor = self.net(x.contiguous(memory_format=torch.channels_last) if self.lower and x.ndim == 4 else x)
        return at_least_float32(logits)


def _fold(pairs: Sequence[tuple[Any, Any]], targets: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write convolutions and the BatchNorms behind them, as single layers, into the weights and biases of others.

    ``w' = w · γs`` and ``b' = (b - μ) s γ + β`` with ``s = 1/√(σ² + ε)``, as :func:`torch.nn.utils.fusion.fuse_conv_bn_weights`
    has it for one layer; all layers at once, because one by one that is as many launches as a pass of the network.
    """
    if not pairs:
        return
    norms = [norm for _, norm in pairs]
    scales = torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms])
    torch._foreach_rsqrt_(scales)
    biases = torch._foreach_neg([norm.running_mean for norm in norms])
    _apply(torch._foreach_add_, biases, [layer.bias for layer, _ in pairs])
    torch._foreach_mul_(biases, scales)
    _apply(torch._foreach_mul_, biases, [norm.weight for norm in norms])
    _apply(torch._foreach_add_, biases, [norm.bias for norm in norms])
    _apply(torch._foreach_mul_, scales, [norm.weight for norm in norms])
    for (layer, _), scale, (weight, _) in zip(pairs, scales, targets, strict=True):
        torch.mul(layer.weight, scale.view(-1, *[1] * (weight.ndim - 1)), out=weight)
    torch._foreach_copy_([bias for _, bias in targets], biases)


def _apply(function: Callable[[list[Tensor], list[Tensor]], Any], values: Sequence[Tensor], others: Sequence[Any]) -> None:
    """Change in place the values that have a partner."""
    having = [(value, other) for value, other in zip(values, others, strict=True) if other is not None]
    if having:
        function([value for value, _ in having], [other for _, other in having])


class _Autocast(nn.Module):
    """A model under autocast, in evaluation mode."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...)."""
        with torch.autocast(x.device.type, self.dtype):
            logits: Tensor = self.model(x)
        return at_least_float32(logits)


def _look(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the gradient of how far they are spread, and logits without a graph (tracing forgets a model's own switches)."""
    x = x.detach().clone().requires_grad_()
    logits = model(x)
    (grad,) = torch.autograd.grad(
        logits.float().reshape(len(x), -1).logsumexp(1).sum(), x, allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        return logits.detach().float(), grad, model(x).float()


def _near(seen: tuple[Tensor, ...], other: tuple[Tensor, ...], precision: Precision) -> bool:
    pairs = zip(seen, other, CLOSE[precision], strict=True)
    return all(float((a - b).norm()) <= bound * float(a.norm()) for a, b, bound in pairs)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bring the inputs of a module to the precision of its own parameters."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(i.to(dtype) if isinstance(i, Tensor) and i.is_floating_point() else i for i in inputs)
