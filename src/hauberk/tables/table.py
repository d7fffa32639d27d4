"""Table: rows as inputs of a network, the threat model that fits them, and the way back to rows."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError, in_one_line
from hauberk.data import channel_statistics
from hauberk.models import ModelSpec, Normalize, StraightThroughRound
from hauberk.tables.encode import Column, column_of, columns_of, encode, encode_labels, values_of
from hauberk.tables.reach import Rows
from hauberk.tables.schema import Description, Feature, read_schema
from hauberk.threat import ThreatModel, make_threat

if TYPE_CHECKING:
    from pandas import DataFrame

_SEED = 0  # of the split into training and test rows


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as inputs (N, D) in the units of the file; a category is one column of 0 and 1 for each value.

    Attributes:
        description: what the columns are.
        columns: the D inputs.
        classes: values of the label, by class.
        train: training rows.
        test: test rows.
        std: standard deviation of each input over the training rows, (D,).
    """

    description: Description
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    train: Rows
    test: Rows
    std: Tensor

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do, in L∞."""
        return self.threat_in("Linf")

    def threat_in(self, norm: str, factor: float = 1.0) -> ThreatModel:
        """Return what the adversary may do: ε, bounds and directions of each input.

        A category that may change has ε 1, so that any value can be reached; an integer's ε is in whole units.

        Args:
            norm: "Linf", "L2" or "L1", of the scaled ball ``‖(x' - x) / ε‖_p ≤ 1``.
            factor: that multiplies the ε of numbers.
        """
        features = [self.description.features[column.feature] for column in self.columns]
        eps = [self._eps(feature, float(std), factor) for feature, std in zip(features, self.std, strict=True)]
        low = [0.0 if f.kind == "category" else f.low for f in features]
        high = [1.0 if f.kind == "category" else f.high for f in features]
        ways = torch.tensor([{"up": 1, "down": -1}.get(f.change, 0) for f in features])
        widths = [h - lo for lo, h in zip(low, high, strict=True)]
        reach = [min(e, w) for e, w in zip(eps, widths, strict=True)]
        return make_threat(norm, reach, low, high, monotone=ways if bool(ways.any()) else None)

    def network(self, name: str) -> ModelSpec:
        """Return how to build a network for these rows: the nearest valid row, normalisation, then the named network."""
        return ModelSpec(name, (len(self.columns),), len(self.classes), *self._statistics, self._integers, self._groups)

    def around(self, module: nn.Module) -> nn.Module:
        """Put the nearest valid row and normalisation before your own network from (B, D) to logits."""
        return nn.Sequential(StraightThroughRound(self._integers, self._groups), Normalize(*self._statistics), module)

    def rows(self, x: Tensor) -> "DataFrame":
        """Return the nearest valid rows of inputs (N, D), adversarial ones too, as a pandas DataFrame."""
        from pandas import DataFrame

        valid = StraightThroughRound(self._integers, self._groups)(x.detach().cpu().double())
        found: dict[str, list[Any]] = {}
        for name, feature in self.description.features.items():
            places = [k for k, column in enumerate(self.columns) if column.feature == name]
            if feature.kind == "category":
                found[name] = [self.columns[places[k]].value for k in valid[:, places].argmax(1).tolist()]
            else:
                values = valid[:, places[0]]
                found[name] = (values.long() if feature.kind == "integer" else values).tolist()
        return DataFrame(found)

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of numbers; 0 and 1 for categories, or a rare value would be a huge input."""
        category = [bool(column.value) for column in self.columns]
        mean, std = channel_statistics(self.train)
        return (
            tuple(0.0 if skip else value for skip, value in zip(category, mean, strict=True)),
            tuple(1.0 if skip or value < 1e-6 else value for skip, value in zip(category, std, strict=True)),
        )

    @property
    def _integers(self) -> tuple[int, ...]:
        kinds = [self.description.features[column.feature].kind for column in self.columns]
        return tuple(k for k, kind in enumerate(kinds) if kind == "integer")

    @property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        names = [name for name, feature in self.description.features.items() if feature.kind == "category"]
        return tuple(tuple(k for k, column in enumerate(self.columns) if column.feature == name) for name in names)

    def _eps(self, feature: Feature, std: float, factor: float) -> float:
        if feature.change == "none":
            return 0.0
        if feature.kind == "category":
            return 1.0
        eps = (self.description.eps if math.isnan(feature.eps) else feature.eps) * factor * std
        return float(math.floor(eps + 1e-9)) if feature.kind == "integer" else eps


def read_table(path: str | Path) -> Table:
    """Read a table by its description, a TOML file (see :func:`hauberk.tables.read_schema`).

    Raises:
        UserError: if pandas is not installed, or a file is missing, damaged or does not fit the description.
    """
    description = read_schema(path)
    folder = Path(path).parent
    if not description.train:
        raise UserError(f"{path}: name the file with the rows, train = ...")
    frame = read_frame(folder / description.train)
    if description.test:
        return make_table(description, frame, read_frame(folder / description.test), str(path))
    from sklearn.model_selection import train_test_split

    labels = column_of(frame, description.label)
    try:
        train, test = train_test_split(frame, test_size=description.test_share, random_state=_SEED, stratify=labels)
    except ValueError as error:
        raise UserError(f"{path}: rows cannot be split by class: {error}") from error
    return make_table(description, train, test, str(path))


def make_table(description: Description, train: "DataFrame", test: "DataFrame", name: str = "table") -> Table:
    """Make a table of pandas DataFrames. Values of categories and labels are compared as text.

    Args:
        description: of the columns.
        train: training rows; means, deviations and unnamed values are theirs.
        test: test rows.
        name: of the data set.

    Raises:
        UserError: if they do not fit the description: a column is missing, a value is not a number, is missing, outside its
            bounds, not whole, or unknown.
    """
    classes = description.classes or values_of(train, description.label)
    if len(classes) < 2:
        raise UserError(f"the label {description.label!r} has only the value {classes[0]!r}")
    columns = columns_of(train, description)
    parts = [
        Rows(
            encode(frame, description, columns),
            encode_labels(frame, description.label, classes),
            len(classes),
            name,
            features=description.features,
            columns=columns,
        )
        for frame in (train, test)
    ]
    std = parts[0].x.double().std(0, correction=0)
    return Table(description, columns, classes, parts[0], parts[1], std)


def read_frame(path: Path) -> "DataFrame":
    """Read a CSV or Parquet file.

    Raises:
        UserError: if pandas is not installed, or the file cannot be read.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("tables need pandas; pip install 'hauberk[tables]'") from error
    try:
        return pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path)
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; pip install 'hauberk[tables]'") from error
    except Exception as error:  # pandas and pyarrow raise dozens of kinds
        raise UserError(f"cannot read the table {path}: {in_one_line(error)}") from error
