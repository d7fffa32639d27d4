"""Extra training examples from a file: with its labels, or with those that a network gives them."""

from pathlib import Path

import torch

from hauberk.data import IndexedDataset, pseudo_label, read_extra
from hauberk.data.extra import read_images
from hauberk.training.export import load


def load_extra(
    file: str | Path, classes: int | None = None, *, labeller: str | Path = "", device: str | torch.device = "cpu"
) -> IndexedDataset:
    """Read extra examples, as :func:`hauberk.data.read_extra`, and label them where there is a network for that.

    Args:
        file: an ``.npz`` file.
        classes: number of classes, if it is known.
        labeller: folder or file of a trained network, whose predictions are the labels, whether the file has some or not;
            empty for the labels of the file.
        device: where the network works.

    Raises:
        UserError: if the file or the network cannot be read, or they do not fit together.
    """
    if not labeller:
        return read_extra(file, classes)
    found = pseudo_label(load(labeller, device=device), read_images(file))
    found.name, found.folder, found.labelled_by = Path(file).name, str(file), str(labeller)
    return found
