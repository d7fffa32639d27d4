"""Augmentation of a batch before the attack: by name, or a function of your own."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.random import ExampleRng
from hauberk.data.augmentation.erasing import cutout, random_erasing
from hauberk.data.augmentation.geometry import PADDING, crop_shift, random_crop, random_flip
from hauberk.data.augmentation.mixing import Mixing
from hauberk.data.augmentation.policies import auto_augment, idbh_strong, idbh_svhn, idbh_weak, rand_augment

__all__ = [
    "AUGMENTATIONS",
    "PADDING",
    "Augmentation",
    "Mixing",
    "augment",
    "auto_augment",
    "crop_shift",
    "cutout",
    "find_augmentation",
    "idbh_strong",
    "idbh_svhn",
    "idbh_weak",
    "is_built_in",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
]

Augmentation: TypeAlias = Callable[[Tensor, ExampleRng], Tensor]

AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop": random_crop,
    "crop-flip": partial(random_crop, flip=True),
    "crop-flip-reflect": partial(random_crop, flip=True, reflect=True),
    "flip": random_flip,
    "crop-shift": crop_shift,
    "cutout": cutout,
    "random-erasing": random_erasing,
    "autoaugment": auto_augment,
    "randaugment": rand_augment,
    "idbh-weak": idbh_weak,
    "idbh-strong": idbh_strong,
    "idbh-svhn": idbh_svhn,
}


def is_built_in(name: str) -> bool:
    """Whether a name is one of ``AUGMENTATIONS``, or several of them joined by "+"."""
    return all(part in AUGMENTATIONS for part in name.split("+"))


def find_augmentation(augmentation: str | Callable[..., Tensor]) -> Augmentation | None:
    """Return an augmentation as a function of a batch and its random draws, None for "none".

    Args:
        augmentation: a name in ``AUGMENTATIONS``, or several joined by "+", which are applied in that order;
            ``"package.module:attribute"``, which is imported; or a callable ``f(x)`` or ``f(x, rng)``, from inputs (B, ...)
            inside the box to inputs of the same shape inside the box. ``rng`` is an ``ExampleRng``, whose draws are the same at
            any batch size and on any number of processes; draws from torch's generators are only repeated by the same batches
            on the same number of processes.

    Raises:
        UserError: if there is none of that name, or it takes neither one argument nor two.
    """
    found: Any = augmentation
    if isinstance(found, str):
        if found in AUGMENTATIONS:
            return AUGMENTATIONS[found]
        if is_built_in(found):
            return partial(_in_turn, [AUGMENTATIONS[part] for part in found.split("+")])
        if not is_import_path(found):
            unknown = next(part for part in found.split("+") if part not in AUGMENTATIONS)
            raise unknown_name("augmentation", unknown, AUGMENTATIONS)
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


def _in_turn(parts: list[Augmentation | None], x: Tensor, rng: ExampleRng) -> Tensor:
    for part in parts:
        x = x if part is None else part(x, rng)
    return x


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
