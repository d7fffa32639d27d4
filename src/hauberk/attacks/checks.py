"""What must hold between data and model, checked with one clear line for what does not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import ModelQueries, frozen_model
from hauberk.core.errors import UserError, first_line
from hauberk.threat import ThreatModel
from hauberk.threat.model import check_inputs, check_labels


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
    check_labels(y, logits.shape[1] - extra_outputs)


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

    def check(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if inputs and isinstance(inputs[0], Tensor) and len(inputs[0]) != len(y):
            return  # an attack of the caller's own may look at a part of the batch first
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
    with frozen_model(model) as view, torch.no_grad():
        try:
            logits = ModelQueries(view).logits(x)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            what = f"inputs of shape {tuple(x.shape)} and dtype {x.dtype}"
            raise UserError(f"the model cannot take {what}: {first_line(error)}") from error
        check_logits(logits, y, classes, probabilities)
    return int(logits.shape[1])
