"""How an attack looks at a model: gradients for the input only, passes counted, answers checked, nothing changed afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.arguments import shown
from hauberk.core.device import copies
from hauberk.core.errors import UserError, in_one_line
from hauberk.objectives.functional import AttackLoss, at_least_float32
from hauberk.threat.batch import check_labels

_FEW_CHANNELS = 4
_GRADIENTS_AT_ONCE = 2**26  # numbers


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


def check_logits(
    logits: Any,
    y: Tensor,
    classes: int | None = None,
    extra_outputs: int = 0,
    *,
    clean: bool = True,
    probabilities: bool = False,
    of_classes: bool = True,
) -> None:
    """Check what a model returned for inputs with labels ``y`` (B,); so many ``extra_outputs`` are no class of a label.

    Outputs that are not ``of_classes`` may have any shape (B, ...).

    Raises:
        UserError: if it is not (B, C), C or a label does not fit; on ``clean`` inputs also if it is not finite or, unless they
            are allowed, holds probabilities.
    """
    shaped = isinstance(logits, Tensor) and (logits.ndim == 2 if of_classes else logits.ndim > 0)
    if not shaped or len(logits) != len(y):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else shown(logits)
        if not of_classes:
            raise UserError(f"the model must return a tensor of shape ({len(y)}, ...), it returned {got}")
        hint = "; wrap it in a module that returns the logits alone" if isinstance(logits, tuple | list | dict) else ""
        raise UserError(f"the model must return logits of shape ({len(y)}, classes), it returned {got}{hint}")
    if not logits.is_floating_point():
        raise UserError(f"the model must return logits as floating-point numbers, it returned {logits.dtype}")
    if clean and not bool(logits.isfinite().all()):
        raise UserError("the model returns NaN or infinite logits on clean inputs")
    if not of_classes:
        return
    if logits.shape[1] < 2:
        raise UserError("the model returns one number per input; a classifier needs one logit for each of at least 2 classes")
    if classes is not None and logits.shape[1] != classes:
        raise UserError(f"the model has {logits.shape[1]} outputs, but the data has {classes} classes")
    check_labels(y, logits.shape[1] - extra_outputs)
    if clean and not probabilities and are_probabilities(logits):
        raise UserError("the model returns probabilities; return logits instead (remove the softmax), or attacks will fail")


def has_gradient(model: nn.Module) -> bool:
    """Whether a model has gradients: unless a module of it says ``has_gradient = False``, and none around that says True."""
    own: bool | None = getattr(model, "has_gradient", None)
    return all(map(has_gradient, model.children())) if own is None else own


def check_module(model: Any) -> None:
    """Refuse, by a UserError, what is no module, or one whose weights are not there yet."""
    if not isinstance(model, nn.Module):
        hint = "; a class must be called to make one" if isinstance(model, type) else ""
        raise UserError(f"the model must be a torch.nn.Module, got {shown(model)}{hint}")
    if "_parameters" not in vars(model):
        raise UserError(f"the model was not set up: {type(model).__name__}.__init__ must begin with super().__init__()")
    weights = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(weight) for weight in weights):
        raise UserError("the model has lazy layers whose weights are not there yet; run one batch through it first")
    if any(weight.is_meta for weight in weights):
        raise UserError("the model has weights on the device 'meta', which hold nothing; build it on another device")


def are_probabilities(logits: Tensor) -> bool:
    """Whether what a model returned, (B, C), looks like the output of a softmax."""
    sums = logits.detach().double().sum(1)
    return bool((logits >= 0).all() & (logits <= 1).all() & ((sums - 1).abs() < 1e-3).all())


@contextmanager
def checked_first_pass(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    extra_outputs: int = 0,
    *,
    clean: bool = True,
    target: Tensor | None = None,
    of_classes: bool = True,
) -> Iterator[None]:
    """Check the logits of the first pass that the model makes inside the block, at no extra pass.

    Args:
        model: that is about to see inputs like ``x`` with labels ``y``.
        x: inputs, (B, ...).
        y: labels, (B,).
        extra_outputs: outputs the model must have besides the classes of the labels.
        clean: as in :func:`check_logits`; the inputs of an attack need not be.
        target: classes that an attack aims at, (B,), if any.
        of_classes: whether labels are numbers of classes, and outputs logits of them.

    Raises:
        UserError: as :func:`check_logits`, and if the model cannot take such inputs.
    """

    def check(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        rows = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else len(y)
        if not rows or rows % len(y):
            return  # an attack of the caller's own may look at a part of the batch first
        handle.remove()
        _check_kept(before, [value for value in inputs if isinstance(value, Tensor)])
        several = y.repeat(rows // len(y), *[1] * (y.ndim - 1))  # one may look at several copies of it, too
        check_logits(logits, several, extra_outputs=extra_outputs, clean=clean, of_classes=of_classes)
        if target is not None:
            check_labels(target, logits.shape[1] - extra_outputs, "targets")

    if isinstance(model, torch.jit.ScriptModule):  # which takes no hooks
        check_model(model, x, y, None, extra_outputs=extra_outputs, clean=clean, of_classes=of_classes)
        yield
        return
    before: list[Tensor] = []  # the inputs of the pass, once it has begun

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before[:] = [value.detach().clone() for value in inputs if isinstance(value, Tensor)]

    first, handle = model.register_forward_pre_hook(note), model.register_forward_hook(check)
    try:
        yield
    except Exception as error:  # the forward of somebody's model may raise anything
        if isinstance(error, UserError) or not before or handle.id not in model._forward_hooks:
            raise  # it is not of the first pass
        raise _no_answer(model, x, error) from error
    finally:
        first.remove()
        handle.remove()


def _check_kept(before: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    if not all(map(torch.equal, before, inputs)):
        raise UserError("the model changes its inputs in place, so attacks would lose the clean ones; let it work on a copy")


def _no_answer(model: nn.Module, x: Tensor, error: Exception) -> UserError:
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    advice = "" if own == x.dtype else f"; convert them with x.to({own})"
    device = next((p.device for p in model.parameters()), x.device)
    what = f"inputs of shape {tuple(x.shape)}, {x.dtype}" + (f" on {x.device}" if device != x.device else "")
    return UserError(f"the model cannot take {what}: {type(error).__name__}: {in_one_line(error)}{advice}")


def check_surrogate(model: nn.Module, x: Tensor, y: Tensor, of_classes: bool = True) -> None:
    """Check the model that transfer attacks are crafted on, by one pass; raises UserError as :func:`check_model`."""
    try:
        check_module(model)
        check_model(model, x, y, probabilities=True, of_classes=of_classes)
    except UserError as error:
        raise UserError(f"surrogate: {error}") from error


def check_model(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: int | None = None,
    extra_outputs: int = 0,
    *,
    clean: bool = True,
    probabilities: bool = False,
    of_classes: bool = True,
) -> int:
    """Run one batch through the model, in evaluation mode and leaving it as it was, and check the answer.

    Returns:
        The number of classes, or of the outputs for one input.

    Raises:
        UserError: as :func:`check_logits`, and if the model cannot take inputs of this shape.
    """
    with frozen_model(model) as view, torch.no_grad():
        point = x.to(ModelQueries(view).precision or x.dtype, copy=True)
        before = point.clone()
        try:
            logits = view(point)
        except Exception as error:  # the forward of somebody's model may raise anything
            raise _no_answer(model, x, error) from error
        _check_kept([before], [point])
        check_logits(logits, y, classes, extra_outputs, clean=clean, probabilities=probabilities, of_classes=of_classes)
    return int(logits[0].numel())
