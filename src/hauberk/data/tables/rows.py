"""Rows of a table as a data set, and the network that they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hauberk.data.dataset import IndexedDataset, Subset, TensorDataset
from hauberk.data.statistics import channel_statistics
from hauberk.data.tables.schema import ColumnSchema, EncodedColumn
from hauberk.models import ModelSpec, StraightThroughRound


@dataclass(eq=False, repr=False)
class TableDataset(TensorDataset):
    """Rows of a table, ``x`` (N, D) in the units of the file.

    ``y``, ``classes``, ``name``, ``folder``, ``probabilities`` and ``labelled_by`` are as in :class:`TensorDataset`.

    Attributes:
        features: schema of each column that is used, by name.
        columns: what the D inputs are.
        class_names: what each class is called, for readers: its value, or where that is a number "label = value".
        costs: of missing one of the last class, and of a false alarm.
        in_time_order: whether the rows are split by date, so that they come in its order.
    """

    features: Mapping[str, ColumnSchema] = field(default_factory=dict)
    columns: tuple[EncodedColumn, ...] = ()
    class_names: tuple[str, ...] = ()
    costs: tuple[float, float] = (1.0, 1.0)
    in_time_order: bool = False

    def places(self, name: str) -> tuple[int, ...]:
        """Return which inputs a column is."""
        return tuple(k for k, column in enumerate(self.columns) if column.feature == name)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the nearest valid rows of inputs (N, D): whole integers, one value of each category."""
        return StraightThroughRound(*_discrete(self))(x.detach())  # type: ignore[no-any-return]

    def values(self, x: Tensor) -> dict[str, list[Any]]:
        """Return, by column, the values of the nearest valid rows of inputs (N, D); of a category as text."""
        valid = self.nearest(x.cpu().double())
        found: dict[str, list[Any]] = {}
        for name, feature in self.features.items():
            places = self.places(name)
            if feature.kind == "category":
                found[name] = [self.columns[places[k]].value for k in valid[:, places].argmax(1).tolist()]
            else:
                numbers = valid[:, places[0]]
                found[name] = (numbers.long() if feature.kind == "integer" else numbers).tolist()
        return found


def rows_behind(dataset: IndexedDataset) -> TableDataset | None:
    """Return the rows of a table that ``dataset`` is, or is a part of; None for a data set that is no rows of a table."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, TableDataset) else None


def network_for_rows(name: str, rows: TableDataset, extra: int = 0) -> ModelSpec:
    """Return how to build a network behind the nearest valid row and normalisation by the mean and deviation of all rows.

    Categories pass as 0 and 1, or a rare value would be a huge input; ``extra`` is the number of outputs besides the classes.
    """
    mean, std = map(list, channel_statistics(rows))
    for k, column in enumerate(rows.columns):
        mean[k] = 0.0 if column.value else mean[k]
        std[k] = 1.0 if column.value or std[k] < 1e-6 else std[k]
    return ModelSpec(name, (len(rows.columns),), len(rows.class_names) + extra, tuple(mean), tuple(std), *_discrete(rows))


def _discrete(rows: TableDataset) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return which inputs are whole numbers, and which those of each category are."""
    kinds = {column: feature.kind for column, feature in rows.features.items()}
    integers = tuple(rows.places(column)[0] for column, kind in kinds.items() if kind == "integer")
    return integers, tuple(rows.places(column) for column, kind in kinds.items() if kind == "category")
