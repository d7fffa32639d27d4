"""Mistakes a user can fix. The command line prints them as one line and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what, and what to do instead."""


class RemoteUserError(UserError):
    """A UserError of another process, which says it."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error of others says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def in_one_line(error: BaseException, most: int = 200) -> str:
    """Return the beginning of what an error of others says, without its line breaks."""
    return " ".join(str(error).split())[:most]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Build the error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.55)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {str(name)!r}; {hint}")
