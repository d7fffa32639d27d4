"""Random crops and flips of a whole batch, on the device it lies on."""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.random import ExampleRng

Augmentation: TypeAlias = Literal["none", "crop", "crop-flip"]

PADDING = 4  # zeros on each side, as every CIFAR recipe of the sources has it
_TAGS = (101, 102, 103)  # apart from the attack's draws


def augment(x: Tensor, how: Augmentation, rng: ExampleRng) -> Tensor:
    """Crop each image at a random place of its zero-padded self, and flip every other one.

    Args:
        x: images, (B, C, H, W).
        how: ``"none"``, ``"crop"`` or ``"crop-flip"``.
        rng: keyed by example.

    Returns:
        (B, C, H, W).
    """
    if how == "none":
        return x
    height, width = x.shape[2:]
    top, left, coin = (rng.uniform(x.new_empty(len(x), 1), tag) for tag in _TAGS)
    rows = (top * (2 * PADDING + 1)).long() + torch.arange(height, device=x.device)
    columns = (left * (2 * PADDING + 1)).long() + torch.arange(width, device=x.device)
    if how == "crop-flip":
        columns = torch.where(coin < 0.5, columns.flip(1), columns)
    padded = F.pad(x, [PADDING] * 4)
    batch = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
