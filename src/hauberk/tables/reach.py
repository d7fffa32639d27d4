"""Which columns of a table an adversary can really change, and which only on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hauberk.data import Arrays, Part, Source
from hauberk.tables.encode import Column
from hauberk.tables.schema import Feature
from hauberk.threat import ThreatModel

_NAMED = 8


@dataclass(frozen=True, eq=False)
class Rows(Arrays):
    """Rows of a table in memory, which know what their columns are.

    Attributes:
        x: inputs, (N, D), in the units of the file.
        y: labels, (N,) int64.
        classes: how many classes there are.
        name: of the data set: the file of the description.
        folder: empty; the description says where its rows are.
        features: what the description says of each column, by name.
        columns: the D inputs.
    """

    features: Mapping[str, Feature] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Reach:
    """What an adversary can change.

    Attributes:
        columns: how many columns are used.
        moving: those that can change.
        stuck: those that may change by the description but cannot, by the reason.
    """

    columns: int
    moving: tuple[str, ...]
    stuck: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        stuck = [f"{_listed(names)} may change but cannot: {why}" for why, names in self.stuck.items()]
        return "; ".join([f"{len(self.moving)} of {self.columns} columns can change", *stuck])

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            "columns": self.columns,
            "moving": list(self.moving),
            "stuck": {why: list(names) for why, names in self.stuck.items()},
        }


def reach_of(source: Source, threat: ThreatModel) -> Reach | None:
    """Say which columns a threat model can change, or None of examples that are no rows of a table.

    Args:
        source: rows of a table, or some of them.
        threat: what the adversary may do.

    Raises:
        UserError: if the threat model does not fit the rows.
    """
    while isinstance(source, Part):
        source = source.whole
    if not isinstance(source, Rows):
        return None
    x, _ = source.fetch(torch.arange(1))
    radius = torch.as_tensor(threat.around(x).radius).expand(x.shape[1:]).tolist()
    moving, stuck = [], dict[str, tuple[str, ...]]()
    for name, feature in source.features.items():
        room = [eps for eps, column in zip(radius, source.columns, strict=True) if column.feature == name]
        why = _hindrance(feature.kind, room)
        if not why:
            moving.append(name)
        elif feature.change != "none":
            stuck[why] = (*stuck.get(why, ()), name)
    return Reach(len(source.features), tuple(moving), stuck)


def _hindrance(kind: str, room: list[float]) -> str:
    """Say why a column cannot change; empty if it can. The nearest row is another one beyond half a unit."""
    if kind == "category" and len(room) < 2:
        return "it has only one value"
    if max(room) == 0 and kind != "integer":
        return "ε is 0"
    return "ε is below 1 unit" if kind != "number" and max(room) <= 0.5 else ""


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
