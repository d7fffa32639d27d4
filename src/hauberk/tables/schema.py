"""What the columns of a table are, and what an adversary may do to them; read from a TOML file."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import wrap
from typing import Any

from hauberk.core.errors import UserError, unknown_name

KINDS = ("number", "integer", "category")
_DRAFT_EPS = 0.1
CHANGES = ("any", "up", "down", "none")


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes:
        kind: "number"; "integer", which only takes whole values; or "category", which becomes one column of 0 and 1 for each
            value.
        change: what an adversary may do: "any", "up" or "down" (one way only, not for categories), or "none".
        eps: how far, in standard deviations of the training rows, rounded down to whole units for an integer; NaN for the
            table's ε. A category that may change may become any other one.
        low: no valid row is below, in the column's own units.
        high: or above.
        values: of a category; empty for those in the training rows, in order.
    """

    kind: str = "number"
    change: str = "any"
    eps: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """A table.

    Attributes:
        features: by column name, in the order of the encoded inputs; columns that are not named are not used.
        label: column with the class.
        classes: values of the label, the class of interest (default, fraud) last; empty for those in the training rows, in
            order.
        eps: ε of features that state none, in standard deviations.
        train: file with the training rows, CSV or Parquet, relative to the description.
        test: file with the test rows; empty to take ``test_share`` of the training file, by class and with a fixed seed.
        test_share: share of rows to test on where there is no test file.
        costs: of missing one of the last class, and of a false alarm.
    """

    features: Mapping[str, Feature]
    label: str
    classes: tuple[str, ...] = ()
    eps: float = 0.1
    train: str = ""
    test: str = ""
    test_share: float = 0.2
    costs: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.features or self.label in self.features:
            raise UserError("a table needs features, and a label that is none of them")
        if not (0 <= self.eps < math.inf and 0 < self.test_share < 1 and all(0 <= cost < math.inf for cost in self.costs)):
            raise UserError("eps and costs must be finite and not negative, and test_share between 0 and 1")
        for name, feature in self.features.items():
            if feature.kind not in KINDS or feature.change not in CHANGES:
                raise UserError(f"{name}: kind is one of {', '.join(KINDS)}, change one of {', '.join(CHANGES)}")
            if feature.kind == "category" and feature.change in ("up", "down"):
                raise UserError(f"{name}: a category has no order; its change is 'any' or 'none'")
            if feature.eps < 0 or not feature.low < feature.high:
                raise UserError(f"{name}: eps must not be negative, and low must be below high")


def read_schema(path: str | Path) -> Description:
    """Read a description from a TOML file.

    Example::

        train = "credit.csv"
        label = "default"
        eps = 0.2                  # standard deviations
        costs = [5, 1]             # of missing a default, of a false alarm

        [features.LIMIT_BAL]       # a number that may change either way
        low = 0
        [features.AGE]
        kind = "integer"
        change = "none"
        [features.PAY_AMT1]
        change = "up"
        [features.EDUCATION]
        kind = "category"
        values = ["0", "1", "2", "3"]

    Raises:
        UserError: if it cannot be read, or a key is unknown or has the wrong type.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the description {path}: {error}") from error
    return _parsed(text, path)


def _parsed(text: str, path: str | Path) -> Description:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"cannot read the description {path}: {error}") from error
    tables = raw.pop("features", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path}: features must be tables, [features.NAME]")
    try:
        features = {name: Feature(**_typed(Feature, table, f"{path}: {name}")) for name, table in tables.items()}
        return Description(features, **_typed(Description, raw, str(path)))
    except TypeError as error:
        raise UserError(f"{path}: no label is named") from error


def draft(frame: Any, label: str, train: str) -> str:
    """Return the text of a description to start from: kinds guessed from the values, bounds from what is there.

    Args:
        frame: pandas DataFrame.
        label: column with the class.
        train: name of the file that it was read from.

    Raises:
        UserError: if there is no such column.
    """
    from pandas.api.types import is_integer_dtype, is_numeric_dtype

    if label not in frame.columns:
        raise unknown_name("column", label, [str(name) for name in frame.columns])
    lines = [f"train = {_quoted(train)}", f"label = {_quoted(label)}", f"eps = {_DRAFT_EPS:g}  # standard deviations"]
    for name in frame.columns:
        if name == label:
            continue
        column = frame[name]
        lines += ["", f"[features.{_quoted(str(name))}]"]
        if not is_numeric_dtype(column):
            values = ", ".join(_quoted(value) for value in sorted(map(str, column.unique())))
            lines += ['kind = "category"', 'change = "none"', f"values = [{values}]"]
        else:
            lines += [f'kind = "{"integer" if is_integer_dtype(column) else "number"}"', 'change = "any"']
            lines += [f"low = {column.min()}", f"high = {column.max()}"]
            spread = float(column.std(ddof=0))
            if is_integer_dtype(column) and 0 < _DRAFT_EPS * spread < 1:
                lines.append(
                    f"# eps = {math.ceil(110 / spread) / 100:g} would let it change by 1 unit, {_DRAFT_EPS:g} does not"
                )
    return "\n".join([*lines[:3], *_said_of(frame, "\n".join(lines)), *lines[3:]]) + "\n"


def _said_of(frame: Any, text: str) -> list[str]:
    """Say in a comment what an adversary can change by the description that was drafted for the rows."""
    from hauberk.tables.reach import reach_of
    from hauberk.tables.table import make_table  # which builds on this module

    try:
        table = make_table(_parsed(text, "the draft"), frame, frame)
        said = f"as drafted, {reach_of(table.train, table.threat)}"
    except UserError as error:
        said = f"cannot be read as it is: {error}"
    return [f"# {line}" for line in wrap(said, 110)]


def _typed(kind: type, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Check names and types of the keys of a TOML table against the fields of a dataclass."""
    known = {f.name: f.type for f in fields(kind)}
    typed: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}: {unknown_name('key', key, known)}")
        wanted = known[key]
        if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
            typed[key] = float(value)
        elif wanted is str and isinstance(value, str):
            typed[key] = value
        elif isinstance(value, list) and wanted == tuple[str, ...]:
            typed[key] = tuple(str(one) for one in value)
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
            typed[key] = (float(value[0]), float(value[1]))
        else:
            raise UserError(f"{where}: {key} = {value!r} has the wrong type")
    return typed


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
