"""What an adversary can change in a table, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hauberk.data.dataset import IndexedDataset
from hauberk.data.tables.rows import rows_behind
from hauberk.data.tables.schema import ColumnSchema
from hauberk.threat import ThreatModel

_MAX_NAMED = 8  # columns that are named in a line
_WAYS = {"any": "up or down", "up": "up only", "down": "down only"}


@dataclass(frozen=True)
class Reach:
    """What an adversary can change.

    Attributes:
        columns: number of columns that are used.
        moving: those that can change.
        stuck: those that may change by the schema but cannot, by the reason.
        how: how far each of the moving ones can change, in words.
    """

    columns: int
    moving: tuple[str, ...]
    stuck: Mapping[str, tuple[str, ...]]
    how: Mapping[str, str]

    def __str__(self) -> str:
        parts = [f"{len(self.moving)} of {self.columns} columns can change"]
        for why, names in self.stuck.items():
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            parts.append(f"{', '.join(names[:_MAX_NAMED])}{more} may change but cannot: {why}")
        return "; ".join(parts)


def reach_of(dataset: IndexedDataset, threat: ThreatModel) -> Reach | None:
    """Say which columns of ``dataset`` the ``threat`` model can change; None for a data set that is no rows of a table.

    Raises:
        UserError: if the threat model does not fit the rows.
    """
    if (rows := rows_behind(dataset)) is None:
        return None
    x = rows.x[:1]
    radius = torch.as_tensor(threat.around(x).radius).expand(x.shape[1:]).tolist()
    how, stuck = dict[str, str](), dict[str, tuple[str, ...]]()
    for name, feature in rows.features.items():
        eps = [one for one, column in zip(radius, rows.columns, strict=True) if column.feature == name]
        why = _hindrance(feature.kind, eps)
        if not why:
            how[name] = _extent(feature, eps)
        elif feature.change != "none":
            stuck[why] = (*stuck.get(why, ()), name)
    return Reach(len(rows.features), tuple(how), stuck, how)


def _extent(feature: ColumnSchema, eps: list[float]) -> str:
    """Say how far a column can change."""
    if feature.kind == "category":
        return f"to any of its {len(eps)} values"
    unit = int(eps[0] + 0.5) if feature.kind == "integer" else eps[0]
    return f"by up to {unit:.6g}, {_WAYS[feature.change]}"


def _hindrance(kind: str, eps: list[float]) -> str:
    """Say why a column cannot change; empty if it can. The nearest row is another one beyond half a unit."""
    if kind == "category" and len(eps) < 2:
        return "it has only one value"
    if max(eps) == 0 and kind != "integer":
        return "ε is 0"
    return "ε is below 1 unit" if kind != "number" and max(eps) <= 0.5 else ""
