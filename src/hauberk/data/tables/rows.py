"""Rows of a table as a data set, and the network that they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hauberk.data.dataset import IndexedDataset, Subset, TensorDataset
from hauberk.data.statistics import channel_statistics
from hauberk.data.tables.schema import ColumnSchema, EncodedColumn
from hauberk.models import ModelSpec


@dataclass(eq=False, repr=False)
class TableDataset(TensorDataset):
    """Rows of a table, ``x`` (N, D) in the units of the file.

    ``y``, ``classes``, ``name``, ``folder`` and ``probabilities`` are as in :class:`TensorDataset`.

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
    kinds = {column: feature.kind for column, feature in rows.features.items()}
    integers = tuple(rows.places(column)[0] for column, kind in kinds.items() if kind == "integer")
    groups = tuple(rows.places(column) for column, kind in kinds.items() if kind == "category")
    return ModelSpec(name, (len(rows.columns),), len(rows.class_names) + extra, tuple(mean), tuple(std), integers, groups)
