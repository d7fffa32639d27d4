"""Data sets by name or from Python; every input stays inside its declared bounds."""

from hauberk.data.augmentation import AUGMENTATIONS, Augmentation, augment, find_augmentation
from hauberk.data.dataset import (
    ConcatDataset,
    IndexedDataset,
    MapDataset,
    Subset,
    TensorDataset,
    as_dataset,
    channel_statistics,
    check_dataset,
    data_digest,
    fetch_for,
    labels,
    long_tail,
    pseudo_label,
    to_device,
)
from hauberk.data.extra import as_extra, read_extra
from hauberk.data.named import DATASETS, DatasetInfo, find_dataset, load_data
from hauberk.data.standard_subset import standard_subset
from hauberk.data.table import Table, TableDataset, make_table, read_frame, read_table
from hauberk.data.table_draft import infer_schema
from hauberk.data.table_reach import Reach, reach_of
from hauberk.data.table_schema import ColumnSchema, EncodedColumn, TableSchema, read_schema
from hauberk.data.time_series import Before, WindowDataset, make_windows, split_by_date, window_constraints

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Before",
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
