"""Augmentations that hide a part of each image: random erasing and Cutout."""

import math

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.data.augmentation.geometry import check_images

_ERASING, _CUTOUT = 104, 105
_TRIES = 10


def random_erasing(
    x: Tensor,
    rng: ExampleRng,
    *,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Set a rectangle of an image to zero, with a probability (Zhong et al. 2020), as ``torchvision.transforms.RandomErasing``.

    Args:
        x: images, (B, C, H, W).
        rng: random draws keyed by example.
        p: probability.
        scale: smallest and largest part of the area.
        ratio: smallest and largest height over width; its logarithm is uniform. A rectangle that does not fit is drawn again,
            ten times at most; then the image stays as it is.

    Raises:
        UserError: if the inputs are not images.
    """
    check_images(x, "random erasing is")
    height, width = x.shape[2:]
    draws = rng.uniform(x.new_empty(len(x), 3 + 2 * _TRIES), _ERASING)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, 3 : 3 + _TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[:, 3 + _TRIES :])
    rows, columns = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(1, keepdim=True)
    rows, columns = rows.gather(1, first).squeeze(1), columns.gather(1, first).squeeze(1)
    top = (draws[:, 1] * (height - rows + 1)).floor()
    left = (draws[:, 2] * (width - columns + 1)).floor()
    hidden = rectangle(x, top, top + rows, left, left + columns) & ((draws[:, 0] < p) & fits.any(1)).view(-1, 1, 1, 1)
    return x.masked_fill(hidden, 0)


def cutout(x: Tensor, rng: ExampleRng, *, size: int | None = None) -> Tensor:
    """Set a square about a random pixel to zero (DeVries and Taylor 2017); it may hang over the border.

    Args:
        x: images, (B, C, H, W).
        rng: random draws keyed by example.
        size: side of the square; by default half of the shorter side of the images, 16 for CIFAR-10's as in the paper.

    Raises:
        UserError: if the inputs are not images, or the size is below 1.
    """
    check_images(x, "Cutout is")
    height, width = x.shape[2:]
    side = min(height, width) // 2 if size is None else size
    if side < 1:
        raise UserError(f"the side of a square must be at least 1, got {side}")
    down, across = rng.uniform(x.new_empty(len(x), 2), _CUTOUT).unbind(1)
    row, column, half = (down * height).floor(), (across * width).floor(), side // 2
    return x.masked_fill(rectangle(x, row - half, row - half + side, column - half, column - half + side), 0)


def rectangle(x: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Which pixels lie in a rectangle of each image: (B,) four times, the ends left out, to (B, 1, H, W)."""
    rows = torch.arange(x.shape[2], device=x.device).view(1, -1)
    columns = torch.arange(x.shape[3], device=x.device).view(1, -1)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
