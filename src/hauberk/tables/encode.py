"""From rows of a pandas DataFrame to inputs of a network, with every value checked; and which columns an attack can change."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.core.io import json_roundtrip
from hauberk.data import IndexedDataset, Subset, TensorDataset
from hauberk.tables.schema import ColumnSchema, TableSchema
from hauberk.threat import ThreatModel

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_MAX_NAMED = 8  # columns that are named in a line


@dataclass(frozen=True)
class EncodedColumn:
    """One input of the network: the number ``feature``, or a ``value`` of the category ``feature`` (empty for a number)."""

    feature: str
    value: str = ""


@dataclass(eq=False)
class TableDataset(TensorDataset):
    """Rows of a table in memory, which know what their columns are.

    Attributes:
        x: inputs, (N, D), in the units of the file.
        y: labels, (N,) int64.
        classes: number of classes.
        name: name of the data set: the file of the schema.
        folder: empty, because the schema says where its rows are.
        features: schema of each column that is used, by name.
        columns: what the D inputs are.
    """

    features: Mapping[str, ColumnSchema] = field(default_factory=dict)
    columns: tuple[EncodedColumn, ...] = ()


@dataclass(frozen=True)
class Reach:
    """What an adversary can change.

    Attributes:
        columns: number of columns that are used.
        moving: those that can change.
        stuck: those that may change by the schema but cannot, by the reason.
    """

    columns: int
    moving: tuple[str, ...]
    stuck: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        parts = [f"{len(self.moving)} of {self.columns} columns can change"]
        for why, names in self.stuck.items():
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            parts.append(f"{', '.join(names[:_MAX_NAMED])}{more} may change but cannot: {why}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        plain: dict[str, Any] = json_roundtrip(asdict(self))
        return plain


def reach_of(dataset: IndexedDataset, threat: ThreatModel) -> Reach | None:
    """Say which columns of ``dataset`` the ``threat`` model can change; None for a data set that is no rows of a table.

    Raises:
        UserError: if the threat model does not fit the rows.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not isinstance(dataset, TableDataset):
        return None
    x = dataset.x[:1]
    radius = torch.as_tensor(threat.around(x).radius).expand(x.shape[1:]).tolist()
    moving, stuck = [], dict[str, tuple[str, ...]]()
    for name, feature in dataset.features.items():
        eps = [one for one, column in zip(radius, dataset.columns, strict=True) if column.feature == name]
        why = _hindrance(feature.kind, eps)
        if not why:
            moving.append(name)
        elif feature.change != "none":
            stuck[why] = (*stuck.get(why, ()), name)
    return Reach(len(dataset.features), tuple(moving), stuck)


def columns_of(frame: "DataFrame", schema: TableSchema) -> tuple[EncodedColumn, ...]:
    """Return the inputs that the features become; values of a category that names none are those in the rows."""
    columns: list[EncodedColumn] = []
    for name, feature in schema.features.items():
        values = (feature.values or values_of(frame, name)) if feature.kind == "category" else ("",)
        columns += [EncodedColumn(name, value) for value in values]
    return tuple(columns)


def values_of(frame: "DataFrame", name: str) -> tuple[str, ...]:
    """Return the values of a column as text, in order."""
    return tuple(sorted(map(str, column_of(frame, name).unique())))


def column_of(frame: "DataFrame", name: str) -> "Series[Any]":
    """Return a column, or raise UserError if there is none of that name."""
    if name not in frame.columns:
        raise unknown_name("column", name, map(str, frame.columns))
    return frame[name]


def encode(
    frame: "DataFrame", schema: TableSchema, columns: Sequence[EncodedColumn], classes: Sequence[str], name: str
) -> TableDataset:
    """Return the rows of ``frame`` as a data set of this ``name``, with these ``columns`` and ``classes``.

    Raises:
        UserError: if a column is missing, or a value is missing, not finite, out of bounds, not whole or unknown.
    """
    encoded = []
    for column in columns:
        values, feature = column_of(frame, column.feature), schema.features[column.feature]
        if feature.kind == "category":
            encoded.append(torch.tensor((values.astype(str) == column.value).to_numpy(copy=True), dtype=torch.float64))
        else:
            encoded.append(_numbers(values, column.feature, feature))
    for feature_name, feature in schema.features.items():
        if feature.kind == "category":
            known = [column.value for column in columns if column.feature == feature_name]
            _check_known(feature_name, frame[feature_name].astype(str), known)
    label = column_of(frame, schema.label).astype(str)
    _check_known(f"the label {schema.label!r}", label, classes)
    index = {value: k for k, value in enumerate(classes)}
    x, y = torch.stack(encoded, 1).float(), torch.tensor([index[value] for value in label])
    return TableDataset(x, y, len(classes), name, features=schema.features, columns=tuple(columns))


def _numbers(values: "Series[Any]", name: str, feature: ColumnSchema) -> Tensor:
    try:
        numbers = torch.tensor(values.to_numpy(dtype="float64", copy=True))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}; a column of words is a category") from error
    problems = {
        "not finite or missing": ~numbers.isfinite(),
        f"outside [{feature.low:g}, {feature.high:g}]": (numbers < feature.low) | (numbers > feature.high),
        "not whole": (numbers != numbers.round()) & (feature.kind == "integer"),
        "beyond what float32 counts exactly": (numbers.abs() > 2**24) & (feature.kind == "integer"),
    }
    for problem, where in problems.items():
        if bool(where.any()):
            row = int(where.nonzero()[0])
            raise UserError(f"{name}: {int(where.sum())} values are {problem}, the first in row {row}: {numbers[row].item():g}")
    return numbers


def _check_known(name: str, found: "Series[Any]", known: Sequence[str]) -> None:
    if unknown := sorted(set(found) - set(known)):
        raise UserError(f"{name} has values that are not described: {', '.join(unknown[:5])}")


def _hindrance(kind: str, eps: list[float]) -> str:
    """Say why a column cannot change; empty if it can. The nearest row is another one beyond half a unit."""
    if kind == "category" and len(eps) < 2:
        return "it has only one value"
    if max(eps) == 0 and kind != "integer":
        return "ε is 0"
    return "ε is below 1 unit" if kind != "number" and max(eps) <= 0.5 else ""
