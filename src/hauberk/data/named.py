"""Data sets by name: built in, a table by the file of its schema, or your own by import path."""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, first_line, unknown_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.data.dataset import IndexedDataset, as_dataset, in_memory, labels
from hauberk.data.readers import ImagesAndLabels, read_cifar, read_files, read_mnist, read_svhn
from hauberk.data.tables.table import Table, read_table
from hauberk.threat import ThreatModel, make_threat

Split: TypeAlias = Literal["train", "test"]

TABLE_SUFFIX = ".toml"  # a name that ends so is the file of a table's schema


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that is read from a local folder.

    Attributes:
        name: name of the data set.
        summary: what it is, in one line.
        read: returns what :func:`as_dataset` takes, of ``(split, folder)``; or, where there are ``files``, of their paths and
            contents.
        classes: number of classes, or None if it is not known.
        eps: ε of the L∞ threat model that the literature uses on it; empty for none.
        augmentation: name of the usual augmentation.
        folders: where the original files may lie below the data folder.
        home: where to get them.
        torchvision: class of ``torchvision.datasets`` that downloads them; empty for none.
    """

    name: str
    summary: str
    read: Callable[..., Any]
    classes: int | None = None
    eps: str = ""
    augmentation: str = "none"
    folders: tuple[str, ...] = ()
    home: str = ""
    torchvision: str = ""

    def __repr__(self) -> str:
        return f"DatasetInfo({self.name!r}, {self.summary})"

    def files(self, split: str) -> dict[str, str]:
        """Return the names of the original files of a split, with the MD5 of their content (uncompressed for idx)."""
        rows = [row.split() for row in _CHECKSUMS.splitlines()]
        return {file: md5 for name, part, md5, file in filter(None, rows) if (name, part) == (self.name, split)}

    def load(self, split: Split, folder: str | Path = "data", *, verify: bool = True) -> IndexedDataset:
        """Read the examples of a split, as :func:`load_data`."""
        if files := self.files(split):
            found = self.read(read_files(self._find_files([*files], Path(folder)), files if verify else None))
        else:
            found = self.read(split, Path(folder))
        dataset = copy(as_dataset(found))
        dataset.name, dataset.folder, dataset.classes = self.name, str(folder), self.classes or dataset.classes
        if dataset.classes and in_memory(dataset):
            low, high = labels(dataset).aminmax()
            if low < 0 or high >= dataset.classes:
                raise UserError(f"{self.name} {split}: labels must be 0 to {dataset.classes - 1}, found {low} to {high}")
        return dataset

    def default_threat(self, norm: str = "Linf", eps: str = "") -> ThreatModel:
        """Return the threat model of this ``norm`` and ``eps``; without them, the literature's ε in L∞."""
        if not eps and (norm != "Linf" or not self.eps):
            raise UserError(f"give --eps: there is no usual radius of {self.name} in {norm}")
        return make_threat(norm, eps or self.eps)

    def _find_files(self, names: list[str], folder: Path) -> list[Path]:
        """Find the original files below a folder, each perhaps with ``.gz``."""
        for place in (folder, *(folder / sub for sub in self.folders)):
            found = [place / (name if (place / name).is_file() else f"{name}.gz") for name in names]
            if all(path.is_file() for path in found):
                return found
        raise UserError(
            f"{self.name}: {', '.join(names)} not found in {folder} or its subfolders {', '.join(self.folders)}. "
            f"Get the original files from {self.home} or with 'hauberk data {self.name} --download'; "
            "--data-dir names the folder"
        )


@checked
def find_dataset(name: str) -> DatasetInfo | Table:
    """Return what the ``name`` of a data set, as for :func:`load_data`, stands for.

    The module of an import path is imported when the data are loaded, and not before.

    Raises:
        UserError: for an unknown name, and as :func:`read_table` for a table.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name.endswith(TABLE_SUFFIX):
        return read_table(name)
    if is_import_path(name):
        return DatasetInfo(name, "a data set of your own", partial(_call, name))
    if set(name) & set("./:"):
        raise UserError(
            f"unknown data set {name!r}; a table is named by its schema, FILE.toml ('hauberk data ROWS.csv --label COLUMN' "
            "writes a first one), a data set of your own by package.module:attribute"
        )
    raise unknown_name("data set", name, DATASETS)


@checked
def load_data(name: str, split: Split, folder: str | Path = "data", *, verify: bool = True) -> IndexedDataset:
    """Load a data set.

    Args:
        name: a name in ``DATASETS``; the schema of a table, ``FILE.toml`` (see :func:`read_table`); or
            ``"package.module:attribute"``, which imports your function ``f(split, folder)``: it returns whatever
            :func:`as_dataset` takes, such as a pair (x, y) of arrays or a map-style ``Dataset``.
        split: ``"train"`` or ``"test"``.
        folder: where the original files are, directly or in their usual subfolder.
        verify: compare checksums with the original files'.

    Returns:
        The examples. Of a built-in set, images (N, C, H, W) in [0, 1], stored as bytes where the files do, and labels.

    Raises:
        UserError: for an unknown name, files that are missing, damaged or not the original ones, and data that cannot be read.
    """
    return find_dataset(name).load(split, folder, verify=verify)


def download(name: str, folder: Path) -> None:
    """Download a built-in data set into ``folder`` with torchvision, in its original format, and verify it.

    Raises:
        UserError: if torchvision is missing or cannot be imported, or the download fails.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    known = DATASETS[name]
    if not known.torchvision:
        return
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        why = f"torchvision, which cannot be imported here ({first_line(error)})"
        raise UserError(f"downloads go through {why}; get {name} from {known.home}") from error
    try:
        for split in ("train", "test"):
            options = {"split": split} if name == "svhn" else {"train": split == "train"}
            getattr(datasets, known.torchvision)(str(folder), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise UserError(f"downloading {name} failed: {error}; get it from {known.home}") from error
    load_data(name, "test", folder)


def _call(path: str, split: str, folder: Path) -> Any:
    function = import_object(path, "data set")
    try:
        inspect.signature(function).bind(split, folder)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} must be a function of (split, folder) that returns a data set: {error}") from error
    return function(split, folder)


def _digits(split: str, folder: Path) -> ImagesAndLabels:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # grey levels 0 to 16
    train_x, test_x, train_y, test_y = train_test_split(images, y, test_size=0.2, random_state=0, stratify=y)
    return (train_x, train_y) if split == "train" else (test_x, test_y)


# Data set, split, MD5 and name of each original file.
_CHECKSUMS = """
mnist train 6bbc9ace898e44ae57da46a324031adb train-images-idx3-ubyte
mnist train a25bea736e30d166cdddb491f175f624 train-labels-idx1-ubyte
mnist test 2646ac647ad5339dbf082846283269ea t10k-images-idx3-ubyte
mnist test 27ae3e4e09519cfbb04c329615203637 t10k-labels-idx1-ubyte
fashion-mnist train f4a8712d7a061bf5bd6d2ca38dc4d50a train-images-idx3-ubyte
fashion-mnist train 9018921c3c673c538a1fc5bad174d6f9 train-labels-idx1-ubyte
fashion-mnist test 8181f5470baa50b63fa0f6fddb340f0a t10k-images-idx3-ubyte
fashion-mnist test 15d484375f8d13e6eb1aabb0c3f46965 t10k-labels-idx1-ubyte
cifar10 train c99cafc152244af753f735de768cd75f data_batch_1
cifar10 train d4bba439e000b95fd0a9bffe97cbabec data_batch_2
cifar10 train 54ebc095f3ab1f0389bbae665268c751 data_batch_3
cifar10 train 634d18415352ddfa80567beed471001a data_batch_4
cifar10 train 482c414d41f54cd18b22e5b47cb7c3cb data_batch_5
cifar10 test 40351d587109b95175f43aff81a1287e test_batch
cifar100 train 16019d7e3df5f24257cddd939b257f8d train
cifar100 test f0ef6b0ae62326f3e7ffdfab6717acfc test
svhn train e26dedcc434d2e4c54c9b2d4a06d8373 train_32x32.mat
svhn test eb5a983be6a315427106f1b164d9cef3 test_32x32.mat
"""

_MNIST = "https://yann.lecun.com/exdb/mnist"
_FASHION = "https://github.com/zalandoresearch/fashion-mnist (on Debian: the package dataset-fashion-mnist)"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_BUILT_IN = (
    DatasetInfo("digits", "scikit-learn's 1,797 handwritten digits, 8×8; bundled", _digits, 10, "0.1"),
    DatasetInfo("mnist", "70,000 handwritten digits, 28×28", read_mnist, 10, "0.3", "none",
                ("mnist", "MNIST/raw"), _MNIST, "MNIST"),
    DatasetInfo("fashion-mnist", "70,000 articles of clothing, 28×28", read_mnist, 10, "0.1", "none",
                ("fashion-mnist", "FashionMNIST/raw"), _FASHION, "FashionMNIST"),
    DatasetInfo("cifar10", "60,000 photographs, 32×32, 10 classes", read_cifar, 10, "8/255", "crop-flip",
                ("cifar-10-batches-py",), _CIFAR, "CIFAR10"),
    DatasetInfo("cifar100", "60,000 photographs, 32×32, 100 classes", read_cifar, 100, "8/255", "crop-flip",
                ("cifar-100-python",), _CIFAR, "CIFAR100"),
    DatasetInfo("svhn", "99,289 house numbers, 32×32, 10 classes", read_svhn, 10, "8/255", "crop", ("svhn",), _SVHN, "SVHN"),
)  # fmt: skip
DATASETS: dict[str, DatasetInfo] = {known.name: known for known in _BUILT_IN}
