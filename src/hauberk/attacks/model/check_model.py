"""Whether a model can be attacked: what it must be, and what it must return."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.attacks.model.queries import ModelQueries
from hauberk.core.arguments import shown
from hauberk.core.errors import UserError, in_one_line
from hauberk.threat.batch import check_labels


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


def has_gradient(model: nn.Module) -> bool:
    """Whether a model has gradients: unless a module of it says ``has_gradient = False``, and none around that says True."""
    own: bool | None = getattr(model, "has_gradient", None)
    return all(map(has_gradient, model.children())) if own is None else own


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


def check_surrogate(model: nn.Module, x: Tensor, y: Tensor, of_classes: bool = True) -> None:
    """Check the model that transfer attacks are crafted on, by one pass; raises UserError as :func:`check_model`."""
    try:
        check_module(model)
        check_model(model, x, y, probabilities=True, of_classes=of_classes)
    except UserError as error:
        raise UserError(f"surrogate: {error}") from error


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


def are_probabilities(logits: Tensor) -> bool:
    """Whether what a model returned, (B, C), looks like the output of a softmax."""
    sums = logits.detach().double().sum(1)
    return bool((logits >= 0).all() & (logits <= 1).all() & ((sums - 1).abs() < 1e-3).all())


def _check_kept(before: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    if not all(map(torch.equal, before, inputs)):
        raise UserError("the model changes its inputs in place, so attacks would lose the clean ones; let it work on a copy")


def _no_answer(model: nn.Module, x: Tensor, error: Exception) -> UserError:
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    advice = "" if own == x.dtype else f"; convert them with x.to({own})"
    device = next((p.device for p in model.parameters()), x.device)
    what = f"inputs of shape {tuple(x.shape)}, {x.dtype}" + (f" on {x.device}" if device != x.device else "")
    return UserError(f"the model cannot take {what}: {type(error).__name__}: {in_one_line(error)}{advice}")
