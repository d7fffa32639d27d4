"""Data that fits is kept on the device that trains on it."""

from dataclasses import replace

import torch

from hauberk.data.dataset import Arrays, Joined, Part, Source

_SHARE = 0.25  # of the free memory of the device, at most


def resident(source: Source, device: torch.device) -> Source:
    """Return the source with its arrays on a CUDA device if they take at most a quarter of its free memory, or as it is.

    Batches are then gathered and scaled there, and nothing but indices travels.
    """
    if device.type != "cuda":
        return source
    if isinstance(source, Part):
        return Part(resident(source.whole, device), source.index)
    if isinstance(source, Joined):
        return Joined(resident(source.first, device), resident(source.second, device))
    if not isinstance(source, Arrays) or source.x.nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return source
    return replace(source, x=source.x.to(device), y=source.y.to(device))
