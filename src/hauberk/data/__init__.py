"""Data sets by name or from Python; every input stays inside its declared bounds."""

from hauberk.data.augment import AUGMENTATIONS, Augmentation, augment, find_augmentation
from hauberk.data.dataset import (
    ConcatDataset,
    IndexedDataset,
    MapDataset,
    Subset,
    TensorDataset,
    as_dataset,
    fetch_for,
    labels,
    pseudo_label,
    to_device,
)
from hauberk.data.named import DATASETS, DatasetInfo, NamedDataset, find_dataset, load_data
from hauberk.data.statistics import channel_statistics, check_dataset, data_digest, long_tail

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "ConcatDataset",
    "DatasetInfo",
    "IndexedDataset",
    "MapDataset",
    "NamedDataset",
    "Subset",
    "TensorDataset",
    "as_dataset",
    "augment",
    "channel_statistics",
    "check_dataset",
    "data_digest",
    "fetch_for",
    "find_augmentation",
    "find_dataset",
    "labels",
    "load_data",
    "long_tail",
    "pseudo_label",
    "to_device",
]
