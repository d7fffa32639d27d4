"""Tables: rows as inputs of a network, the threat model that fits them, and the way back to rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError, in_one_line, unknown_name
from hauberk.data.dataset import IndexedDataset, Subset, TensorDataset, channel_statistics
from hauberk.data.table_schema import ColumnSchema, EncodedColumn, TableSchema, parse_schema, read_schema
from hauberk.models import ModelSpec, Normalize, StraightThroughRound
from hauberk.threat import ThreatModel, make_threat, parse_eps

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_SEED = 0  # of the split into training and test rows
_INFERRED_EPS = 0.1
_MAX_NAMED = 8  # columns that are named in a line


@dataclass(eq=False, repr=False)
class TableDataset(TensorDataset):
    """Rows of a table, ``x`` (N, D) in the units of the file.

    ``y``, ``classes``, ``name``, ``folder`` and ``probabilities`` are as in :class:`TensorDataset`.

    Attributes:
        features: schema of each column that is used, by name.
        columns: what the D inputs are.
        class_names: what each class is called, for readers: its value, or where that is a number "label = value".
        costs: of missing one of the last class, and of a false alarm.
    """

    features: Mapping[str, ColumnSchema] = field(default_factory=dict)
    columns: tuple[EncodedColumn, ...] = ()
    class_names: tuple[str, ...] = ()
    costs: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as inputs (N, D) in the units of the file; a category is one input of 0 or 1 for each value.

    Attributes:
        schema: what the columns are.
        columns: what the D inputs are.
        classes: values of the label, by class.
        train: training rows.
        test: test rows.
    """

    schema: TableSchema
    columns: tuple[EncodedColumn, ...]
    classes: tuple[str, ...]
    train: TableDataset
    test: TableDataset

    def __repr__(self) -> str:
        rows, columns = f"{len(self.train)} training and {len(self.test)} test rows", len(self.schema.features)
        return f"Table({self.train.name!r}, {rows} of {columns} columns, classes {', '.join(self.train.class_names)})"

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do, in L∞."""
        return self.default_threat()

    def load(self, split: str, folder: str | Path = "", *, verify: bool = True) -> IndexedDataset:
        """Return the training or the test rows; ``folder`` and ``verify`` mean nothing here."""
        return self.train if split == "train" else self.test

    @checked
    def default_threat(self, norm: str = "Linf", eps: str | float = 1.0) -> ThreatModel:
        """Return what the adversary may do: ε, bounds and directions of each input.

        A category that may change has ε 1, so that any value can be reached; an integer's ε is in whole units.

        Args:
            norm: "Linf", "L2" or "L1", of the scaled ball ``‖(x' - x) / ε‖_p ≤ 1``.
            eps: factor of the ε of numbers and integers; empty for 1.
        """
        factor = 1.0 if eps == "" else float(torch.as_tensor(parse_eps(eps)[0]))
        radius, low, high, monotone = [], [], [], []
        for column, std in zip(self.columns, self.train.x.double().std(0, correction=0).tolist(), strict=True):
            feature = self.schema.features[column.feature]
            category = feature.kind == "category"
            reach = 1.0 if category else (self.schema.eps if math.isnan(feature.eps) else feature.eps) * factor * std
            reach = float(math.floor(reach + 1e-9)) if feature.kind == "integer" else reach
            low.append(0.0 if category else feature.low)
            high.append(1.0 if category else feature.high)
            radius.append(0.0 if feature.change == "none" else min(reach, high[-1] - low[-1]))
            monotone.append({"up": 1, "down": -1}.get(feature.change, 0))
        return make_threat(norm, radius, low, high, monotone=torch.tensor(monotone) if any(monotone) else None)

    def default_model(
        self, model: str, dataset: IndexedDataset | None = None, *, extra: int = 0, normalize: bool = True
    ) -> ModelSpec:
        """Return how to build the network ``model`` behind the nearest valid row and normalisation.

        ``extra`` is the number of outputs besides the classes. ``dataset`` and ``normalize`` are not used: these networks
        always normalise, by the training rows; categories pass as 0 and 1, or a rare value would be a huge input.
        """
        mean, std = map(list, channel_statistics(self.train))
        for k, column in enumerate(self.columns):
            mean[k] = 0.0 if column.value else mean[k]
            std[k] = 1.0 if column.value or std[k] < 1e-6 else std[k]
        kinds = {name: feature.kind for name, feature in self.schema.features.items()}
        integers = tuple(self._places(name)[0] for name, kind in kinds.items() if kind == "integer")
        groups = tuple(self._places(name) for name, kind in kinds.items() if kind == "category")
        classes = len(self.classes) + extra
        return ModelSpec(model, (len(self.columns),), classes, tuple(mean), tuple(std), integers, groups)

    @checked
    def wrap(self, module: nn.Module) -> nn.Module:
        """Put the nearest valid row and normalisation before your own network from (B, D) to logits."""
        spec = self.default_model("")
        return nn.Sequential(StraightThroughRound(spec.integers, spec.groups), Normalize(spec.mean, spec.std), module)

    @checked
    def rows(self, x: Tensor) -> "DataFrame":
        """Return the nearest valid rows of inputs (N, D), adversarial ones too, as a pandas DataFrame."""
        from pandas import DataFrame

        spec = self.default_model("")
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise UserError(f"rows of this table are inputs (N, {len(self.columns)}), got {shown(x)}")
        valid = StraightThroughRound(spec.integers, spec.groups)(x.detach().cpu().double())
        found: dict[str, list[Any]] = {}
        for name, feature in self.schema.features.items():
            places = self._places(name)
            if feature.kind == "category":
                found[name] = [self.columns[places[k]].value for k in valid[:, places].argmax(1).tolist()]
            else:
                values = valid[:, places[0]]
                found[name] = (values.long() if feature.kind == "integer" else values).tolist()
        return DataFrame(found)

    def _places(self, name: str) -> tuple[int, ...]:
        return tuple(k for k, column in enumerate(self.columns) if column.feature == name)


@checked
def read_table(path: str | Path) -> Table:
    """Read a table by its schema, a TOML file (see :func:`read_schema`).

    Raises:
        UserError: if pandas is not installed, or a file is missing, damaged or does not fit the schema.
    """
    schema = read_schema(path)
    folder = Path(path).parent
    if not schema.train:
        raise UserError(f"{path}: name the file with the rows, train = ...")
    frame = read_frame(folder / schema.train)
    if schema.test:
        return make_table(schema, frame, read_frame(folder / schema.test), str(path))
    from sklearn.model_selection import train_test_split

    labels = _column(frame, schema.label)
    try:
        train, test = train_test_split(frame, test_size=schema.test_fraction, random_state=_SEED, stratify=labels)
    except ValueError as error:
        raise UserError(f"{path}: rows cannot be split by class: {error}") from error
    return make_table(schema, train, test, str(path))


@checked
def make_table(schema: TableSchema, train: "DataFrame", test: "DataFrame", name: str = "table") -> Table:
    """Make a table of pandas DataFrames. Values of categories and labels are compared as text.

    Args:
        schema: what the columns are.
        train: training rows; means, deviations and unnamed values are theirs.
        test: test rows.
        name: name of the data set.

    Raises:
        UserError: if they do not fit the schema: a column is missing, or a value is not a number, out of bounds or unknown.
    """
    classes = schema.classes or _values_of(train, schema.label)
    if len(classes) < 2:
        raise UserError(f"the label {schema.label!r} has only the value {classes[0]!r}")
    columns: list[EncodedColumn] = []
    for feature_name, feature in schema.features.items():
        values = (feature.values or _values_of(train, feature_name)) if feature.kind == "category" else ("",)
        columns += [EncodedColumn(feature_name, value) for value in values]
    train_rows, test_rows = (_encode(frame, schema, tuple(columns), classes, name) for frame in (train, test))
    return Table(schema, tuple(columns), classes, train_rows, test_rows)


def _encode(
    frame: "DataFrame", schema: TableSchema, columns: tuple[EncodedColumn, ...], classes: Sequence[str], name: str
) -> TableDataset:
    encoded = []
    for feature_name, feature in schema.features.items():
        values = _column(frame, feature_name)
        if feature.kind == "category":
            words, known = values.astype(str), [column.value for column in columns if column.feature == feature_name]
            _check_known(feature_name, words, known)
            encoded += [torch.tensor((words == value).to_numpy(dtype="float64", copy=True)) for value in known]
        else:
            encoded.append(_numbers(values, feature_name, feature))
    label = _column(frame, schema.label).astype(str)
    _check_known(f"the label {schema.label!r}", label, classes)
    index = {value: k for k, value in enumerate(classes)}
    x, y = torch.stack(encoded, 1).float(), torch.tensor([index[value] for value in label])
    names = tuple(f"{schema.label} = {value}" if _is_number(value) else value for value in classes)
    return TableDataset(
        x, y, len(classes), name, features=schema.features, columns=columns, class_names=names, costs=schema.costs
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(frame: "DataFrame", name: str) -> "Series[Any]":
    if not hasattr(frame, "columns"):
        raise UserError(f"rows must be a pandas DataFrame, got {shown(frame)}")
    if name not in frame.columns:
        raise unknown_name("column", name, map(str, frame.columns))
    return frame[name]


def _values_of(frame: "DataFrame", name: str) -> tuple[str, ...]:
    """Return the values of a column as text, in order."""
    return tuple(sorted(map(str, _column(frame, name).unique())))


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


@checked
def read_frame(path: str | Path) -> "DataFrame":
    """Read a CSV or Parquet file.

    Raises:
        UserError: if pandas is not installed, or the file cannot be read.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("tables need pandas; pip install 'hauberk[tables]'") from error
    path = Path(path)
    try:
        return pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path)
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; pip install 'hauberk[tables]'") from error
    except Exception as error:  # pandas and pyarrow raise dozens of kinds
        raise UserError(f"cannot read the table {path}: {in_one_line(error)}") from error


def infer_schema(frame: "DataFrame", label: str, train: str) -> str:
    """Return the text of a schema to start from: kinds guessed from the values, bounds from what is there.

    Args:
        frame: the rows.
        label: column with the class.
        train: name of the file that they were read from.

    Raises:
        UserError: if there is no such column.
    """
    _column(frame, label)
    head = [f"train = {_quoted(train)}", f"label = {_quoted(label)}", f"eps = {_INFERRED_EPS:g}  # standard deviations"]
    features = [line for name in frame.columns if name != label for line in _inferred_feature(str(name), frame[name])]
    try:
        table = make_table(parse_schema("\n".join(head + features), "the first schema"), frame, frame)
        said = f"as inferred, {reach_of(table.train, table.threat)}"
    except UserError as error:
        said = f"cannot be read as it is: {error}"
    return "\n".join([*head, *(f"# {line}" for line in wrap(said, 110)), *features]) + "\n"


def _inferred_feature(name: str, column: Any) -> list[str]:
    from pandas.api.types import is_integer_dtype, is_numeric_dtype

    title, integer = f"[features.{_quoted(name)}]", is_integer_dtype(column)
    if not is_numeric_dtype(column):
        values = ", ".join(_quoted(value) for value in sorted(map(str, column.unique())))
        return ["", title, 'kind = "category"', 'change = "none"', f"values = [{values}]"]
    lines = ["", title, f'kind = "{"integer" if integer else "number"}"', 'change = "any"']
    lines += [f"low = {column.min()}", f"high = {column.max()}"]
    spread = float(column.std(ddof=0))
    if integer and 0 < _INFERRED_EPS * spread < 1:
        lines.append(f"# eps = {math.ceil(110 / spread) / 100:g} would let it change by 1 unit, {_INFERRED_EPS:g} does not")
    return lines


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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


def rows_behind(dataset: IndexedDataset) -> TableDataset | None:
    """Return the rows of a table that ``dataset`` is, or is a part of; None for a data set that is no rows of a table."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, TableDataset) else None


def reach_of(dataset: IndexedDataset, threat: ThreatModel) -> Reach | None:
    """Say which columns of ``dataset`` the ``threat`` model can change; None for a data set that is no rows of a table.

    Raises:
        UserError: if the threat model does not fit the rows.
    """
    if (rows := rows_behind(dataset)) is None:
        return None
    x = rows.x[:1]
    radius = torch.as_tensor(threat.around(x).radius).expand(x.shape[1:]).tolist()
    moving, stuck = [], dict[str, tuple[str, ...]]()
    for name, feature in rows.features.items():
        eps = [one for one, column in zip(radius, rows.columns, strict=True) if column.feature == name]
        why = _hindrance(feature.kind, eps)
        if not why:
            moving.append(name)
        elif feature.change != "none":
            stuck[why] = (*stuck.get(why, ()), name)
    return Reach(len(rows.features), tuple(moving), stuck)


def _hindrance(kind: str, eps: list[float]) -> str:
    """Say why a column cannot change; empty if it can. The nearest row is another one beyond half a unit."""
    if kind == "category" and len(eps) < 2:
        return "it has only one value"
    if max(eps) == 0 and kind != "integer":
        return "ε is 0"
    return "ε is below 1 unit" if kind != "number" and max(eps) <= 0.5 else ""
