"""What inputs and labels must be like under a threat model, of a batch as of a whole data set."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from hauberk.core.arguments import check_argument, checked, shown
from hauberk.core.device import constant
from hauberk.core.errors import UserError
from hauberk.threat.model import ThreatModel

OTHER_LABELS = "class numbers of one-hot labels are y.argmax(1), other labels need criterion= and a loss= of your own"
_NORMALISE = "normalisation belongs inside the model, nn.Sequential(hauberk.models.Normalize(mean, std), net)"
_BOX_SLACK = 1e-6  # float rounding of the box's own bounds
_P = ParamSpec("_P")
_R = TypeVar("_R")


def check_batch(x: Tensor, y: Tensor, what: str = "labels", of_classes: bool = True) -> Tensor:
    """Check types and shapes of a batch as a caller hands it over, without waiting for a device.

    Args:
        x: inputs, (B, ...), floating.
        y: labels, (B,), integers of any width.
        what: those are.
        of_classes: whether they are numbers of classes; otherwise they may be anything, (B, ...).

    Returns:
        The labels, (B,) int64; if they are not of classes, as they are, floats in the dtype of the inputs.

    Raises:
        UserError: for what is no tensor that holds data, inputs that are not floating, labels that are no class numbers, and an
            empty batch.
    """
    check_argument("inputs", x, Tensor)
    check_argument(what, y, Tensor)
    if not x.is_floating_point():
        how = "divide by 255" if x.dtype == torch.uint8 else "convert them"
        raise UserError(f"inputs have dtype {x.dtype}; {how} to get floats inside the box of the threat model")
    if x.ndim < 2:
        raise UserError(f"inputs must have a batch dimension and features, got shape {tuple(x.shape)}")
    if len(x) == 0:
        raise UserError("the batch is empty")
    if not of_classes:
        return check_own_labels(x, y)
    if y.ndim != 1 or len(x) != len(y):
        hint = f"; {OTHER_LABELS}" if y.ndim == 2 and len(x) == len(y) else ""
        raise UserError(f"inputs of shape {tuple(x.shape)} need {what} of shape ({len(x)},), got {tuple(y.shape)}{hint}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"{what} must be integers, got {y.dtype}; y.long() makes them so; {OTHER_LABELS}")
    return y.long()


def check_own_labels(x: Tensor, y: Tensor) -> Tensor:
    """Return labels (B, ...) that are not numbers of classes, floats in the dtype of the inputs, float32 at least.

    Raises:
        UserError: if there is not one for each input, or one is NaN or infinite.
    """
    if y.ndim < 1 or len(x) != len(y):
        raise UserError(f"there are {len(x)} inputs, and labels of shape {tuple(y.shape)}; one is needed for each input")
    if not y.is_floating_point():
        return y
    if not bool(y.isfinite().all()):
        raise UserError("labels have NaN or infinite values")
    return y.to(x.dtype if x.dtype.itemsize >= 4 else torch.float32)


def check_inputs(x: Tensor, y: Tensor, threat: ThreatModel, classes: int | None = None, of_classes: bool = True) -> Tensor:
    """Check a batch or a whole data set.

    Args:
        x: inputs, (N, ...), floating.
        y: labels, (N,), integers of any width.
        threat: whose box the inputs must lie in.
        classes: number of classes, if known.
        of_classes: whether labels are numbers of classes; otherwise they may be anything, (N, ...).

    Returns:
        The labels, as :func:`check_batch`.

    Raises:
        UserError: for wrong types or shapes, NaN, inputs outside the box (normalised by mistake), labels out of range.
    """
    check_argument("threat", threat, ThreatModel)
    y = check_batch(x, y, of_classes=of_classes)
    if not bool(x.isfinite().all()):
        raise UserError(f"the data has {int((~x.isfinite()).sum())} NaN or infinite values")
    threat.around(x)  # refuses what does not fit
    low, high = (constant(bound, x.dtype, x.device) for bound in (threat.low, threat.high))
    if bool(((x - x.clamp(low, high)).abs() > _BOX_SLACK * (1 + x.abs())).any()):
        box = f"[{float(low.amin()):g}, {float(high.amax()):g}]"
        seen = f"[{float(x.amin()):.3g}, {float(x.amax()):.3g}]"
        hint = "divide by 255" if float(x.amin()) >= 0 and float(x.amax()) > 1.5 else _NORMALISE
        raise UserError(f"inputs lie in {seen}, outside the threat model's box {box}; {hint}, or give low= and high=")
    if of_classes:
        check_labels(y, classes)
    return y


def check_labels(y: Tensor, classes: int | None, what: str = "labels") -> None:
    """Refuse labels, or ``what`` they are, (N,) that are negative, or not below the number of classes, if that is known."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise UserError(f"{what} must be {allowed}, found {low} to {high}")


def checked_batch(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check each call of a public function of logits, whose names begin so, and labels ``y``; otherwise as ``checked``.

    Logits are (B, C), alike, with C ≥ 2; labels (B,), integers of any width, and class numbers, where that waits for no device.
    """
    typed, names = checked(function), list(signature(function).parameters)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        scores = {name: value for name, value in given.items() if name.startswith("logits") and value is not None}
        shape = None
        for name, value in scores.items():
            check_argument(name, value, Tensor)
            shape = shape or value.shape
            if len(shape) != 2 or shape[1] < 2 or value.shape != shape or not value.is_floating_point():
                raise UserError(f"{name} must be floating, (B, C) with C at least 2, and all alike, got {shown(value)}")
        if shape is not None and "y" in given:
            y = check_argument("y", given["y"], Tensor)
            if y.shape != shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
                raise UserError(f"y must be integers of shape ({shape[0]},), got {shown(y)}")
            given["y"] = y.long()
            if y.device.type == "cpu" and len(y):
                check_labels(given["y"], shape[1])
        return typed(*args[len(names) :], **given)  # type: ignore[arg-type]

    return call
