"""What must hold between data, model and threat model, checked with one clear line for what does not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError, first_line
from hauberk.threat import ThreatModel

_BOX_SLACK = 1e-6  # float rounding of the box's own bounds


def check_batch(x: Tensor, y: Tensor) -> Tensor:
    """Check types and shapes of a batch as a caller hands it over, without waiting for a device.

    Args:
        x: inputs, (B, ...), floating.
        y: labels, (B,), integers of any width.

    Returns:
        The labels, (B,) int64.

    Raises:
        UserError: for what is no tensor, inputs that are not floating, labels that are no class numbers, an empty batch.
    """
    for name, value in (("inputs", x), ("labels", y)):
        if not isinstance(value, Tensor):
            raise UserError(f"{name} must be a torch tensor, got {type(value).__name__}; torch.as_tensor makes one")
    if not x.is_floating_point():
        how = "divide by 255" if x.dtype == torch.uint8 else "convert them"
        raise UserError(f"inputs have dtype {x.dtype}; {how} to get floats inside the box of the threat model")
    if x.ndim < 2:
        raise UserError(f"inputs must have a batch dimension and features, got shape {tuple(x.shape)}")
    if len(x) == 0:
        raise UserError("the batch is empty")
    if y.ndim != 1 or len(x) != len(y):
        hint = "; class numbers of one-hot labels are y.argmax(1)" if y.ndim == 2 and len(x) == len(y) else ""
        raise UserError(f"inputs of shape {tuple(x.shape)} need labels of shape ({len(x)},), got {tuple(y.shape)}{hint}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"labels must be integers, got {y.dtype}; y.long() makes them so")
    return y.long()


def check_inputs(x: Tensor, y: Tensor, threat: ThreatModel, classes: int | None = None) -> Tensor:
    """Check a batch or a whole data set.

    Args:
        x: inputs, (N, ...), floating.
        y: labels, (N,), integers of any width.
        threat: whose box the inputs must lie in.
        classes: number of classes, if known.

    Returns:
        The labels, (N,) int64.

    Raises:
        UserError: for wrong types or shapes, NaN, inputs outside the box (normalised by mistake), labels out of range.
    """
    y = check_batch(x, y)
    if not bool(x.isfinite().all()):
        raise UserError(f"the data has {int((~x.isfinite()).sum())} NaN or infinite values")
    region = threat.around(x)
    slack = _BOX_SLACK * (1 + x.abs().amax())
    if bool(((x < region.low - slack) | (x > region.high + slack)).any()):
        box = f"[{float(region.low.amin()):g}, {float(region.high.amax()):g}]"
        seen = f"[{float(x.amin()):.3g}, {float(x.amax()):.3g}]"
        hint = "divide by 255" if float(x.amin()) >= 0 and float(x.amax()) > 1.5 else "normalisation belongs inside the model"
        raise UserError(f"inputs lie in {seen}, outside the threat model's box {box}; {hint}, or give low= and high=")
    _check_labels(y, classes)
    return y


def check_logits(logits: Tensor, y: Tensor, classes: int | None = None, probabilities: bool = False) -> None:
    """Check what a model returned for clean inputs with labels ``y`` (B,); ``probabilities`` lets them pass.

    Raises:
        UserError: if it is not (B, C), not finite, has the wrong number of classes, or holds probabilities.
    """
    check_outputs(logits, y, classes)
    if not bool(logits.isfinite().all()):
        raise UserError("the model returns NaN or infinite logits on clean inputs")
    if not probabilities and are_probabilities(logits):
        raise UserError("the model returns probabilities; return logits instead (remove the softmax), or attacks will fail")


def check_outputs(logits: Tensor, y: Tensor, classes: int | None = None, extra_outputs: int = 0) -> None:
    """Check the shape of what a model returned for any inputs with labels ``y`` (B,), and the range of the labels.

    Raises:
        UserError: if it is not (B, C), or C does not fit the labels or the ``classes`` and ``extra_outputs`` asked for.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model must return logits of shape ({len(y)}, classes), it returned {got}")
    if logits.shape[1] < 2:
        raise UserError("the model returns one number per input; a classifier needs one logit for each of at least 2 classes")
    if classes is not None and logits.shape[1] != classes:
        raise UserError(f"the model has {logits.shape[1]} outputs, but the data has {classes} classes")
    _check_labels(y, logits.shape[1] - extra_outputs)


def are_probabilities(logits: Tensor) -> bool:
    """Whether what a model returned, (B, C), looks like the output of a softmax."""
    sums = logits.detach().double().sum(1)
    return bool((logits >= 0).all() & (logits <= 1).all() & ((sums - 1).abs() < 1e-3).all())


@contextmanager
def checked_first_pass(model: nn.Module, x: Tensor, y: Tensor, extra_outputs: int = 0, *, clean: bool = True) -> Iterator[None]:
    """Check the logits of the first pass that the model makes inside the block, at no extra pass.

    Args:
        model: that is about to see inputs like ``x`` with labels ``y``.
        x: inputs, (B, ...).
        y: labels, (B,).
        extra_outputs: outputs the model must have besides the classes of the labels.
        clean: the model is trained on these inputs, so logits that are not finite, and probabilities, are refused, too.

    Raises:
        UserError: as :func:`check_logits`, and if the model cannot take inputs of this dtype.
    """

    def check(module: nn.Module, inputs: object, logits: Tensor) -> None:
        handle.remove()
        if clean:
            check_logits(logits, y)
        check_outputs(logits, y, extra_outputs=extra_outputs)

    handle = model.register_forward_hook(check)
    try:
        yield
    except RuntimeError as error:
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
        if own == x.dtype:
            raise
        raise UserError(
            f"the model, of {own}, cannot take inputs of {x.dtype}: {first_line(error)}; convert them with x.to({own})"
        ) from error
    finally:
        handle.remove()


@contextmanager
def checked_call(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, extra_outputs: int = 0) -> Iterator[Tensor]:
    """Check what a caller hands to an attack, and the first pass inside the block.

    Args:
        model: to be attacked.
        x: inputs, (B, ...).
        y: labels, (B,), integers of any width.
        threat: whose box the inputs must lie in.
        extra_outputs: outputs the model must have besides the classes of the labels.

    Yields:
        The labels, (B,) int64.

    Raises:
        UserError: as :func:`check_inputs` and :func:`check_outputs`.
    """
    y = check_inputs(x, y, threat)
    with checked_first_pass(model, x, y, extra_outputs, clean=False):
        yield y


def check_model(model: nn.Module, x: Tensor, y: Tensor, classes: int | None = None, probabilities: bool = False) -> int:
    """Run one batch through the model, in evaluation mode and leaving it as it was, and check the answer.

    Returns:
        The number of classes.

    Raises:
        UserError: as :func:`check_logits`, and if the model cannot take inputs of this shape.
    """
    from hauberk.attacks.frozen_model import frozen_model
    from hauberk.attacks.model_queries import ModelQueries  # here, because attacks import the checks above

    with frozen_model(model) as view, torch.no_grad():
        try:
            logits = ModelQueries(view).look(x)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            what = f"inputs of shape {tuple(x.shape)} and dtype {x.dtype}"
            raise UserError(f"the model cannot take {what}: {first_line(error)}") from error
        check_logits(logits, y, classes, probabilities)
    return int(logits.shape[1])


def _check_labels(y: Tensor, classes: int | None) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise UserError(f"labels must be {allowed}, found {low} to {high}")
