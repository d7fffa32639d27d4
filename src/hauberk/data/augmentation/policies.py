"""Augmentations that draw operations for each image: IDBH, AutoAugment and RandAugment."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hauberk.core.device import constant
from hauberk.core.random import ExampleRng
from hauberk.data.augmentation.color import COLOR, Operation
from hauberk.data.augmentation.erasing import random_erasing
from hauberk.data.augmentation.geometry import AFFINE, affine_matrix, check_images, crop_shift, random_flip, warp

_IDBH, _RAND, _AUTO = 110, 120, 140  # tags of the draws; RandAugment's operations take one each

# Operation, probability, and the range of its strength (factors, slopes, degrees): ColorShape of DA-Alone-Improves-AT, biased
# to colours for CIFAR-10 and to shapes for SVHN.
COLOR_BIASED = (
    ("color", 0.125, 0.1, 1.9), ("brightness", 0.125, 0.5, 1.9), ("contrast", 0.125, 0.5, 1.9), ("sharpness", 0.125, 0.1, 1.9),
    ("autocontrast", 0.125, 0.0, 0.0), ("equalize", 0.125, 0.0, 0.0), ("shear", 0.125, 0.05, 0.15), ("rotate", 0.125, 1, 11),
)  # fmt: skip
SHAPE_BIASED = (
    ("color", 0.08, 0.1, 1.9), ("brightness", 0.08, 0.5, 1.9), ("contrast", 0.04, 0.5, 1.9), ("sharpness", 0.08, 0.1, 1.9),
    ("autocontrast", 0.04, 0.0, 0.0), ("equalize", 0.08, 0.0, 0.0), ("shear", 0.3, 0.05, 0.35), ("rotate", 0.3, 1, 31),
)  # fmt: skip

# AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, Table 7): two operations, each with its probability and magnitude, to 9.
CIFAR10_POLICY = """
invert 0.1 0 contrast 0.2 6, rotate 0.7 2 translate-x 0.3 9, sharpness 0.8 1 sharpness 0.9 3,
shear-y 0.5 8 translate-y 0.7 9, autocontrast 0.5 0 equalize 0.9 0, shear-y 0.2 7 posterize 0.3 7,
color 0.4 3 brightness 0.6 7, sharpness 0.3 9 brightness 0.7 9, equalize 0.6 0 equalize 0.5 0,
contrast 0.6 7 sharpness 0.6 5, color 0.7 7 translate-x 0.5 8, equalize 0.3 0 autocontrast 0.4 0,
translate-y 0.4 3 sharpness 0.2 6, brightness 0.9 6 color 0.2 8, solarize 0.5 2 invert 0.0 0,
equalize 0.2 0 autocontrast 0.6 0, equalize 0.2 0 equalize 0.6 0, color 0.9 9 equalize 0.6 0,
autocontrast 0.8 0 solarize 0.2 8, brightness 0.1 3 color 0.7 0, solarize 0.4 5 autocontrast 0.9 0,
translate-y 0.9 9 translate-y 0.7 9, autocontrast 0.9 0 solarize 0.8 3, equalize 0.8 0 invert 0.1 0,
translate-y 0.7 9 autocontrast 0.9 0
"""
RAND_AUGMENT = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_AUTO_AUGMENT = (*RAND_AUGMENT, "invert")
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_SIGNED = (*AFFINE, *_FACTORS)


def apply_operations(x: Tensor, names: Sequence[str], which: Tensor, strength: Tensor, *, about_center: bool = False) -> Tensor:
    """Change each image by one operation: all operations that there are, of all images, with no host that waits.

    Args:
        x: images in [0, 1], (B, C, H, W).
        names: operations, of ``AFFINE``, ``COLOR`` and "identity".
        which: place among ``names`` of the operation of each image, (B,).
        strength: (B,), see :func:`~hauberk.data.augmentation.geometry.affine_matrix` and
            :mod:`hauberk.data.augmentation.color`.
        about_center: see there.
    """
    out, (height, width) = x, x.shape[2:]
    moving = {k: name for k, name in enumerate(names) if name in AFFINE}
    if moving:
        matrix = affine_matrix("translate-x", torch.zeros_like(strength), height, width, about_center)
        for k, name in moving.items():
            chosen = affine_matrix(name, strength, height, width, about_center)
            matrix = torch.where((which == k).view(-1, 1, 1), chosen, matrix)
        out = warp(x, matrix)
    for k, name in enumerate(names):
        if name in COLOR:
            out = _where(which == k, COLOR[name], x, strength, out)
    return out


def _where(chosen: Tensor, operation: Operation, x: Tensor, strength: Tensor, otherwise: Tensor) -> Tensor:
    """Return changed images where they are chosen, (B,), and others elsewhere."""
    if x.device.type != "cpu":  # a GPU changes all of them sooner than it tells how many there are
        return torch.where(chosen.view(-1, 1, 1, 1), operation(x, strength), otherwise)
    places = chosen.nonzero().squeeze(1)
    return otherwise.index_copy(0, places, operation(x[places], strength[places])) if len(places) else otherwise


def color_shape(x: Tensor, rng: ExampleRng, space: Sequence[tuple[str, float, float, float]] = COLOR_BIASED) -> Tensor:
    """Change each image by one operation of a ``space``: name, probability and range of the strength."""
    check_images(x, "IDBH is")
    roll, size, sign, axis = rng.uniform(x.new_empty(len(x), 4), _IDBH).unbind(1)
    ends, lowest, highest = (constant(column, x.dtype, x.device) for column in _columns(tuple(space)))
    which = torch.bucketize(roll.contiguous(), ends, right=True)
    low, high = lowest[which], highest[which]
    strength = low + (high - low) * size
    places = {name: k for k, (name, *_) in enumerate(space)}
    shears, rotates = which == places["shear"], which == places["rotate"]
    # A shear is an angle of so many radians, and one by rows or by columns; a rotation a whole number of degrees.
    strength = torch.where(shears, torch.tan(strength), torch.where(rotates, strength.floor(), strength))
    strength = torch.where((shears | rotates) & (sign < 0.5), -strength, strength)
    which = torch.where(shears & (axis < 0.5), len(space), which)
    names = ["shear-x" if name == "shear" else name for name, *_ in space]
    return apply_operations(x, [*names, "shear-y"], which, strength, about_center=True)


def idbh_weak(x: Tensor, rng: ExampleRng) -> Tensor:
    """IDBH for CIFAR-10 (Li and Spratling, ICLR 2023): flip, CropShift, an operation, random erasing of every other image."""
    return random_erasing(color_shape(crop_shift(random_flip(x, rng), rng), rng), rng, p=0.5)


def idbh_strong(x: Tensor, rng: ExampleRng) -> Tensor:
    """The same with random erasing of every image."""
    return random_erasing(color_shape(crop_shift(random_flip(x, rng), rng), rng), rng, p=1.0)


def idbh_svhn(x: Tensor, rng: ExampleRng) -> Tensor:
    """IDBH for SVHN: fewer lines cut off, more shears and rotations, larger parts erased."""
    shaped = color_shape(crop_shift(random_flip(x, rng), rng, high=9), rng, SHAPE_BIASED)
    return random_erasing(shaped, rng, p=1.0, scale=(0.02, 0.5))


def rand_augment(x: Tensor, rng: ExampleRng, *, num_ops: int = 2, magnitude: int = 9) -> Tensor:
    """Change each image by some operations of 14 (Cubuk et al. 2020), as ``torchvision.transforms.RandAugment`` does.

    Args:
        x: images in [0, 1], (B, C, H, W).
        rng: random draws keyed by example.
        num_ops: how many, one after the other.
        magnitude: of all, 0 to 30.

    Raises:
        UserError: if the inputs are not images.
    """
    check_images(x, "RandAugment is")
    table = _strengths(RAND_AUGMENT, 31, *x.shape[2:])
    for k in range(num_ops):
        choice, sign = rng.uniform(x.new_empty(len(x), 2), _RAND + k).unbind(1)
        which = (choice * len(RAND_AUGMENT)).long()
        x = _apply_signed(x, RAND_AUGMENT, which, table, which * 31 + magnitude, sign)
    return x


def auto_augment(x: Tensor, rng: ExampleRng) -> Tensor:
    """Change each image by one of the 25 sub-policies found for CIFAR-10 (Cubuk et al. 2019), as torchvision's ``AutoAugment``.

    ``x``, images in [0, 1], (B, C, H, W).

    Raises:
        UserError: if the inputs are not images.
    """
    check_images(x, "AutoAugment is")
    operations, chances, magnitudes = _policy()
    draws = rng.uniform(x.new_empty(len(x), 5), _AUTO)
    chosen = (draws[:, 0] * len(operations)).long()
    table = _strengths(_AUTO_AUGMENT, 10, *x.shape[2:])
    operation, magnitude = (constant(part, torch.int64, x.device)[chosen] for part in (operations, magnitudes))
    happens = draws[:, 1:3] < constant(chances, x.dtype, x.device)[chosen]
    for k in range(2):
        which = torch.where(happens[:, k], operation[:, k], 0)  # the first is the identity
        x = _apply_signed(x, _AUTO_AUGMENT, which, table, which * 10 + magnitude[:, k], draws[:, 3 + k])
    return x


def _apply_signed(x: Tensor, names: tuple[str, ...], which: Tensor, table: Tensor, place: Tensor, sign: Tensor) -> Tensor:
    """Apply operations ``which`` with the strengths at places of a table, half of the signed ones the other way.

    Factors are 1 plus the signed strength.
    """
    strength = constant(table, x.dtype, x.device).flatten()[place]
    signed, factors = (constant(flags, torch.bool, x.device)[which] for flags in _flags(names))
    strength = torch.where(signed & (sign < 0.5), -strength, strength)
    return apply_operations(x, names, which, torch.where(factors, 1 + strength, strength))


# Tables, each made once, because what is kept of them on a device is kept by the object.


@lru_cache(maxsize=8)
def _columns(space: tuple[tuple[str, float, float, float], ...]) -> tuple[Tensor, ...]:
    """Where the share of each operation but the last ends, and its lowest and highest strength."""
    chance, low, high = torch.tensor([row[1:] for row in space]).unbind(1)
    return chance.cumsum(0)[:-1], low.contiguous(), high.contiguous()


@lru_cache(maxsize=8)
def _flags(names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Which operations have a sign, and which are factors."""
    signed, factors = (torch.tensor([name in group for name in names]) for group in (_SIGNED, _FACTORS))
    return signed, factors


@lru_cache(maxsize=8)
def _strengths(names: tuple[str, ...], bins: int, height: int, width: int) -> Tensor:
    """Strength of each operation by magnitude, (operations, bins), as torchvision has them."""
    part = torch.arange(bins) / (bins - 1)
    known = dict.fromkeys(_FACTORS, part * 0.9) | {"shear-x": part * 0.3, "shear-y": part * 0.3, "rotate": part * 30}
    known |= {f"translate-{axis}": (part * 150 / 331 * size).floor() for axis, size in (("x", width), ("y", height))}
    known |= {"posterize": 8 - (part * 4).round(), "solarize": 1 - part}
    return torch.stack([known.get(name, torch.zeros(bins)) for name in names])


@lru_cache(maxsize=1)
def _policy() -> tuple[Tensor, Tensor, Tensor]:
    """Operations, probabilities and magnitudes of AutoAugment's sub-policies, (25, 2) each."""
    rows = [row.split() for row in CIFAR10_POLICY.replace("\n", " ").split(",")]
    operations = torch.tensor([[_AUTO_AUGMENT.index(row[k]) for k in (0, 3)] for row in rows])
    chances = torch.tensor([[float(row[k]) for k in (1, 4)] for row in rows])
    return operations, chances, torch.tensor([[int(row[k]) for k in (2, 5)] for row in rows])
