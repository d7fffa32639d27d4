"""Augmentations that change colours, of images (B, C, H, W) in [0, 1], each by its own strength (B,)."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from hauberk.core.device import constant

Operation: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as PIL and torchvision
_LEVELS = 256


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, 1 the image itself."""
    return _blend(x, _gray(x), factor)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(x, torch.zeros_like(x), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the grey image."""
    return _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with a blurred image: 3×3 pixels, of which the middle one counts five times; the border stays as it is."""
    height, width = x.shape[2:]
    if min(height, width) < 3:
        return x
    inner = x[:, :, 1:-1, 1:-1]
    total = 4 * inner + sum(x[:, :, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    blurred = x.clone()
    blurred[:, :, 1:-1, 1:-1] = total / 13
    return _blend(x, blurred, factor)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep so many upper bits of the 8 of each value."""
    step = torch.exp2(8 - bits).view(-1, 1, 1, 1)
    return (_levels(x) / step).floor() * step / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from a threshold in [0, 1] on."""
    return torch.where(x >= threshold.view(-1, 1, 1, 1), 1 - x, x)


def invert(x: Tensor, strength: Tensor) -> Tensor:
    """Turn x into 1 - x."""
    return 1 - x


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; one of a single value stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / torch.where(span > 0, span, torch.ones_like(span)), x)


def equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Equalise the histogram of each channel, of 256 levels, as PIL's ``ImageOps.equalize`` does."""
    flat = _levels(x).flatten(2).flatten(0, 1)  # (B·C, HW)
    ordered = flat.sort(dim=1).values
    levels = torch.arange(_LEVELS, device=x.device, dtype=x.dtype).expand(len(flat), -1).contiguous()
    below = torch.searchsorted(ordered, levels)  # pixels darker than each level
    last = flat.shape[1] - torch.searchsorted(ordered, ordered[:, -1:].contiguous())  # pixels of the brightest level there is
    step = (flat.shape[1] - last) // (_LEVELS - 1)
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, _LEVELS - 1)
    found = table.gather(1, flat.long()).to(x.dtype)
    return torch.where(step > 0, found, flat).view_as(x) / 255


def _gray(x: Tensor) -> Tensor:
    """The grey image, (B, 1, H, W); of other numbers of channels than 3 their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * constant(_LUMA, x.dtype, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _levels(x: Tensor) -> Tensor:
    return (x * 255).round()


COLOR: dict[str, Operation] = {
    "color": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
