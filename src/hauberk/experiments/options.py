"""Options that commands and experiments share, each declared once; free of torch, so that help answers at once.

The text below a field is what ``--help`` says of it, and a command that has one of these groups as a field has its options.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_type_hints

from tyro.conf import Suppress, arg

from hauberk.training.config import TrainConfig

# Training settings of a study's networks unless others are given: a claim is about what a training comes to, a collapse, too.
STUDY_SETTINGS: Mapping[str, Any] = MappingProxyType({"on_divergence": "ignore"})


@dataclass(frozen=True)
class DataOptions:
    """The data set, and where it is: name, data_dir, verify."""

    name: Annotated[str, arg(name="data")] = "digits"
    """Name of the data set (see 'hauberk data'), FILE.toml for a table, or package.module:attribute for your own."""
    data_dir: Annotated[str, arg(metavar="FOLDER")] = "data"
    """Folder with the original files of the data set."""
    verify: bool = True
    """Compare the checksums of these files with those of the original ones."""


@dataclass(frozen=True)
class SubsetOptions:
    """How much of the data set to use: train_size, test_size."""

    train_size: int = 0
    """Number of examples to train on, the first ones; 0 for all."""
    test_size: int = 0
    """Number of examples to evaluate on, the first ones; 0 for all."""
    # Of studies, and no options of a command.
    imbalance: Suppress[float] = 1.0
    """How many times more training examples the first class keeps than the last; 1 leaves them as they are."""
    label_noise: Suppress[float] = 0.0
    """Part of the training labels that are replaced by random ones, uniform over all classes; 1 for random labels."""


@dataclass(frozen=True)
class ThreatOptions:
    """What the adversary may do: norm, eps."""

    norm: Literal["Linf", "L2", "L1", "L0"] = "Linf"
    """Norm of the threat model; in L0 eps is how many features may change."""
    eps: str = ""
    """Radius ε of the threat model in the units of the data, such as 0.3 or 8/255; for a table, a factor of each feature's own.
    By default what the literature uses on the data set (L∞ only)."""


@dataclass(frozen=True)
class ModelOptions:
    """The network: name, normalize."""

    name: Annotated[str, arg(name="model")] = "small-cnn"
    """Name of the network (see 'hauberk models'; also timm:NAME, torchvision:NAME), or package.module:factory for your own."""
    normalize: bool = False
    """Normalise inputs inside the model by mean and deviation of the training set."""


@dataclass(frozen=True)
class PresetOptions:
    """Where settings come from that are not given: preset, schedule_preset."""

    preset: str = "paper"
    """Follow the paper of a method, or the code of its authors where that differs (official); some methods have a further one,
    such as note of mart and clipped of score ('hauberk methods NAME' says so)."""
    schedule_preset: Literal["published", "express", "robust"] = "published"
    """Take training settings that are not given from the method's literature (published), from a short training that reaches
    about as much (express), or from the literature's long trainings of large networks (robust, for methods as trades+awp)."""


@dataclass(frozen=True)
class SourceOptions:
    """What a training takes from elsewhere: extra, extra_labels, extra_share, init."""

    extra: Annotated[str, arg(metavar="FILE")] = ""
    """Further training examples, such as generated ones: an .npz file with the arrays image, uint8 (N, H, W, channels), and
    label, (N,) or probabilities (N, C)."""
    extra_labels: Annotated[str, arg(metavar="RUN|FILE")] = ""
    """Network whose predictions are their labels, for a file without any: folder of a run, best one of method standard, or an
    exported file."""
    extra_share: float = 0.7
    """Part of each batch taken from them; an epoch is one pass over the others."""
    init: Annotated[str, arg(metavar="FOLDER|FILE")] = ""
    """Weights to begin from: the best ones of a run, an exported model, or a PyTorch state dict; by default random ones."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation does: suite, attacks, sequential, certify."""

    suite: str = "quick"
    """Attacks to run: quick (FGSM, PGD-20, CW-30, PGD-100), papers (the columns of the papers' tables), standard (AutoAttack),
    fast (its accuracy, estimated at a fraction of the price), plus, scores (for models without gradients), or rand (for random
    models); see 'hauberk attacks'."""
    attacks: tuple[str, ...] = ()
    """Attacks to run instead of a suite, such as pgd-40 cw-100, or package.module:attribute for your own."""
    sequential: bool = False
    """Run each of these attacks only on the examples that are still robust, instead of on all."""
    certify: bool = False
    """Prove for as many examples as possible that no attack can break them, which bounds robust accuracy from below; attacks
    are then run on the others only. See 'hauberk certify'."""


def _texts(kind: type) -> dict[str, str]:
    """The text below each field of a class."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


_NO_OPTIONS = ("extra_share",)  # it is beside the file of the extra examples, in SourceOptions


def as_options(config: TrainConfig) -> dict[str, Any]:
    """Return the training settings that commands take."""
    return {name: value for name, value in vars(config).items() if name not in _NO_OPTIONS}


# The fields of TrainConfig that are given, and no others: what is not given is looked up.
SETTINGS = {name: hint for name, hint in get_type_hints(TrainConfig).items() if name not in _NO_OPTIONS}
if TYPE_CHECKING:
    TrainSettings = dict[str, Any]
else:
    _TEXTS = _texts(TrainConfig)
    TrainSettings = TypedDict(
        "TrainSettings",
        {name: Annotated[hint, arg(help=_TEXTS[name])] for name, hint in SETTINGS.items()},
        total=False,
    )


class Hyperparameters(TypedDict, total=False):
    """Parts of the method, in place of its own; its settings are options, too, once --method names it: see its --help."""

    attack: str
    """Another attack: package.module:attribute."""
    objective: str
    """Another loss, likewise."""
    weighting: str
    """Another weighting of the examples: mail, gairat, or another name in docs/methods.md; or package.module:attribute."""
    weight_perturbation: str
    """Another perturbation of the weights: awp, sam, asam, rwp, mlcat-wp; or package.module:attribute."""
    targets: str
    """What makes probabilities of the classes in place of the labels: package.module:attribute."""
    label_smoothing: float
    """α of the loss, from 0 to 1: how much of each label goes to all classes alike."""
    teacher: str
    """Network that a distillation learns from (HAT's helper): folder of a run, exported file, or package.module:attribute."""


PART_TEXTS = _texts(Hyperparameters)


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how, in plain types: what ``hauberk train`` is told, and what a config.toml holds."""

    method: str = "at"
    """Name of the method, in any case (see 'hauberk methods'), or package.module:attribute for your own."""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    data: DataOptions = DataOptions()
    train_size: int = 0
    """Number of examples to train on, the first ones; 0 for all."""
    threat: ThreatOptions = ThreatOptions()
    union: tuple[str, ...] = ()
    """Further threat models, each NORM:EPS as in L2:0.5 L1:12, for methods that train under several (e-at, max-at, ramp)."""
    model: ModelOptions = ModelOptions()
    presets: PresetOptions = PresetOptions()
    sources: SourceOptions = SourceOptions()
    settings: TrainSettings = field(default_factory=dict)
    """Training settings."""


def digest(options: Mapping[str, Any]) -> str:
    """Return eight characters that stand for options: the same for the same ones, whatever their order."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:8]
