"""Mistakes a user can fix. The command line prints them as one line and exits with code 2."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches

# What using a file of another version, or of somebody else, may raise. A UserError is a ValueError, too: catch that before.
SCHEMA_ERRORS = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, ArithmeticError)


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what, and what to do instead, in one printable line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class RemoteUserError(UserError):
    """A UserError of another process, which prints it."""


def printable(text: str, keep: str = "") -> str:
    """Return text that does nothing to a terminal: what does not print, such as line breaks and escapes, is written out.

    Characters in ``keep`` stay.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shell_quoted(*words: object) -> str:
    """Return words as a shell takes them, in one printable line."""
    return " ".join(
        shlex.quote(word) if word.isprintable() else "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
        for word in map(str, words)
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the kind of error where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def in_one_line(error: BaseException) -> str:
    """Return the beginning of an error's message, without its line breaks."""
    return " ".join(str(error).split())[:300]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Build the error for a name that does not exist, with the nearest one that does."""
    names = {other.lower(): other for other in sorted(known)}
    near = get_close_matches(str(name).lower(), names, n=1, cutoff=0.55)
    hint = f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(names.values())}"
    return UserError(f"unknown {kind} {str(name)!r:.80}; {hint}")


def find_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one of the ``known`` names that is meant, in upper or lower case; raise UserError if there is none."""
    names = {other.lower(): other for other in known}
    if name.lower() not in names:
        raise unknown_name(kind, name, names.values())
    return names[name.lower()]
