"""Networks of timm and torchvision by name, where these are installed; never with downloaded weights."""

import importlib
import re
from typing import Any

from torch import nn

from hauberk.core.errors import UserError, first_line, in_one_line

LIBRARIES = ("timm:", "torchvision:")  # what their names begin with
_PLAIN = re.compile(r"\w+(\.\w+)*")  # a name, and not an address to load from
_MAX_CLASSES, _MAX_CHANNELS = 100_000, 1_000


def create_from_library(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the network ``"timm:NAME"`` or ``"torchvision:NAME"`` for images (channels, height, width), with fresh weights.

    Raises:
        UserError: if the library cannot be imported, has no network of that name, or that does not fit.
    """
    library, _, which = name.partition(":")
    if not _PLAIN.fullmatch(which):
        raise UserError(f"{name!r} is not a name of {library}")
    if len(input_shape) != 3 or not 1 <= input_shape[0] <= _MAX_CHANNELS or not 2 <= classes <= _MAX_CLASSES:
        raise UserError(f"{name} is for images, and at most {_MAX_CLASSES:,} classes; not for {input_shape}, {classes} classes")
    if library == "torchvision" and input_shape[0] != 3:
        raise UserError(f"{name} takes images of 3 channels, not {input_shape[0]}; timm's networks take any number")
    try:
        module: Any = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch that it was not made for
        said = first_line(error)
        raise UserError(f"{name} needs {library}, which cannot be imported here ({said}); pip install {library}") from error
    try:
        if library == "timm":
            net = module.create_model(which, pretrained=False, num_classes=classes, in_chans=input_shape[0])
        else:
            net = module.get_model(which, weights=None, num_classes=classes)
    except Exception as error:  # what their networks raise for arguments that do not fit is up to each
        raise UserError(f"cannot build {name}: {in_one_line(error)}") from error
    assert isinstance(net, nn.Module)
    return net
