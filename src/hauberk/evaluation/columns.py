"""Whether there is anything to attack in a table: columns that can change."""

from hauberk.data import IndexedDataset
from hauberk.evaluation.diagnostics import Diagnostic, check
from hauberk.tables import reach_of
from hauberk.threat import ThreatModel

NAME = "columns-can-change"


def columns(source: IndexedDataset, threat: ThreatModel) -> list[Diagnostic]:
    """Say how many columns of a table can change, and which may but cannot; nothing of examples that are no rows."""
    reach = reach_of(source, threat)
    if reach is None:
        return []
    return [
        check(
            NAME,
            str(reach),
            "invalid" if not reach.moving else "warning" if reach.stuck else "ok",
            "the number says nothing about changes of columns that cannot change: give those that should an eps of their own, "
            'the others change = "none"',
        )
    ]
