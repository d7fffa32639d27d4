"""Models by name, of other libraries, by import path; how a card remembers them, and what code they run."""

import hashlib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.errors import UserError, first_line, in_one_line, unknown_name
from hauberk.core.imports import code_digest, import_object, without_addresses
from hauberk.core.io import json_roundtrip
from hauberk.models.layers import Normalize, StraightThroughRound
from hauberk.models.resnet import BasicBlock, PreActBlock, ResNet, WideResNet


def small_cnn(input_shape: tuple[int, ...], classes: int, first: int = 32) -> nn.Module:
    """Two strided convolutions and two linear layers, no BatchNorm; for images (channels, height, width) of 4×4 and up.

    The convolutions have ``first`` and twice as many channels, the hidden layer four times as many.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, 2 * first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * first * (height // 4) * (width // 4), 4 * first),
        nn.ReLU(),
        nn.Linear(4 * first, classes),
    )


def mlp(input_shape: tuple[int, ...], classes: int, hidden: int = 128) -> nn.Module:
    """Two hidden layers on the flattened input, for vectors and small images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


Builder = Callable[[tuple[int, ...], int], nn.Module]

_WIDE_RESNET = "wide ResNet for 32×32 images; any wrn-d-k with d = 6n + 4, or 6n + 2 as Madry's code counts the same network"
_SILU = "with SiLU in place of ReLU, as DeepMind's networks have it; so any ResNet-18 or wrn-d-k"
MODELS: dict[str, tuple[Builder, str]] = {
    "small-cnn": (small_cnn, "two strided convolutions, two linear layers; any small-cnn-N has N and 2N channels"),
    "mlp": (mlp, "two hidden layers of 128, any mlp-N of N; vectors and small images"),
    "resnet18": (partial(ResNet, BasicBlock), "ResNet-18 for 32×32 images (AT, MART, MAIL)"),
    "resnet18-16": (partial(ResNet, BasicBlock, width=16), "a quarter of its width; any resnet18-N has N to 8N channels"),
    "preact-resnet18": (partial(ResNet, PreActBlock), "PreAct-ResNet-18 for 32×32 images (robust overfitting, AWP)"),
    "preact-resnet18-silu": (partial(ResNet, PreActBlock, activation=F.silu), _SILU),
    "wrn-34-10": (partial(WideResNet, 34, 10), _WIDE_RESNET),
    "wrn-32-10": (partial(WideResNet, 32, 10), _WIDE_RESNET),
    "wrn-28-10": (partial(WideResNet, 28, 10), _WIDE_RESNET),
    "wrn-28-10-silu": (partial(WideResNet, 28, 10, activation=F.silu), _SILU),
}
LIBRARIES = ("timm:", "torchvision:")  # what their names begin with
_PLAIN = re.compile(r"\w+(\.\w+)*")  # a name, and not an address to load from
_MAX_WIDTH = 10_000  # of the two small networks
_WIDE = re.compile(r"wrn-(\d+)-(\d+)(-silu)?")
_SMALL = re.compile(r"(small-cnn|mlp)-(\d+)")
_RESNET = re.compile(r"(preact-)?resnet18(?:-(\d+))?(-silu)?")
_MAX_PARAMETERS, _MAX_CLASSES, _MAX_CHANNELS = 2e9, 100_000, 1_000


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model again; plain types, stored in every card.

    Attributes:
        name: a built-in name, ``"wrn-d-k"``, ``"resnet18-N"``, ``"timm:NAME"``, ``"torchvision:NAME"``, ``"module:factory"``,
            or ``"python:<class>"`` for an object given from Python.
        input_shape: shape of one input, without the batch.
        classes: number of logits.
        mean: mean of each channel, for normalisation inside the model; empty for none.
        std: standard deviation of each channel, likewise.
        integers: inputs of a table's row that take whole values.
        groups: inputs of each category of a table's row.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def is_from_python(self) -> bool:
        """Whether it was a model object of a program, which no name can build again."""
        return self.name.startswith("python:")

    @property
    def imports(self) -> bool:
        """Whether building it would import somebody's code."""
        return ":" in self.name and not self.name.startswith(("python:", *LIBRARIES))

    def build(self) -> nn.Module:
        """Build the model with fresh weights from torch's global generator.

        Raises:
            UserError: if the name is unknown, or the model cannot take this input shape.
        """
        if self.is_from_python:
            raise UserError(f"this model was made in Python ({self.name[7:]}); pass model= with the same architecture")
        if self.name.startswith(LIBRARIES):
            net = _from_library(self)
        else:
            net = _from_factory(self) if self.imports else _built_in(self)
        before: list[nn.Module] = [StraightThroughRound(self.integers, self.groups)] if self.integers or self.groups else []
        before += [Normalize(self.mean, self.std)] if self.mean else []
        return nn.Sequential(*before, net) if before else net

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a JSON card."""
        plain: dict[str, Any] = json_roundtrip(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, card: dict[str, Any]) -> "ModelSpec":
        """Read a spec from a card; raises UserError if a field is missing or has the wrong type."""
        try:
            shape = tuple(map(int, card["input_shape"]))
            mean, std = (tuple(map(float, card[key])) for key in ("mean", "std"))
            integers = tuple(map(int, card.get("integers", ())))
            groups = tuple(tuple(map(int, group)) for group in card.get("groups", ()))
            if not all(0 <= place < shape[-1] for place in (*integers, *chain(*groups))) or not all(groups):
                raise ValueError("columns that are not there")
            return cls(str(card["name"]), shape, int(card["classes"]), mean, std, integers, groups)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise UserError(f"this card has no readable model ({error})") from error


def _built_in(spec: ModelSpec) -> nn.Module:
    """Build a built-in model, after a look at its size: a card may come from anywhere."""
    name, shape, classes = spec.name, spec.input_shape, spec.classes
    what = f"{name} for inputs {shape} and {classes} classes"
    if classes < 2 or not shape or min(shape) < 1:
        raise UserError(f"cannot build {what}")
    build = _find_builder(name)
    if not name.startswith("mlp") and (len(shape) != 3 or min(shape[1:]) < 4):
        raise UserError(f"{name} takes images of at least 4×4, not inputs of shape {shape}; try 'mlp'")
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in build(shape, classes).parameters())
    except (RuntimeError, TypeError) as error:  # sizes beyond what a tensor can have
        raise UserError(f"cannot build {what}") from error
    if size > _MAX_PARAMETERS:
        raise UserError(f"{what} would have {size:.1e} parameters")
    return build(shape, classes)


def _find_builder(name: str) -> Builder:
    """Return what builds a network of ours; raises UserError for another name, and for sizes that there are not."""
    if name in MODELS:
        return MODELS[name][0]
    if wide := _WIDE.fullmatch(name):
        depth, width = int(wide[1]), int(wide[2])
        if not 8 <= depth <= 1000 or depth % 6 not in (2, 4) or not 1 <= width <= 100:
            raise UserError(
                f"{name}: the depth must be 6n + 4 (10, 16, 22, 28, 34, ...), or 6n + 2 as Madry's code counts "
                "(8, 14, 20, 26, 32, ...), and the width 1 to 100"
            )
        return partial(WideResNet, depth, width, activation=F.silu if wide[3] else F.relu)
    if small := _SMALL.fullmatch(name):
        width = int(small[2])
        if not 1 <= width <= _MAX_WIDTH:
            raise UserError(f"{name}: the width must be 1 to {_MAX_WIDTH}")
        return partial(mlp, hidden=width) if small[1] == "mlp" else partial(small_cnn, first=width)
    if net := _RESNET.fullmatch(name):
        width = int(net[2] or 64)
        if not 1 <= width <= 1000:
            raise UserError(f"{name}: the width, channels of the first stage, must be 1 to 1000")
        block = PreActBlock if net[1] else BasicBlock
        return partial(ResNet, block, width=width, activation=F.silu if net[3] else F.relu)
    raise unknown_name("model", name, MODELS)


def _from_library(spec: ModelSpec) -> nn.Module:
    """Build a network of timm or torchvision."""
    name, shape, classes = spec.name, spec.input_shape, spec.classes
    library, _, which = name.partition(":")
    if not _PLAIN.fullmatch(which):
        raise UserError(f"{name!r} is not a name of {library}")
    if len(shape) != 3 or not 1 <= shape[0] <= _MAX_CHANNELS or not 2 <= classes <= _MAX_CLASSES:
        raise UserError(f"{name} is for images, and at most {_MAX_CLASSES:,} classes; not for {shape}, {classes} classes")
    if library == "torchvision" and shape[0] != 3:
        raise UserError(f"{name} takes images of 3 channels, not {shape[0]}; timm's networks take any number")
    try:
        module: Any = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch that it was not made for
        said = first_line(error)
        raise UserError(f"{name} needs {library}, which cannot be imported here ({said}); pip install {library}") from error
    try:
        if library == "timm":
            net: nn.Module = module.create_model(which, pretrained=False, num_classes=classes, in_chans=shape[0])
        else:
            net = module.get_model(which, weights=None, num_classes=classes)
    except Exception as error:  # what their networks raise for arguments that do not fit is up to each
        raise UserError(f"cannot build {name}: {in_one_line(error)}") from error
    return net


def _from_factory(spec: ModelSpec) -> nn.Module:
    factory = import_object(spec.name, "model")
    offered = {"input_shape": spec.input_shape, "classes": spec.classes}
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{spec.name!r} is not a function or class that returns a model") from error
    given = {key: value for key, value in offered.items() if key in accepted}
    try:
        net = factory(**given)
    except (Exception, SystemExit) as error:  # it runs somebody's code
        problem = f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(
            f"{spec.name!r} fails with {problem}; a factory takes input_shape and classes, or what it needs of them"
        ) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec.name!r} returned a {type(net).__name__}, not a torch.nn.Module")
    return net


def model_code(model: nn.Module) -> str:
    """Return the class of a model, and a digest of all that computes besides its weights: ``"MyNet, code 0123456789abcdef"``.

    Digested is the code of each class of module and of functions put in by hand, as in
    :func:`hauberk.core.imports.code_digest`, numbers, flags and texts kept in modules, such as a scale (whole numbers are left
    out, because many are counters), what modules print of themselves, buffers that are not in the state dict, and the graph of
    a scripted module.
    """
    parts: list[Any] = [without_addresses(repr(model)), *sorted({type(m) for m in model.modules()}, key=repr)]
    weights = model.state_dict(keep_vars=True)
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            # What is torch's has an underscore, but for the mode.
            plain = not key.startswith("_") and key != "training" and isinstance(value, bool | float | str | tuple)
            if plain or inspect.isroutine(value):
                parts += [f"{name}.{key}", value]
        if isinstance(module, torch.jit.ScriptModule):
            parts.append(str(getattr(module, "inlined_graph", "")))
    others = {name: value for name, value in model.named_buffers() if name not in weights}
    return f"{type(model).__qualname__}, code {code_digest(*parts, tensors_digest(others))}"


def model_id(model: nn.Module) -> str:
    """Return a digest of all tensors of a model, 16 hexadecimal digits: its state, and what it keeps outside of that."""
    kept = {f"{name}.{key}": value for name, module in model.named_modules() for key, value in sorted(vars(module).items())}
    return tensors_digest({**model.state_dict(), **dict(model.named_buffers()), **kept})


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """Return a digest of those values that are tensors, with their dtypes and shapes, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for value in tensors.values():
        if isinstance(value, Tensor):
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
