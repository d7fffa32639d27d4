"""How users write down ε and the ends of the box: numbers, fractions such as "8/255", and one number per feature."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hauberk.core.arguments import check_argument, shown
from hauberk.core.errors import UserError

Bound: TypeAlias = float | Sequence[float] | Tensor
Epsilon: TypeAlias = float | str | Sequence[float] | Tensor

_LONGEST_FRACTION = 60
_HUGE_EXPONENT = re.compile(r"[eE][+-]?(\d_?){4}")


def parse_fraction(text: str) -> float:
    """Read a number or a fraction such as "8/255", correctly rounded.

    Raises:
        ValueError: if it is neither.
    """
    text = "".join(text.split())
    if len(text) > _LONGEST_FRACTION or _HUGE_EXPONENT.search(text):  # exact arithmetic would take for ever
        raise ValueError("too long")
    try:
        return float(Fraction(text))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def reads_as(text: str, value: float | Tensor) -> bool:
    """Whether a text means exactly this number."""
    try:
        return isinstance(value, float) and parse_fraction(text) == value
    except ValueError:
        return False


def parse_eps(eps: Epsilon) -> tuple[float | Tensor, str]:
    """Read ε from a float, a fraction string or per-feature values of any shape; return it and how to print it.

    Raises:
        UserError: if it cannot be read, is negative or not finite.
    """
    if isinstance(eps, str):
        try:
            value: float | Tensor = parse_fraction(eps)
        except ValueError as error:
            raise UserError(f"eps = {eps!r} is not a number or a fraction such as '8/255'") from error
        text = "".join(eps.split())
    else:
        value = number_or_tensor(eps, "eps")
        text = f"{value:.6g}" if isinstance(value, float) else f"per feature, {value.min():.4g} to {value.max():.4g}"
    values = torch.as_tensor(value)
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise UserError(f"eps must be finite and not negative, got {text}")
    return value, text


def as_tensor(value: Any, name: str, problem: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return an argument of this name as a tensor; a UserError says that it is ``problem`` where it is none."""
    try:
        # A Python float is float64: read without a dtype it would be rounded to the default one.
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype)
        check_argument(name, tensor, Tensor)
        return tensor.to(dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} = {shown(value)} is {problem}") from error


def number_or_tensor(value: Bound, name: str) -> float | Tensor:
    """Return a number as a float, several as a float64 tensor; a UserError where there is neither."""
    problem = "not a number or one number per feature"
    if isinstance(value, bool):
        raise UserError(f"{name} = {value} is {problem}")
    tensor = as_tensor(value, name, problem, torch.float64)
    if not tensor.numel():
        raise UserError(f"{name} is empty")
    return tensor.detach() if tensor.ndim and tensor.numel() > 1 else float(tensor)


def to_plain(value: Any) -> Any:
    """Return numbers and lists for JSON, which has no infinity."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return value if value is None or math.isfinite(value) else str(value)


def from_plain(value: Any) -> Any:
    """Return what :func:`to_plain` was given, with lists for tensors."""
    if isinstance(value, list):
        return [from_plain(one) for one in value]
    return float(value) if value in ("inf", "-inf") else value
