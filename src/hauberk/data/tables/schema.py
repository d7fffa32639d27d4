"""The schema of a table, a TOML file: its columns, and what an adversary may do to each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hauberk.core.arguments import check_fields, checked, shown
from hauberk.core.errors import UserError, unknown_name
from hauberk.core.toml import parse_toml, read_toml

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

    def __post_init__(self) -> None:
        check_fields(self, finite=False)


@dataclass(frozen=True)
class EncodedColumn:
    """One input of the network: the number ``feature``, or a ``value`` of the category ``feature`` (empty for a number)."""

    feature: str
    value: str = ""


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
        test_fraction: fraction of the rows to test on where there is no test file; by date, at most so many.
        date: column of dates or numbers to split by where there is no test file: the test rows are the last ones; empty to
            draw them.
        costs: cost of missing one of the last class, and of a false alarm.
    """

    features: Mapping[str, ColumnSchema]
    label: str
    classes: tuple[str, ...] = ()
    eps: float = 0.1
    train: str = ""
    test: str = ""
    test_fraction: float = 0.2
    date: str = ""
    costs: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, feature in self.features.items():
            if not isinstance(feature, ColumnSchema):
                raise UserError(f"features must be ColumnSchemas by name, {name!r} is {shown(feature)}")
        if not self.features or self.label in self.features:
            raise UserError("a table needs features, and a label that is none of them")
        if not (0 <= self.eps < math.inf and 0 < self.test_fraction < 1 and all(0 <= cost < math.inf for cost in self.costs)):
            raise UserError("eps and costs must be finite and not negative, and test_fraction between 0 and 1")
        if self.test and self.date:
            raise UserError("test rows are those of a file, or the last ones by date: leave out test or date")
        for name, feature in self.features.items():
            if feature.kind not in KINDS or feature.change not in CHANGES:
                raise UserError(f"{name}: kind is one of {', '.join(KINDS)}, change one of {', '.join(CHANGES)}")
            if feature.kind == "category" and feature.change in ("up", "down"):
                raise UserError(f"{name}: a category has no order; its change is 'any' or 'none'")
            if feature.eps < 0 or not feature.low < feature.high:
                raise UserError(f"{name}: eps must not be negative, and low must be below high")


@checked
def read_schema(path: str | Path) -> TableSchema:
    """Read the schema of a table from a TOML file; docs/tables.md shows one.

    Raises:
        UserError: if it cannot be read, or a key is unknown or has the wrong type.
    """
    return _as_schema(read_toml(path, "schema"), path)


def parse_schema(text: str, path: str | Path) -> TableSchema:
    """Read a schema from its TOML ``text``, as :func:`read_schema`; ``path`` is its name for error messages."""
    return _as_schema(parse_toml(text, path, "schema"), path)


def _as_schema(raw: dict[str, Any], path: str | Path) -> TableSchema:
    """Check what a schema's file holds."""
    tables = raw.pop("features", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path}: features must be tables, [features.NAME]")
    try:
        features = {name: ColumnSchema(**_typed(ColumnSchema, table, f"{path}: {name}")) for name, table in tables.items()}
        return TableSchema(features, **_typed(TableSchema, raw, str(path)))
    except TypeError as error:
        raise UserError(f"{path}: no label is named") from error
    except OverflowError as error:
        raise UserError(f"{path}: a number is too large") from error


def _typed(kind: type, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Check names and types of the keys of a TOML table against the fields of a dataclass."""
    known = {f.name: f.type for f in fields(kind)}
    typed: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}: {unknown_name('key', key, known)}")
        wanted, is_list = known[key], isinstance(value, list)
        if wanted is float and type(value) in (int, float):
            typed[key] = float(value)
        elif wanted is str and isinstance(value, str):
            typed[key] = value
        elif wanted == tuple[str, ...] and is_list:
            typed[key] = tuple(map(str, value))
        elif wanted == tuple[float, float] and is_list and len(value) == 2 and {*map(type, value)} <= {int, float}:
            typed[key] = (float(value[0]), float(value[1]))
        else:
            raise UserError(f"{where}: {key} = {value!r} has the wrong type")
    return typed
