"""Models by name, of other libraries, by ``module:factory``; and how a card remembers them."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError, unknown_name
from hauberk.core.imports import import_object
from hauberk.models.hub import ZOOS, create_from_library
from hauberk.models.resnet import preact_resnet18, resnet18
from hauberk.models.row_layers import StraightThroughRound
from hauberk.models.small import mlp, small_cnn
from hauberk.models.wide_resnet import WideResNet

Builder = Callable[[tuple[int, ...], int], nn.Module]

MODELS: dict[str, tuple[Builder, str]] = {
    "small-cnn": (small_cnn, "two strided convolutions, two linear layers; minutes on a CPU"),
    "mlp": (mlp, "two hidden layers of 128; vectors and small images"),
    "resnet18": (resnet18, "ResNet-18 for 32×32 images (AT, MART, MAIL)"),
    "preact-resnet18": (preact_resnet18, "PreAct-ResNet-18 for 32×32 images (robust overfitting, AWP)"),
}
WIDE_RESNETS = ("wrn-34-10", "wrn-32-10", "wrn-28-10")
_MOST_PARAMETERS = 2e9
_WIDE = re.compile(r"wrn-(\d+)-(\d+)")


class Normalize(nn.Module):
    """Input normalisation as a layer, so that attacks and bounds live in the units of the data.

    Args:
        mean: per channel (first dimension of an example), or one number.
        std: likewise, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape)


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model again; plain types, stored in every card.

    Attributes:
        name: a built-in name, ``"wrn-d-k"``, ``"timm:NAME"``, ``"torchvision:NAME"``, ``"module:factory"``, or
            ``"python:<class>"`` for an object given from Python.
        input_shape: of one example, without the batch.
        classes: number of logits.
        mean: of the input normalisation inside the model; empty for none.
        std: likewise.
        integers: of a table's row, inputs that take whole values.
        groups: of a table's row, inputs of each category.
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
        """Whether it was an object in somebody's program, which no name can bring back."""
        return self.name.startswith("python:")

    @property
    def is_from_zoo(self) -> bool:
        """Whether it is a network of timm or torchvision."""
        return self.name.startswith(ZOOS)

    @property
    def imports(self) -> bool:
        """Whether building it would import a module that nobody knows."""
        return ":" in self.name and not self.is_from_python and not self.is_from_zoo

    def build(self) -> nn.Module:
        """Build the model with fresh weights from torch's global generator.

        Raises:
            UserError: if the name is unknown, or the model cannot take this input shape.
        """
        if self.is_from_python:
            raise UserError(f"this model was made in Python ({self.name[7:]}); pass model= with the same architecture")
        if self.is_from_zoo:
            net = create_from_library(self.name, self.input_shape, self.classes)
        elif self.imports:
            net = _from_factory(self)
        else:
            net = _checked_built_in(self)
        before: list[nn.Module] = [StraightThroughRound(self.integers, self.groups)] if self.integers or self.groups else []
        if self.mean:
            before.append(Normalize(self.mean, self.std))
        return nn.Sequential(*before, net) if before else net

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a JSON card."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "integers": list(self.integers),
            "groups": [list(group) for group in self.groups],
        }

    @classmethod
    def from_dict(cls, card: dict[str, Any]) -> "ModelSpec":
        """Read a spec from a card.

        Raises:
            UserError: if a field is missing or has the wrong type.
        """
        try:
            shape, mean, std = (tuple(map(kind, card[key])) for key, kind in _TUPLES.items())
            integers = tuple(map(int, card.get("integers", ())))
            groups = tuple(tuple(map(int, group)) for group in card.get("groups", ()))
            if not all(0 <= place < shape[-1] for place in (*integers, *chain(*groups))) or not all(groups):
                raise ValueError("columns that are not there")
            return cls(str(card["name"]), shape, int(card["classes"]), mean, std, integers, groups)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise UserError(f"this card has no readable model ({error})") from error


_TUPLES: dict[str, Callable[[Any], Any]] = {"input_shape": int, "mean": float, "std": float}


def _checked_built_in(spec: ModelSpec) -> nn.Module:
    """Build a built-in model, after a look at its size: a card may come from anywhere."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in _built_in(spec).parameters())
    except (RuntimeError, TypeError) as error:  # sizes beyond what a tensor can have
        raise UserError(f"cannot build {spec.name} for inputs {spec.input_shape} and {spec.classes} classes") from error
    if size > _MOST_PARAMETERS:
        raise UserError(
            f"{spec.name} for inputs {spec.input_shape} and {spec.classes} classes would have {size:.1e} parameters"
        )
    return _built_in(spec)


def _built_in(spec: ModelSpec) -> nn.Module:
    if spec.classes < 2 or not spec.input_shape or min(spec.input_shape) < 1:
        raise UserError(f"cannot build a model for inputs {spec.input_shape} and {spec.classes} classes")
    wide = _WIDE.fullmatch(spec.name)
    if not wide and spec.name not in MODELS:
        raise unknown_name("model", spec.name, [*MODELS, *WIDE_RESNETS])
    least = 1 if spec.name == "mlp" else 4
    if spec.name != "mlp" and (len(spec.input_shape) != 3 or min(spec.input_shape[1:]) < least):
        raise UserError(f"{spec.name} takes images of at least 4×4, not inputs of shape {spec.input_shape}; try 'mlp'")
    if wide:
        depth, width = int(wide[1]), int(wide[2])
        if not 8 <= depth <= 1000 or depth % 6 not in (2, 4) or not 1 <= width <= 100:
            raise UserError(
                f"{spec.name}: the depth must be 6n + 4 (10, 16, 22, 28, 34, ...), or 6n + 2 as Madry's code counts "
                "(8, 14, 20, 26, 32, ...), and the width 1 to 100"
            )
        return WideResNet(depth, width, spec.input_shape[0], spec.classes)
    return MODELS[spec.name][0](spec.input_shape, spec.classes)


def _from_factory(spec: ModelSpec) -> nn.Module:
    factory = import_object(spec.name, "model")
    offered = {"input_shape": spec.input_shape, "classes": spec.classes}
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{spec.name!r} is not a function or class that returns a model") from error
    net = factory(**{key: value for key, value in offered.items() if key in accepted})
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec.name!r} returned a {type(net).__name__}, not a torch.nn.Module")
    return net
