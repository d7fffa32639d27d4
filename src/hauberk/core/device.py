"""What comes from the host to a device without the host waiting for what the device still has to do."""

from functools import lru_cache

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU through pinned memory, which no one waits for."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def constant(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device; not to be written to.

    A number is filled in by the device itself; a tensor from elsewhere is copied once and kept.
    """
    if isinstance(value, Tensor):
        return value if (value.dtype, value.device) == (dtype, device) else _copied(value, value._version, dtype, device)
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _copied(value: Tensor, version: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of a tensor as it was at a version of itself, which torch counts as it is written to."""
    with torch.inference_mode(False):
        return send(value.detach(), device).to(dtype)
