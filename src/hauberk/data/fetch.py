"""Getting examples to where a model is: its device, and its dtype."""

import torch
from torch import Tensor, nn

from hauberk.core.device import send
from hauberk.core.errors import UserError
from hauberk.data.chunks import pieces, stored
from hauberk.data.dataset import ConcatDataset, IndexedDataset, Subset, TensorDataset, as_floats, in_memory

_MEMORY_FRACTION = 0.25  # of a device's free memory that a data set may take at most


def fetch_for(model: nn.Module, dataset: IndexedDataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch inputs and labels of the examples ``index`` (B,) of ``dataset``, on the device and in the dtype of ``model``.

    The dtype is at least float32. Data not in memory are checked for NaN, because nobody has looked at all of them before.

    Raises:
        UserError: for NaN or infinite values in such data, and for items that are no pairs of an array and a label.
    """
    if isinstance(dataset, Subset):  # so that whoever complains names the examples as the caller's data set has them
        return fetch_for(model, dataset.dataset, dataset.indices[index])
    # Bytes travel as they are, in a quarter of the time that floats take.
    x, y = dataset.gather(index) if type(dataset) is TensorDataset else dataset.fetch(index)
    if not in_memory(dataset) and not bool(x.isfinite().all()):
        raise UserError(f"the data has NaN or infinite values, among examples {index.tolist()[:5]}...")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    x, y = as_floats(send(x, like.device)).to(dtype), send(y, like.device)
    return x, y.to(dtype) if y.is_floating_point() else y


def to_device(dataset: IndexedDataset, device: torch.device) -> IndexedDataset:
    """Return the examples of arrays that take at most a quarter of a CUDA device's free memory as arrays there.

    Batches are then gathered and scaled there, and nothing but indices travels. Anything else is returned as it is.
    """
    if device.type != "cuda":
        return dataset
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([to_device(part, device) for part in dataset.datasets])
    if not in_memory(dataset) or not len(dataset) or (isinstance(dataset, TensorDataset) and dataset.x.is_cuda):
        return dataset
    like, _ = stored(dataset, torch.arange(1))
    if len(dataset) * like.nbytes > _MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]:
        return dataset
    x = torch.empty(len(dataset), *like.shape[1:], dtype=like.dtype, device=device)
    y = torch.empty(len(dataset), dtype=torch.int64, device=device)
    done = 0
    for x_part, y_part in pieces(dataset):
        there = slice(done, done := done + len(y_part))
        x[there], y[there] = x_part.to(device), y_part.to(device)
    soft, _ = dataset.soft_labels(torch.arange(len(dataset)))
    soft = None if soft is None else soft.to(device)
    return TensorDataset(x, y, dataset.classes, dataset.name, dataset.folder, soft)
