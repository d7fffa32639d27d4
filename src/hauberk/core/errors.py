"""Mistakes a user can fix, and import paths (``package.module:attribute``), which are where many are made.

The command line prints a UserError as one line and exits with code 2.
"""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

_IMPORT_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what, and what to do instead."""


class RemoteUserError(UserError):
    """A UserError of another process, which prints it."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the kind of error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def in_one_line(error: BaseException) -> str:
    """Return the beginning of an error's message, without its line breaks."""
    return " ".join(str(error).split())[:300]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Build the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.55)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {str(name)!r}; {hint}")


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
