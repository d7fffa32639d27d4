"""Tables: rows as inputs of a network, the threat model that fits them, and the way back to rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError, in_one_line, unknown_name
from hauberk.data.dataset import IndexedDataset
from hauberk.data.tables.rows import TableDataset, network_for_rows
from hauberk.data.tables.schema import ColumnSchema, EncodedColumn, TableSchema, read_schema
from hauberk.data.time_series import split_by_date
from hauberk.models import InputColumn, ModelSpec, Normalize, StraightThroughRound, from_sklearn
from hauberk.threat import ThreatModel, make_threat, parse_eps

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_SEED = 0  # of the split into training and test rows


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as inputs (N, D) in the units of the file; a category is one input of 0 or 1 for each value.

    Attributes:
        schema: what the columns are.
        columns: what the D inputs are.
        classes: values of the label, by class.
        train: training rows.
        test: test rows.
        dtypes: pandas' dtype of each column of the training rows that is used.
    """

    schema: TableSchema
    columns: tuple[EncodedColumn, ...]
    classes: tuple[str, ...]
    train: TableDataset
    test: TableDataset
    dtypes: Mapping[str, Any] = field(default_factory=dict)

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
        radius, low, high, monotone, groups = [], [], [], [], []
        categories = [name for name, feature in self.schema.features.items() if feature.kind == "category"]
        for column, std in zip(self.columns, self.train.x.double().std(0, correction=0).tolist(), strict=True):
            feature = self.schema.features[column.feature]
            category = feature.kind == "category"
            reach = 1.0 if category else (self.schema.eps if math.isnan(feature.eps) else feature.eps) * factor * std
            reach = float(math.floor(reach + 1e-9)) if feature.kind == "integer" else reach
            low.append(0.0 if category else feature.low)
            high.append(1.0 if category else feature.high)
            radius.append(0.0 if feature.change == "none" else min(reach, high[-1] - low[-1]))
            monotone.append({"up": 1, "down": -1}.get(feature.change, 0))
            groups.append(1 + categories.index(column.feature) if category else 0)
        ways, one_hot = (values if any(values) else None for values in (monotone, groups))
        return make_threat(norm, radius, low, high, monotone=ways, one_hot=one_hot)

    @checked
    def default_model(self, model: str, *, extra: int = 0) -> ModelSpec:
        """Return how to build the network ``model`` behind the nearest valid row and normalisation by the training rows.

        ``extra`` is the number of outputs besides the classes.
        """
        return network_for_rows(model, self.train, extra)

    @checked
    def wrap(self, module: nn.Module) -> nn.Module:
        """Put the nearest valid row and normalisation before your own network from (B, D) to logits."""
        spec = self.default_model("")
        return nn.Sequential(StraightThroughRound(spec.integers, spec.groups), Normalize(spec.mean, spec.std), module)

    @checked
    def from_sklearn(self, estimator: Any) -> nn.Module:
        """Turn a classifier of scikit-learn that was fitted on a data frame of these columns into a module of these inputs.

        It sees the nearest valid row, as a network of :meth:`default_model` does; outputs are in the order of ``classes``. The
        data frame has the columns' own names and values; what was fitted on this table's columns, as they were read, fits.

        Args:
            estimator: as for :func:`hauberk.models.from_sklearn`, which says what becomes an exact module with gradients and
                what answers only; a ``Pipeline`` that begins with a ``ColumnTransformer``, or one of numbers alone.

        Returns:
            The module, (B, D) to logits (B, C).

        Raises:
            UserError: as there, and if it was fitted on a column or a class that the table does not have.
        """
        known, spec = list(getattr(estimator, "feature_names_in_", self.schema.features)), self.default_model("")
        if absent := [name for name in known if name not in self.schema.features]:
            raise UserError(f"the estimator was fitted on the column {absent[0]!r}, which the table does not use")
        columns = []
        for name in known:
            places = self.train.places(name)
            values = [self.columns[place].value for place in places]
            columns.append(InputColumn(name, places, _as_before(values, self.dtypes.get(name)) if values[0] else ()))
        module = from_sklearn(estimator, columns=columns, classes=self.classes)
        return nn.Sequential(StraightThroughRound(spec.integers, spec.groups), module).eval()

    @checked
    def rows(self, x: Tensor) -> "DataFrame":
        """Return the nearest valid rows of inputs (N, D), adversarial ones too, as a DataFrame of the values that were read."""
        from pandas import DataFrame

        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise UserError(f"rows of this table are inputs (N, {len(self.columns)}), got {shown(x)}")
        found = self.train.values(x)
        for name, feature in self.schema.features.items():
            if feature.kind == "category":
                texts = [self.columns[place].value for place in self.train.places(name)]
                before = dict(zip(texts, _as_before(texts, self.dtypes.get(name)), strict=True))
                found[name] = [before[text] for text in found[name]]
        return DataFrame(found)


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
    if schema.date:
        try:
            parts = split_by_date(column_of(frame, schema.date).to_numpy(), schema.test_fraction)
        except UserError as error:
            raise UserError(f"{path}: {schema.date}: {error}") from error
        train, test = (frame.iloc[part.numpy()] for part in parts)
        table = make_table(schema, train, test, str(path))
        train_rows, test_rows = (replace(rows, in_time_order=True) for rows in (table.train, table.test))
        return replace(table, train=train_rows, test=test_rows)
    from sklearn.model_selection import train_test_split

    labels = column_of(frame, schema.label)
    texts_of(frame, schema.label)  # refuses missing ones
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
        UserError: if they do not fit the schema: a column is missing, or a value is missing, not a number, out of bounds or
            unknown.
    """
    classes = schema.classes or values_of(train, schema.label)
    if len(classes) < 2:
        raise UserError(f"the label {schema.label!r} has only the value {classes[0]!r}")
    columns: list[EncodedColumn] = []
    for feature_name, feature in schema.features.items():
        values = (feature.values or values_of(train, feature_name)) if feature.kind == "category" else ("",)
        columns += [EncodedColumn(feature_name, value) for value in values]
    train_rows, test_rows = (_encode(frame, schema, tuple(columns), classes, name) for frame in (train, test))
    dtypes = {feature_name: train[feature_name].dtype for feature_name in schema.features}
    return Table(schema, tuple(columns), classes, train_rows, test_rows, dtypes)


def _encode(
    frame: "DataFrame", schema: TableSchema, columns: tuple[EncodedColumn, ...], classes: Sequence[str], name: str
) -> TableDataset:
    encoded = []
    for feature_name, feature in schema.features.items():
        if feature.kind == "category":
            words, known = texts_of(frame, feature_name), [column.value for column in columns if column.feature == feature_name]
            _check_known(feature_name, words, known)
            encoded += [torch.tensor((words == value).to_numpy(dtype="float64", copy=True)) for value in known]
        else:
            encoded.append(_numbers(column_of(frame, feature_name), feature_name, feature))
    label = texts_of(frame, schema.label)
    _check_known(f"the label {schema.label!r}", label, classes)
    index = {value: k for k, value in enumerate(classes)}
    x, y = torch.stack(encoded, 1).float(), torch.tensor([index[value] for value in label])
    names = tuple(f"{schema.label} = {value}" if _is_number(value) else value for value in classes)
    return TableDataset(
        x, y, len(classes), name, features=schema.features, columns=columns, class_names=names, costs=schema.costs
    )


def _as_before(values: Sequence[str], dtype: Any) -> tuple[Any, ...]:
    """Return values of a category, read as text, as they were in the data frame."""
    dtype = dtype.categories.dtype if hasattr(dtype, "categories") else dtype
    if str(dtype) == "bool":
        return tuple(value == "True" for value in values)
    if getattr(dtype, "kind", "") in "iuf":
        return tuple(np.array(values, dtype=np.float64).astype(dtype).tolist())
    return tuple(values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def column_of(frame: "DataFrame", name: str) -> "Series[Any]":
    """Return a column of the rows; raises UserError if there is none of that name."""
    if not hasattr(frame, "columns"):
        raise UserError(f"rows must be a pandas DataFrame, got {shown(frame)}")
    if name not in frame.columns:
        raise unknown_name("column", name, map(str, frame.columns))
    return frame[name]


def values_of(frame: "DataFrame", name: str) -> tuple[str, ...]:
    """Return the values of a column as text, in order; raises UserError as :func:`texts_of`."""
    return tuple(sorted(texts_of(frame, name).unique()))


def texts_of(frame: "DataFrame", name: str) -> "Series[Any]":
    """Return a column as text; raises UserError if there is none of that name, or values of it are missing."""
    column = column_of(frame, name)
    missing = column.isna().to_numpy()
    if missing.any():
        first = column.index[int(missing.argmax())]
        advice = "leave such rows out, or write a word of its own there"
        raise UserError(f"{name}: {int(missing.sum())} values are missing, the first in row {first}; {advice}")
    return column.astype(str)


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
            first = f"the first in row {values.index[row]}: {numbers[row].item():g}"  # as the file or data frame counts them
            raise UserError(f"{name}: {int(where.sum())} values are {problem}, {first}")
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
        raise UserError("tables need pandas; pip install pandas pyarrow") from error
    path = Path(path)
    try:
        return pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path)
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; pip install pyarrow") from error
    except Exception as error:  # pandas and pyarrow raise dozens of kinds
        raise UserError(f"cannot read the table {path}: {in_one_line(error)}") from error
