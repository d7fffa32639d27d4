"""TOML files: read in one place, with one-line errors; and written, for plain types, because Python only reads them."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hauberk.core.arguments import shown
from hauberk.core.errors import UserError, in_one_line

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: of the file.
        what: it is, for the error message, such as "schema".

    Raises:
        UserError: if the file cannot be read, or is no TOML.
    """
    try:
        return parse_toml(Path(path).read_text(encoding="utf-8"), path, what)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the {what} {path}: {in_one_line(error)}") from error


def parse_toml(text: str, path: str | Path, what: str) -> dict[str, Any]:
    """Read TOML ``text``, as :func:`read_toml`; ``path`` is its name for error messages."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib's own are ValueErrors, and so are numbers too long for Python
        raise UserError(f"cannot read the {what} {path}: {in_one_line(error)}") from error


def toml_lines(content: Mapping[str, Any]) -> list[str]:
    """Return the lines ``key = value`` of numbers, texts, truth values, and lists and tables of these, each on one line."""
    return [f"{_key(key)} = {toml_value(value)}" for key, value in content.items()]


def toml_value(value: Any) -> str:
    """Return how TOML writes a value of a plain type.

    Raises:
        UserError: for a type that TOML has not, None among them, and text that is no Unicode.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{value:+}"
    if isinstance(value, str) and is_unicode(value):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's but for this one
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {toml_value(one)}" for key, one in value.items())
        return f"{{{inside}}}"
    raise UserError(f"a TOML file cannot hold {shown(value)}")


def is_unicode(text: str) -> bool:
    """Whether a file can hold a text: names of files may have bytes that are no letters of any alphabet."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else toml_value(key)
