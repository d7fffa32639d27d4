"""The description of a table: its columns, how rows become inputs of a network, and which columns an attack can change."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.core.io import json_roundtrip
from hauberk.data import IndexedDataset, Subset, TensorDataset
from hauberk.threat import ThreatModel

KINDS = ("number", "integer", "category")
CHANGES = ("any", "up", "down", "none")


@dataclass(frozen=True)
class ColumnSchema:
    """What a column is.

    Attributes:
        kind: "number"; "integer", which only takes whole values; or "category", which becomes one input of 0 or 1 a value.
        change: what an adversary may do: "any", "up" or "down" (one way only, not for categories), or "none".
        eps: how far, in standard deviations of the training rows, rounded down to whole units for an integer; NaN for the
            table's ε. A category that may change may become any other one.
        low: smallest value of a valid row, in the column's own units.
        high: largest value of a valid row.
        values: values of a category; empty for those in the training rows, in order.
    """

    kind: str = "number"
    change: str = "any"
    eps: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableSchema:
    """What a table is.

    Attributes:
        features: schema of each column that is used, by name, in the order of the inputs.
        label: column with the class.
        classes: values of the label, the class of interest (default, fraud) last; empty for those in the training rows.
        eps: ε of features that state none, in standard deviations.
        train: file with the training rows, CSV or Parquet, relative to the schema's file.
        test: file with the test rows; empty to take ``test_fraction`` of the training file, by class and with a fixed seed.
        test_fraction: fraction of the rows to test on where there is no test file.
        costs: cost of missing one of the last class, and of a false alarm.
    """

    features: Mapping[str, ColumnSchema]
    label: str
    classes: tuple[str, ...] = ()
    eps: float = 0.1
    train: str = ""
    test: str = ""
    test_fraction: float = 0.2
    costs: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.features or self.label in self.features:
            raise UserError("a table needs features, and a label that is none of them")
        if not (0 <= self.eps < math.inf and 0 < self.test_fraction < 1 and all(0 <= cost < math.inf for cost in self.costs)):
            raise UserError("eps and costs must be finite and not negative, and test_fraction between 0 and 1")
        for name, feature in self.features.items():
            if feature.kind not in KINDS or feature.change not in CHANGES:
                raise UserError(f"{name}: kind is one of {', '.join(KINDS)}, change one of {', '.join(CHANGES)}")
            if feature.kind == "category" and feature.change in ("up", "down"):
                raise UserError(f"{name}: a category has no order; its change is 'any' or 'none'")
            if feature.eps < 0 or not feature.low < feature.high:
                raise UserError(f"{name}: eps must not be negative, and low must be below high")


def read_schema(path: str | Path) -> TableSchema:
    """Read the schema of a table from a TOML file; docs/tables.md shows one.

    Raises:
        UserError: if it cannot be read, or a key is unknown or has the wrong type.
    """
    try:
        return parse_schema(Path(path).read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the schema {path}: {error}") from error


def parse_schema(text: str, path: str | Path) -> TableSchema:
    """Read a schema from its TOML ``text``, as :func:`read_schema`; ``path`` is its name for error messages."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"cannot read the schema {path}: {error}") from error
    tables = raw.pop("features", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path}: features must be tables, [features.NAME]")
    try:
        features = {name: ColumnSchema(**_typed(ColumnSchema, table, f"{path}: {name}")) for name, table in tables.items()}
        return TableSchema(features, **_typed(TableSchema, raw, str(path)))
    except TypeError as error:
        raise UserError(f"{path}: no label is named") from error


_PAIRS = ([int, int], [int, float], [float, int], [float, float])


def _typed(kind: type, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Check names and types of the keys of a TOML table against the fields of a dataclass."""
    known = {f.name: f.type for f in fields(kind)}
    typed: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}: {unknown_name('key', key, known)}")
        wanted = known[key]
        if wanted is float and type(value) in (int, float):
            typed[key] = float(value)
        elif wanted is str and isinstance(value, str):
            typed[key] = value
        elif isinstance(value, list) and wanted == tuple[str, ...]:
            typed[key] = tuple(map(str, value))
        elif isinstance(value, list) and wanted == tuple[float, float] and [*map(type, value)] in _PAIRS:
            typed[key] = (float(value[0]), float(value[1]))
        else:
            raise UserError(f"{where}: {key} = {value!r} has the wrong type")
    return typed


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
