"""Data sets by name, read from a local folder in their original formats."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from hauberk.core.errors import UserError, unknown_name
from hauberk.data.augment import Augmentation
from hauberk.data.cifar import read_batch
from hauberk.data.dataset import Arrays
from hauberk.data.idx import read_idx

Split: TypeAlias = Literal["train", "test"]
Loaded: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DatasetInfo:
    """A data set Hauberk knows.

    Attributes:
        summary: what it is, in one line.
        classes: number of classes.
        eps: of the L∞ threat model the literature uses on it.
        augment: the usual augmentation.
        home: where to get it.
        folders: where its files may lie below the data folder.
        files: for each split, file names with the MD5 of their content (uncompressed for idx).
        read: turns the contents of the files of a split into images and labels; None for one bundled with scikit-learn.
    """

    summary: str
    classes: int
    eps: str
    augment: Augmentation
    home: str = ""
    folders: tuple[str, ...] = ()
    files: dict[str, dict[str, str]] | None = None
    read: Callable[[list[Path], dict[str, str] | None], Loaded] | None = None


def load_data(name: str, split: Split, folder: str | Path = "data", *, verify: bool = True) -> Arrays:
    """Load a data set.

    Args:
        name: see ``DATASETS``; or the description of a table, ``FILE.toml`` (see :func:`hauberk.tables.read_table`).
        split: ``"train"`` or ``"test"``.
        folder: where the original files are, directly or in their usual subfolder.
        verify: compare checksums with the original files'.

    Returns:
        Images (N, C, H, W) in [0, 1], stored as bytes where the files do, and labels.

    Raises:
        UserError: for an unknown name, or files that are missing, damaged or not the original ones.
    """
    if split not in ("train", "test"):
        raise UserError(f"split is 'train' or 'test', not {split!r}")
    if name.endswith(".toml"):
        from hauberk.tables import read_table  # which builds on this room

        table = read_table(name)
        return table.train if split == "train" else table.test
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    known = DATASETS[name]
    if known.read is None or known.files is None:
        x, y = _digits(split)
    else:
        files = known.files[split]
        paths = find_files(name, split, Path(folder))
        x, y = known.read(paths, files if verify else None)
    if len(x) != len(y) or len(y) == 0 or y.min() < 0 or y.max() >= known.classes:
        raise UserError(
            f"{name} {split}: {len(x)} images, {len(y)} labels; expected as many, with labels below {known.classes}"
        )
    return Arrays(torch.tensor(x), torch.tensor(y, dtype=torch.int64), known.classes, name, str(folder))


def find_files(name: str, split: str, folder: Path) -> list[Path]:
    """Find the files of a ``split`` of the data set ``name`` below a ``folder``, each perhaps with ``.gz``.

    Raises:
        UserError: if one is missing, with where to get it.
    """
    known = DATASETS[name]
    names = list((known.files or {}).get(split, {}))
    for place in (folder, *(folder / sub for sub in known.folders)):
        found = [next((p for p in (place / n, place / f"{n}.gz") if p.is_file()), None) for n in names]
        if all(found):
            return [path for path in found if path is not None]
    raise UserError(
        f"{name}: {', '.join(names)} not found in {folder} or its subfolders {', '.join(known.folders) or '(none)'}. "
        f"Get the original files from {known.home} or with 'hauberk data {name} --download'; --data-dir names the folder"
    )


def _verify(path: Path, raw: bytes, files: dict[str, str] | None) -> None:
    if files is None:
        return
    seen, right = hashlib.md5(raw, usedforsecurity=False).hexdigest(), files[path.name.removesuffix(".gz")]
    if seen != right:
        raise UserError(f"{path} is not the original file: MD5 {seen}, expected {right}. If that is meant, add --no-verify")


def _read_idx_pair(paths: list[Path], files: dict[str, str] | None) -> Loaded:
    arrays = []
    for path in paths:
        array, raw = read_idx(path)
        _verify(path, raw, files)
        arrays.append(array)
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(f"{paths[0]} must hold images and {paths[1]} labels")
    return images[:, None], labels


def _read_cifar(paths: list[Path], files: dict[str, str] | None) -> Loaded:
    batches = []
    for path in paths:
        raw = path.read_bytes()
        _verify(path, raw, files)
        batches.append(read_batch(raw, path))
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _read_svhn(paths: list[Path], files: dict[str, str] | None) -> Loaded:
    from scipy.io import loadmat  # slow to import, seldom needed

    _verify(paths[0], paths[0].read_bytes(), files)
    try:
        content = loadmat(paths[0], variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError("X must be (H, W, 3, N) unsigned bytes")
    except Exception as error:  # SciPy's reader fails in many ways on a foreign file
        raise UserError(f"{paths[0]} is not an SVHN file: {error}") from error
    return images.transpose(3, 2, 0, 1), labels % 10  # the files write the digit 0 as 10


def _digits(split: str) -> Loaded:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # grey levels 0 to 16
    train_x, test_x, train_y, test_y = train_test_split(images, y, test_size=0.2, random_state=0, stratify=y)
    return (train_x, train_y) if split == "train" else (test_x, test_y)


def _idx_files(prefix: str, images_md5: str, labels_md5: str) -> dict[str, str]:
    return {f"{prefix}-images-idx3-ubyte": images_md5, f"{prefix}-labels-idx1-ubyte": labels_md5}


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("scikit-learn's 1,797 handwritten digits, 8×8; bundled", 10, "0.1", "none"),
    "mnist": DatasetInfo(
        "70,000 handwritten digits, 28×28",
        10,
        "0.3",
        "none",
        "https://yann.lecun.com/exdb/mnist",
        ("mnist", "MNIST/raw"),
        {
            "train": _idx_files("train", "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
            "test": _idx_files("t10k", "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
        },
        _read_idx_pair,
    ),
    "fashion-mnist": DatasetInfo(
        "70,000 articles of clothing, 28×28",
        10,
        "0.1",
        "none",
        "https://github.com/zalandoresearch/fashion-mnist (on Debian: the package dataset-fashion-mnist)",
        ("fashion-mnist", "FashionMNIST/raw"),
        {
            "train": _idx_files("train", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
            "test": _idx_files("t10k", "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
        },
        _read_idx_pair,
    ),
    "cifar10": DatasetInfo(
        "60,000 photographs, 32×32, 10 classes",
        10,
        "8/255",
        "crop-flip",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-10-batches-py",),
        {
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        _read_cifar,
    ),
    "cifar100": DatasetInfo(
        "60,000 photographs, 32×32, 100 classes",
        100,
        "8/255",
        "crop-flip",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-100-python",),
        {
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        _read_cifar,
    ),
    "svhn": DatasetInfo(
        "99,289 house numbers, 32×32, 10 classes",
        10,
        "8/255",
        "crop",
        "http://ufldl.stanford.edu/housenumbers",
        ("svhn",),
        {
            "train": {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"},
            "test": {"test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
        },
        _read_svhn,
    ),
}
