"""Objects of other people's code: by their import path, ``package.module:attribute``, and by what they compute."""

import hashlib
import inspect
import re
import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType, MethodType, NoneType
from typing import Any

from hauberk.core.errors import UserError, in_one_line, unknown_name

_IMPORT_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_BY_NAME = ("torch", "builtins", "typing", "hauberk")  # packages whose code a version stands for
_NOBODYS = ("builtins", "torch", "torch.nn.parameter")  # modules of tensors, their dtypes and devices, too
_PLAIN = (bool, int, float, complex, str, bytes, NoneType)
_MADE_OF_PARTS = (tuple, list, dict, partial, MethodType)  # with no code of their own


def is_import_path(name: str) -> bool:
    """Whether a name has the form ``package.module:attribute``."""
    return _IMPORT_PATH.fullmatch(name) is not None


def import_object(path: str, kind: str) -> Any:
    """Import what ``package.module:attribute`` names; modules of the current folder are found, too.

    Args:
        path: such as ``"mypackage.data:load"``.
        kind: what it is, for the error message, such as "data set".

    Raises:
        UserError: for another form, a module or an attribute that does not exist, and where importing the module fails.
    """
    if not is_import_path(path):
        raise UserError(f"cannot load {kind} {path!r}: write package.module:attribute")
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not see the folder it is called from
        sys.path.insert(0, here)
    try:
        found = import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs somebody's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            problem = f"there is no module {error.name!r}; install it, or call from its folder"
        else:
            problem = f"importing {module_name} fails with {type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"cannot load {kind} {path!r}: {problem}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [other for other in dir(found) if not other.startswith("_")]
            raise UserError(f"cannot load {kind} {path!r}: {unknown_name('attribute', name, known)}")
        found = getattr(found, name)
    return found


def trusted_name(stored: str, given: str, option: str) -> str:
    """Return a name that was read from a file, unless it would import code that the user has not named.

    Args:
        stored: the name in the file of a run or model.
        given: what the user has named.
        option: how the command line takes a name, such as "--data ".

    Raises:
        UserError: if ``stored`` is an import path and not what was given.
    """
    if is_import_path(stored) and stored != given:
        raise UserError(f"this run would import {stored!r}; add {option}{stored} if you trust it")
    return stored


def code_digest(*things: Any) -> str:
    """Return a digest of what objects compute, 16 hexadecimal digits.

    Digested is the source of functions and classes (their bytecode where there is no source) with defaults, bound arguments and
    the plain values and functions that they close over; of other objects their class, of dataclasses and of Hauberk's own
    objects with what they hold. Code of torch and of Hauberk stands by its name, and code that is called elsewhere is not
    followed.
    """
    return hashlib.sha256("\0".join(_code(thing, ()) for thing in things).encode()).hexdigest()[:16]


def is_foreign(thing: Any, above: tuple[int, ...] = ()) -> bool:
    """Whether code that a digest follows is somebody else's: of the object itself, or of something that it holds.

    ``above`` are the identities of what holds it. Tensors and what Python has built in are nobody's.
    """
    if isinstance(thing, _PLAIN) or id(thing) in above:
        return False
    if not isinstance(thing, _MADE_OF_PARTS) and not _is_ours(thing) and _module(thing) not in _NOBODYS:
        return True
    return any(is_foreign(part, (*above, id(thing))) for part in _parts(thing))


def _code(thing: Any, above: tuple[int, ...]) -> str:
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if id(thing) in above:  # a function that calls itself
        return ""
    if isinstance(thing, _MADE_OF_PARTS):
        text = type(thing).__name__
    elif inspect.isroutine(thing):
        text = _source(thing)
    else:
        text = "".join(map(_source, (thing if inspect.isclass(thing) else type(thing)).__mro__))
    return f"{text}({', '.join(_code(part, (*above, id(thing))) for part in _parts(thing))})"


def _parts(thing: Any) -> list[Any]:
    """Return what an object holds that its digest follows."""
    if isinstance(thing, tuple | list):
        return list(thing)
    if isinstance(thing, dict):
        return [one for pair in thing.items() for one in pair]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, FunctionType):
        parts: list[Any] = [thing.__defaults__, thing.__kwdefaults__]
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # of a variable that has no value yet
                parts.append(cell.cell_contents)
        return parts
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return []
    if is_dataclass(thing):
        return [getattr(thing, field.name) for field in fields(thing)]
    return list(vars(thing).values()) if _is_ours(thing) and hasattr(thing, "__dict__") else []


def _is_ours(thing: Any) -> bool:
    return _module(thing).startswith("hauberk.")


def _module(thing: Any) -> str:
    """Return the module of a function, of a class, or of the class of another object."""
    named = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    return str(getattr(named, "__module__", ""))


def _source(thing: Any) -> str:
    """Return the source of a class or function, its bytecode where there is none, or its name where a version stands for it."""
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    if name.partition(".")[0] in _BY_NAME:
        return name
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # such as in a console
        own = vars(thing).values() if inspect.isclass(thing) else (thing,)
        return name + "".join(_bytecode(one.__code__) for one in own if hasattr(one, "__code__"))


def _bytecode(code: Any) -> str:
    inner = "".join(_bytecode(c) if inspect.iscode(c) else without_addresses(repr(c)) for c in code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def without_addresses(text: str) -> str:
    """Return a representation without addresses in memory, which differ in each process."""
    return _ADDRESS.sub("", text)
