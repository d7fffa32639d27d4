"""Augmentation of a batch before the attack: random crops and flips, or a function of your own."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.random import ExampleRng

Augmentation: TypeAlias = Callable[[Tensor, ExampleRng], Tensor]

PADDING = 4  # zeros on each side, as the sources' CIFAR scripts do, but for robust_overfitting and AT-AWP, which reflect
_TAG = 101  # of the draws, apart from the attack's


def random_crop(x: Tensor, rng: ExampleRng, *, flip: bool = False) -> Tensor:
    """Crop each image of ``x`` (B, C, H, W) at a random place of itself padded with 4 zeros; ``flip`` every other one, too.

    Raises:
        UserError: if the inputs are not images.
    """
    if x.ndim != 4:
        raise UserError(f"random crops are for images (B, C, H, W), not inputs of shape {tuple(x.shape)}")
    height, width = x.shape[2:]
    top, left, coin = rng.uniform(x.new_empty(len(x), 3), _TAG).split(1, dim=1)
    rows = (top * (2 * PADDING + 1)).long() + torch.arange(height, device=x.device)
    columns = (left * (2 * PADDING + 1)).long() + torch.arange(width, device=x.device)
    if flip:
        columns = torch.where(coin < 0.5, columns.flip(1), columns)
    padded = F.pad(x, [PADDING] * 4)
    batch = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop": random_crop,
    "crop-flip": partial(random_crop, flip=True),
}


def find_augmentation(augmentation: str | Callable[..., Tensor]) -> Augmentation | None:
    """Return an augmentation as a function of a batch and its random draws, None for "none".

    Args:
        augmentation: a name in ``AUGMENTATIONS``; ``"package.module:attribute"``, which is imported; or a callable ``f(x)`` or
            ``f(x, rng)``, from inputs (B, ...) inside the box to inputs of the same shape inside the box. ``rng`` is an
            ``ExampleRng``, whose draws are the same at any batch size and on any number of processes; draws from torch's
            generators are only repeated by the same batches on the same number of processes.

    Raises:
        UserError: if there is none of that name, or it takes neither one argument nor two.
    """
    found: Any = augmentation
    if isinstance(found, str):
        if found in AUGMENTATIONS:
            return AUGMENTATIONS[found]
        if not is_import_path(found):
            raise unknown_name("augmentation", found, AUGMENTATIONS)
        found = import_object(found, "augmentation")
    if not callable(found):
        raise UserError(f"an augmentation is a function f(x) or f(x, rng), not {found!r:.60}")
    try:
        parameters = list(inspect.signature(getattr(found, "forward", found)).parameters.values())
    except ValueError:  # one written in C does not say
        parameters = []
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) > 2:
        raise UserError(f"an augmentation takes (x) or (x, rng), not ({', '.join(map(str, parameters))})")
    if len(needed) == 2 or any(p.name == "rng" for p in parameters):
        return lambda x, rng: found(x, rng)
    return lambda x, rng: found(x)


def augment(x: Tensor, augmentation: Augmentation, rng: ExampleRng) -> Tensor:
    """Apply an ``augmentation`` to inputs ``x`` (B, ...), with random draws ``rng`` keyed by example.

    Raises:
        UserError: if the augmentation returns anything but a tensor of the same shape and dtype.
    """
    found = augmentation(x, rng)
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (x.shape, x.dtype):
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"the augmentation returned {got} for inputs {x.dtype} {tuple(x.shape)}; both must be the same")
    return found
