"""What must hold between data and threat model, checked with one clear line for what does not."""

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.threat.model import ThreatModel

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
    check_labels(y, classes)
    return y


def check_labels(y: Tensor, classes: int | None) -> None:
    """Refuse labels (N,) that are negative, or not below the number of classes, if that is known."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise UserError(f"labels must be {allowed}, found {low} to {high}")
