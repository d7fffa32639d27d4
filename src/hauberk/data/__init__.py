"""Data sets by name or from Python; every input stays inside its declared bounds."""

from hauberk.data.augmentation import AUGMENTATIONS, Augmentation, augment, find_augmentation
from hauberk.data.dataset import (
    ConcatDataset,
    IndexedDataset,
    MapDataset,
    Subset,
    TensorDataset,
    as_dataset,
    labels,
)
from hauberk.data.digest import data_digest
from hauberk.data.extra import as_extra, read_extra
from hauberk.data.fetch import fetch_for, to_device
from hauberk.data.named import DATASETS, DatasetInfo, find_dataset, load_data
from hauberk.data.overlap import ClassOverlap, class_overlap
from hauberk.data.pseudo_labels import pseudo_label
from hauberk.data.standard_subset import standard_subset
from hauberk.data.statistics import channel_statistics, check_dataset, long_tail
from hauberk.data.tables import (
    ColumnSchema,
    EncodedColumn,
    Reach,
    Table,
    TableDataset,
    TableSchema,
    infer_schema,
    make_table,
    reach_of,
    read_frame,
    read_schema,
    read_table,
)
from hauberk.data.time_series import Before, WindowDataset, make_windows, split_by_date, window_constraints

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Before",
    "ClassOverlap",
    "ColumnSchema",
    "ConcatDataset",
    "DatasetInfo",
    "EncodedColumn",
    "IndexedDataset",
    "MapDataset",
    "Reach",
    "Subset",
    "Table",
    "TableDataset",
    "TableSchema",
    "TensorDataset",
    "WindowDataset",
    "as_dataset",
    "as_extra",
    "augment",
    "channel_statistics",
    "check_dataset",
    "class_overlap",
    "data_digest",
    "fetch_for",
    "find_augmentation",
    "find_dataset",
    "infer_schema",
    "labels",
    "load_data",
    "long_tail",
    "make_table",
    "make_windows",
    "pseudo_label",
    "reach_of",
    "read_extra",
    "read_frame",
    "read_schema",
    "read_table",
    "split_by_date",
    "standard_subset",
    "to_device",
    "window_constraints",
]
