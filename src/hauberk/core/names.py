"""Names that tell things apart."""

from collections.abc import Iterable
from itertools import chain, count


def numbered(names: Iterable[str]) -> list[str]:
    """Return the names, of which a second one that is the same is "NAME #2", and so on."""
    found: list[str] = []
    for name in names:
        free = chain([name], (f"{name} #{k}" for k in count(2)))
        found.append(next(one for one in free if one not in found))
    return found
