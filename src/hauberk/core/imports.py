"""Objects of other people's code, by their import path: ``package.module:attribute``."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError, in_one_line, unknown_name

_IMPORT_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


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
