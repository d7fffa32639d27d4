"""Augmentations that move pixels: crops, flips, shears, shifts and rotations, of a batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng

PADDING = 4  # pixels on each side
_CROP, _FLIP, _CROP_SHIFT = 101, 102, 103  # tags of the draws, apart from the attack's


def check_images(x: Tensor, what: str) -> None:
    """Raise UserError unless ``x`` is (B, C, H, W)."""
    if x.ndim != 4:
        raise UserError(f"{what} for images (B, C, H, W), not inputs of shape {tuple(x.shape)}")


def random_crop(x: Tensor, rng: ExampleRng, *, flip: bool = False, reflect: bool = False) -> Tensor:
    """Crop each image of ``x`` (B, C, H, W) at a random place of itself padded by 4 pixels; ``flip`` every other one, too.

    Padding is with zeros, as most of the sources' CIFAR scripts have it, or ``reflect`` as robust_overfitting and AT-AWP do.

    Raises:
        UserError: if the inputs are not images.
    """
    check_images(x, "random crops are")
    height, width = x.shape[2:]
    top, left, coin = rng.uniform(x.new_empty(len(x), 3), _CROP).split(1, dim=1)
    rows = (top * (2 * PADDING + 1)).long() + torch.arange(height, device=x.device)
    columns = (left * (2 * PADDING + 1)).long() + torch.arange(width, device=x.device)
    if flip:
        columns = torch.where(coin < 0.5, columns.flip(1), columns)
    if reflect:
        if min(height, width) <= PADDING:
            raise UserError(f"images of {height}×{width} are too small to be padded by {PADDING} reflected pixels")
        return take_pixels(F.pad(x, [PADDING] * 4, mode="reflect"), rows, columns)
    return take_pixels(F.pad(x, [PADDING] * 4), rows, columns)


def random_flip(x: Tensor, rng: ExampleRng) -> Tensor:
    """Mirror every other image of ``x`` (B, C, H, W), left to right.

    Raises:
        UserError: if the inputs are not images.
    """
    check_images(x, "flips are")
    return torch.where(rng.uniform(x.new_empty(len(x), 1, 1, 1), _FLIP) < 0.5, x.flip(3), x)


def crop_shift(x: Tensor, rng: ExampleRng, *, low: int = 0, high: int = 11) -> Tensor:
    """Cut lines off each image and put what is left back at a random place, on zeros: CropShift (Li and Spratling 2023).

    So many lines as a draw from ``low`` to ``high - 1`` says are divided at random between rows and columns; where they are cut
    off, and where the rest is put, is uniform. Constants of the public code (DA-Alone-Improves-AT).

    Args:
        x: images, (B, C, H, W).
        rng: random draws keyed by example.
        low: fewest lines.
        high: one more than the most lines.

    Raises:
        UserError: if the inputs are not images, or smaller than what is cut off.
    """
    check_images(x, "CropShift is")
    size = x.shape[2:]
    if high - 1 >= min(size):
        raise UserError(f"CropShift cuts off {high - 1} lines; images of {size[0]}×{size[1]} are too small")
    draws = rng.uniform(x.new_empty(len(x), 6), _CROP_SHIFT)
    lines = low + (draws[:, 0] * (high - low)).long()
    of_columns = (draws[:, 1] * (lines + 1)).long()
    places, inside = [], []
    for axis, cut in enumerate((lines - of_columns, of_columns)):
        start, end = ((draws[:, k + axis] * (cut + 1)).long() for k in (2, 4))
        place = torch.arange(size[axis], device=x.device) + (end - cut)[:, None]  # within what was left
        inside.append((place >= 0) & (place < (size[axis] - cut)[:, None]))
        places.append((place + start[:, None]).clamp(0, size[axis] - 1))
    kept = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return take_pixels(x, *places) * kept


def take_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take rows (B, h) and columns (B, w) of images (B, C, H, W): (B, C, h, w)."""
    place = torch.add(columns[:, None, :], rows[:, :, None], alpha=x.shape[3]).flatten(1)
    taken = x.flatten(2).gather(2, place[:, None].expand(-1, x.shape[1], -1))
    return taken.view(*x.shape[:2], rows.shape[1], columns.shape[1])


AFFINE = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")


def affine_matrix(name: str, amount: Tensor, height: int, width: int, about_center: bool) -> Tensor:
    """Return where the pixels of a moved image come from, (B, 2, 3): ``(u', v') = M (u, v, 1)``, u to the right, v down.

    Args:
        name: one of ``AFFINE``.
        amount: (B,): slope of a shear, pixels of a shift, degrees of a rotation against the clock.
        height: of the images.
        width: of the images.
        about_center: whether a shear leaves the centre where it is, or the upper left corner, as PIL does. A rotation always
            leaves the centre.
    """
    one, none = torch.ones_like(amount), torch.zeros_like(amount)
    u, v = (width / 2, height / 2)
    if name == "rotate":
        cos, sin = torch.cos(torch.deg2rad(amount)), torch.sin(torch.deg2rad(amount))
        rows = [cos, -sin, u - cos * u + sin * v, sin, cos, v - sin * u - cos * v]
    elif name == "shear-x":
        rows = [one, amount, -amount * v if about_center else none, none, one, none]
    elif name == "shear-y":
        rows = [one, none, none, amount, one, -amount * u if about_center else none]
    else:
        rows = [one, none, -amount if name == "translate-x" else none, none, one, -amount if name == "translate-y" else none]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Move the pixels of images (B, C, H, W) by a matrix each, (B, 2, 3): the nearest pixel, zeros from outside."""
    height, width = x.shape[2:]
    v, u = torch.meshgrid(
        *(torch.arange(size, device=x.device, dtype=matrix.dtype) + 0.5 for size in (height, width)), indexing="ij"
    )
    source = matrix @ torch.stack([u.flatten(), v.flatten(), torch.ones_like(u).flatten()])  # (B, 2, HW)
    column, row = source.floor().long().unbind(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = x.flatten(2).gather(2, place[:, None].expand(-1, x.shape[1], -1)) * inside[:, None]
    return moved.view_as(x)
