"""Tensors for a device at few launches, and without the host waiting for what the device still has to do."""

from collections.abc import Sequence
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

    Kept, as each copy makes the host wait, and each number costs a launch.
    """
    if not isinstance(value, Tensor):
        return _number(value, dtype, device)
    return value if (value.dtype, value.device) == (dtype, device) else _copied(value, version(value), dtype, device)


def version(value: Tensor) -> int:
    """Return how often a tensor has been written to; 0 for one made under inference_mode, which does not count that."""
    return 0 if value.is_inference() else value._version


@lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _copied(value: Tensor, version_of_it: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of a tensor as it was at a version of itself."""
    with torch.inference_mode(False):
        return send(value.detach(), device).to(dtype)


@torch.no_grad()
def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors, all at once."""
    made = [torch.empty_like(tensor) for tensor in tensors]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return made
