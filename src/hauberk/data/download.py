"""Downloads, only when asked, through torchvision where it works."""

from pathlib import Path

from hauberk.core.errors import UserError, first_line, unknown_name
from hauberk.data.named import DATASETS, load_data


def download(name: str, folder: Path) -> None:
    """Download a data set into ``folder`` with torchvision, in its original format, and verify it.

    Raises:
        UserError: if torchvision is missing or cannot be imported, or the download fails.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    home = DATASETS[name].home
    if not home:
        return
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"downloads go through torchvision, which cannot be imported here ({first_line(error)}); get {name} from {home}"
        ) from error
    makers = {
        "mnist": "MNIST",
        "fashion-mnist": "FashionMNIST",
        "cifar10": "CIFAR10",
        "cifar100": "CIFAR100",
        "svhn": "SVHN",
    }
    make = getattr(datasets, makers[name])
    try:
        for split in ("train", "test"):
            make(str(folder), download=True, **({"split": split} if name == "svhn" else {"train": split == "train"}))
    except (OSError, RuntimeError) as error:
        raise UserError(f"downloading {name} failed: {error}; get it from {home}") from error
    load_data(name, "test", folder)
