"""What users write for numbers of a threat model: fractions, one value per feature, infinities in JSON."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hauberk.core.errors import UserError

Bound: TypeAlias = float | Sequence[float] | Tensor
Epsilon: TypeAlias = float | str | Sequence[float] | Tensor

_LONGEST = 60
_HUGE = re.compile(r"[eE][+-]?(\d_?){4}")


def parse_fraction(text: str) -> float:
    """Read a number or a fraction such as "8/255", correctly rounded.

    Raises:
        ValueError: if it is neither.
    """
    text = "".join(text.split())
    if len(text) > _LONGEST or _HUGE.search(text):  # exact arithmetic would take for ever
        raise ValueError("too long")
    try:
        return float(Fraction(text))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def parse_eps(eps: Epsilon, name: str = "eps") -> tuple[float | Tensor, str]:
    """Read ε from a float, a fraction string or per-feature values of any shape; return it and how to print it.

    Raises:
        UserError: if it cannot be read, is negative or not finite.
    """
    if isinstance(eps, str):
        try:
            value: float | Tensor = parse_fraction(eps)
        except ValueError as error:
            raise UserError(f"{name} = {eps!r} is not a number or a fraction such as '8/255'") from error
        text = "".join(eps.split())
    else:
        value = number_or_tensor(eps, name)
        text = f"{value:.6g}" if isinstance(value, float) else f"per feature, {value.min():.4g} to {value.max():.4g}"
    values = torch.as_tensor(value)
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise UserError(f"{name} must be finite and not negative, got {text}")
    return value, text


def features_tensor(features: Sequence[int] | Tensor | None, name: str) -> Tensor | None:
    """Read a mask, indices or directions.

    Raises:
        UserError: if they are no numbers.
    """
    try:
        return None if features is None else torch.as_tensor(features)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} = {features!r:.60} is no mask or list of numbers") from error


def number_or_tensor(value: Bound | str, name: str) -> float | Tensor:
    """Read a bound, or one for each feature.

    Raises:
        UserError: if it is no number, or empty.
    """
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} = {value!r} is not a number or one number per feature") from error
    if not tensor.numel():
        raise UserError(f"{name} is empty")
    return tensor.detach() if tensor.ndim and tensor.numel() > 1 else float(tensor)


def to_plain(value: Any) -> Any:
    """Return numbers and lists for JSON, which has no infinity."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return value if math.isfinite(value) else str(value)


def from_plain(value: Any) -> Any:
    """Return what :func:`to_plain` was given, with lists for tensors."""
    if isinstance(value, list):
        return [from_plain(one) for one in value]
    return float(value) if value in ("inf", "-inf") else value
