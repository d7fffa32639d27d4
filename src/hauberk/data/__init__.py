"""Data sets by name or from Python; every input stays inside its declared bounds."""

from hauberk.data.augment import Augmentation, augment
from hauberk.data.dataset import Arrays, Items, Joined, Part, Source, as_source, fetch_for
from hauberk.data.digest import data_digest
from hauberk.data.named import DATASETS, find_files, load_data
from hauberk.data.pseudo import pseudo_label
from hauberk.data.resident import resident
from hauberk.data.statistics import channel_statistics, check_source, labels, long_tail

__all__ = [
    "DATASETS",
    "Arrays",
    "Augmentation",
    "Items",
    "Joined",
    "Part",
    "Source",
    "as_source",
    "augment",
    "channel_statistics",
    "check_source",
    "data_digest",
    "fetch_for",
    "find_files",
    "labels",
    "load_data",
    "long_tail",
    "pseudo_label",
    "resident",
]
