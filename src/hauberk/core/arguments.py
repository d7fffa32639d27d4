"""Arguments and settings checked against their annotations, so that a wrong one gives one line that says what it must be."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from inspect import Parameter, isclass, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from hauberk.core.errors import UserError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_INT64 = 2**63
_WORDS: dict[Any, str] = {
    int: "a whole number of 64 bits",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    NoneType: "None",
    Callable: "a function",
}
_NAMED = {
    "ThreatModel": "a threat model, such as hb.Linf('8/255')",
    "Tensor": "a torch tensor of real numbers (torch.as_tensor makes one)",
    "Module": "a torch.nn.Module",
}
_WRONG = object()


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check the arguments of each call against the annotations of ``function``; a wrong one is a UserError.

    Whole numbers fit in 64 bits, numbers are finite, True is none, and those of NumPy become Python's; tensors have their
    numbers at hand. What an annotation does not name in such words (``Any``, forward references) is not looked at.
    """
    kinds = {
        name: parameter.annotation
        for name, parameter in signature(function).parameters.items()
        if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    }
    names = list(kinds)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = [check_argument(name, value, kinds[name]) for name, value in zip(names, args, strict=False)]
        more = {name: check_argument(name, value, kinds.get(name, Any)) for name, value in kwargs.items()}
        return function(*given, *args[len(given) :], **more)  # type: ignore[arg-type]

    return call


def unchecked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return what :func:`checked` wraps, for callers that have checked already."""
    found: Callable[_P, _R] = getattr(function, "__wrapped__", function)
    return found


def check_fields(settings: Any, *, finite: bool = True) -> None:
    """Check the fields of a dataclass, likewise; for its ``__post_init__``. Not ``finite``: numbers may be infinite or NaN."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not finite and field.type is float and isinstance(value, float):
            continue
        found = check_argument(field.name, value, field.type)
        if found is not value:
            object.__setattr__(settings, field.name, found)  # the dataclass may be frozen


def check_callable(name: str, value: Any, *arguments: str, makes: bool = False) -> None:
    """Refuse, by a UserError, what cannot be called with these arguments; and classes, unless it ``makes`` something."""
    if isclass(value) and not makes:
        raise UserError(f"{name} is a class, {value.__name__}; pass an instance of it, or a function")
    try:
        if not callable(value):
            raise TypeError(f"it is {shown(value)}")
        signature(getattr(value, "forward", value)).bind(*arguments)
    except TypeError as error:
        raise UserError(f"{name} must be a function of ({', '.join(arguments)}): {error}") from error
    except ValueError:  # one written in C does not say what it takes
        return


def check_argument(name: str, value: Any, kind: Any) -> Any:
    """Return ``value`` as the annotation ``kind`` has it, or raise UserError with the ``name`` of the argument."""
    found = _as(value, kind)
    if found is _WRONG:
        raise UserError(f"{name} must be {_words(kind)}, got {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Return a value in a few words on one line: numbers, texts and collections as they are, others by their type."""
    if isinstance(value, Integral | Real | str | bytes | tuple | list | dict | NoneType | Path):
        try:
            return " ".join(repr(value).split())[:60]
        except Exception:  # an element may have any repr, and whole numbers of many digits have none
            return f"a {type(value).__name__}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        where = getattr(value, "layout", "torch.strided") if not getattr(value, "is_meta", False) else "on 'meta', without data"
        odd = "" if str(where) == "torch.strided" else f" ({where})"
        return f"a {type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}{odd}"
    return f"{value.__name__!r:.60}" if hasattr(value, "__qualname__") else f"a {type(value).__name__}"


def _as(value: Any, kind: Any) -> Any:
    """Return the value as the annotation has it, or ``_WRONG``."""
    kind, origin, parts = _taken_apart(kind)
    if origin in (Union, UnionType):
        for one in parts:
            if (found := _as(value, one)) is not _WRONG:
                return found
        return _WRONG
    if origin is Literal:
        return value if isinstance(value, str | int | NoneType) and value in parts else _WRONG
    if origin in (tuple, Sequence, Iterable, Mapping):
        return _as_collection(value, origin, parts)
    if kind is Callable or origin is Callable:
        return value if callable(value) else _WRONG
    if kind is int or kind is float:
        return _as_number(value, kind)
    if kind is None:
        return value if value is None else _WRONG
    if kind is Path:
        return value if isinstance(value, os.PathLike) and "\0" not in os.fsdecode(value) else _WRONG
    if kind is str:
        return value if isinstance(value, str) and "\0" not in value else _WRONG
    kind = origin or kind
    if not isinstance(kind, type) or kind in (Any, object, Parameter.empty):
        return value
    return value if isinstance(value, kind) and (kind.__name__ != "Tensor" or _holds_numbers(value)) else _WRONG


@cache
def _taken_apart(kind: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return an annotation without its notes, its origin and its arguments; kept, because loops ask again and again."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return kind, get_origin(kind), get_args(kind)


def _holds_numbers(tensor: Any) -> bool:
    """Whether a tensor has its numbers at hand: real ones, one for each place."""
    return not (tensor.is_meta or tensor.is_complex() or tensor.is_quantized) and str(tensor.layout) == "torch.strided"


def _as_number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return _WRONG
    if isinstance(value, Integral) and abs(int(value)) < _INT64:
        return int(value)
    try:
        number = float(value)
    except OverflowError:
        return _WRONG
    return number if kind is float and math.isfinite(number) else _WRONG


def _as_collection(value: Any, origin: Any, kinds: tuple[Any, ...]) -> Any:
    """Check a collection, and the elements of a sequence; a list for a tuple becomes one."""
    allowed = tuple | list if origin is tuple else origin
    if isinstance(value, str | bytes) or not isinstance(value, allowed):
        return _WRONG
    if origin is Iterable:
        try:
            iter(value)
        except Exception:  # that of a tensor without dimensions, and of a scripted module, fails
            return _WRONG
    if origin not in (tuple, Sequence):
        return value
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            return _WRONG
        found = [_as(one, kind) for one, kind in zip(value, kinds, strict=True)]
    else:
        found = [_as(one, kinds[0]) for one in value]
    if any(one is _WRONG for one in found):
        return _WRONG
    return tuple(found) if origin is tuple else value


def _words(kind: Any) -> str:
    """Say what an annotation asks for."""
    kind, origin, parts = _taken_apart(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in parts))
    if origin is Literal:
        return ", ".join(repr(one) for one in parts[:-1]) + f" or {parts[-1]!r}" if len(parts) > 1 else repr(parts[0])
    if origin in (tuple, Sequence, Iterable):
        return f"a list, each of it {_words(parts[0])}" if parts and parts[0] is not Any else "a list"
    if origin is Mapping:
        return "a dict"
    kind = origin or kind
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(NoneType if kind is None else kind) or _NAMED.get(name) or f"a {name}"
