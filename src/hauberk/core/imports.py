"""Objects of other people's code, by their import path: ``package.module:attribute``."""

import importlib
import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError, in_one_line

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_import_path(name: str) -> bool:
    """Whether a name has the form ``package.module:attribute``."""
    return _PATH.fullmatch(name) is not None


def import_object(path: str, kind: str) -> Any:
    """Import what ``package.module:attribute`` names; modules of the current folder are found, too.

    Args:
        path: such as ``"mypackage.data:load"``.
        kind: what it is, for the error message, such as "data set".

    Raises:
        UserError: if there is no such module or attribute, or importing the module fails.
    """
    module, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not see the folder it is called from
        sys.path.insert(0, here)
    try:
        return reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # importing runs somebody's code
        raise UserError(f"cannot load {kind} {path!r}: {type(error).__name__}: {in_one_line(error)}") from error


def trusted_name(stored: str, given: str, option: str) -> str:
    """Return a name that was read from a file, unless it would import code that the user has not named.

    Args:
        stored: the name in the file of a run or model.
        given: what the user has named.
        option: of the command line, to name it with.

    Raises:
        UserError: if ``stored`` is an import path and not what was given.
    """
    if is_import_path(stored) and stored != given:
        raise UserError(f"this run would import {stored!r}; add {option} {stored} if you trust it")
    return stored
