"""What computes a model's answers, besides its weights: the classes of its modules, their source and their plain settings."""

import hashlib
import inspect
import re
from typing import Any

import torch
from torch import nn

_NOT_YOURS = ("torch", "builtins", "typing")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def model_code(model: nn.Module) -> str:
    """Return the class of a model, and a digest of all that computes besides its weights.

    That is the source of each class of module that is not torch's own (its bytecode where there is no source), functions,
    numbers and texts kept in modules, such as a scale or a ``forward`` put in by hand (whole numbers are left out, because many
    are counters), what modules print of themselves, and the graph of a scripted module. Code called elsewhere is not followed.

    Args:
        model: any module; not run.

    Returns:
        Such as ``"MyNet, code 0123456789abcdef"``: the same for two models whose weights alone differ.
    """
    parts = [_ADDRESS.sub("", repr(model))]
    classes: set[type] = set()
    for name, module in model.named_modules():
        classes.update(type(module).__mro__)
        parts += [f"{name}.{key} = {value}" for key, value in sorted(_plain(vars(module)).items())]
        if isinstance(module, torch.jit.ScriptModule):
            parts.append(str(getattr(module, "inlined_graph", "")))
    parts += sorted(_source(kind) for kind in classes if kind.__module__.partition(".")[0] not in _NOT_YOURS)
    return f"{type(model).__qualname__}, code {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _plain(attributes: dict[str, Any]) -> dict[str, str]:
    """Settings and functions that somebody has put into a module; what torch keeps there begins with an underscore."""
    found = {}
    for key, value in attributes.items():
        if inspect.isroutine(value):
            found[key] = _source(value)
        elif not key.startswith("_") and isinstance(value, float | str | tuple):
            found[key] = _ADDRESS.sub("", repr(value))
    return found


def _source(thing: Any) -> str:
    """Return the source of a class or function; where there is none, its bytecode with its constants and names."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        pass
    own = vars(thing).values() if inspect.isclass(thing) else (thing,)
    codes = [code for code in (getattr(one, "__code__", None) for one in own) if code is not None]
    return getattr(thing, "__qualname__", "") + "".join(map(_bytecode, codes))


def _bytecode(code: Any) -> str:
    inner = "".join(_bytecode(c) if inspect.iscode(c) else repr(c) for c in code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {inner}"
