"""What a command is to look at: a trained model, and data set and threat model of its training unless others are given."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hauberk.core.errors import UserError
from hauberk.experiments.options import DataOptions

if TYPE_CHECKING:
    from torch import nn

    from hauberk.data import DatasetInfo, IndexedDataset, Table
    from hauberk.models import ModelSpec
    from hauberk.threat import Threat

_PICKLES = (".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class TargetThreatOptions:
    """What the adversary may do, where that is something else than in the training: norm, eps."""

    norm: Literal["Linf", "L2", "L1", "L0"] | None = None
    """Norm of the threat model, with --eps; by default that of the training. In L0 eps is how many features may change."""
    eps: str = ""
    """Radius ε of the threat model in the units of the data, such as 0.3 or 8/255; for a table, a factor of each feature's own.
    By default that of the training; of a model that does not say it, what the literature uses on the data set (L∞ only)."""


@dataclass(frozen=True)
class TargetOptions:
    """What names a model on disk, and what it is to be looked at with."""

    target: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or an exported .safetensors or .json file, or a PyTorch state dict (with --model); or the
    package.module:function that returns the trained model, as for a model of scikit-learn (this imports your module)."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run to take: the best one by validation, or the last."""
    model: str = ""
    """The package.module:factory to build a model with that its card cannot build (this imports your module)."""
    data: DataOptions = DataOptions("", "")
    threat: TargetThreatOptions = TargetThreatOptions()


@dataclass(frozen=True)
class Target:
    """A trained model on disk, and what it is to be looked at with.

    Attributes:
        card: of the model; empty if it has none.
        name: of the data set.
        named: that data set.
        test: its test set.
        threat: the threat model, or the union of several that the model was trained under.
    """

    card: dict[str, Any]
    name: str
    named: "DatasetInfo | Table"
    test: "IndexedDataset"
    threat: "Threat"


def find_target(options: TargetOptions) -> Target:
    """Read the card and the data that options name.

    Raises:
        UserError: if the card does not say which data set to use, or either cannot be read.
    """
    from hauberk.core.imports import is_import_path, trusted_name
    from hauberk.data import find_dataset
    from hauberk.training import read_card

    if options.target.suffix in _PICKLES:
        raise UserError(
            f"{options.target} is a pickle, which runs whatever code whoever wrote it put in; write a function that loads it "
            "and returns hauberk.models.from_sklearn(estimator), and name that: package.module:function (docs/tables.md)"
        )
    foreign = options.target.suffix in (".pt", ".pth") or is_import_path(str(options.target))
    card: dict[str, Any] = {} if foreign else read_card(options.target, options.which)[0]
    trained_on = card.get("data", {})
    name = options.data.name or trusted_name(str(trained_on.get("name", "")), "", "--data ")
    if not name:
        raise UserError("the card does not say which data set to use; give --data")
    folder = options.data.data_dir or str(trained_on.get("folder") or "data")
    named = find_dataset(name)
    test = named.load("test", folder, verify=options.data.verify)
    return Target(card, name, named, test, _find_threat(options, card, named))


def _find_threat(options: TargetOptions, card: dict[str, Any], named: "DatasetInfo | Table") -> "Threat":
    """Return the threat model of the training with what options say: another ε, in the same norm and box, or all of it."""
    from hauberk.data import Table
    from hauberk.threat import make_threat, read_threat, threats_of

    norm, eps = options.threat.norm, options.threat.eps
    if "threat" not in card or (norm and eps):
        return named.default_threat(norm or "Linf", eps)
    trained = read_threat(card["threat"])
    first, *others = threats_of(trained)
    if not eps:
        if norm is None or (norm == first.norm.name and not others):
            return trained
        raise UserError(f"{options.target} was trained under {trained}: --norm {norm} needs --eps, too")
    if others:
        raise UserError(f"{options.target} was trained under {trained}: --eps {eps} needs --norm, too")
    if isinstance(named, Table):  # whose features have an ε each
        return named.default_threat(first.norm.name, eps)
    return make_threat(first.norm, eps, first.low, first.high, first.frozen, first.monotone, first.one_hot)


def load_target(options: TargetOptions, target: Target, device: Any) -> "nn.Module":
    """Load the model; one that the user has named is built, any other is left to the card."""
    from hauberk.core.imports import is_import_path
    from hauberk.data.default_model import default_model
    from hauberk.models import ModelSpec
    from hauberk.training import load

    if is_import_path(str(options.target)):
        whole = default_model(str(options.target), target.test)
        return ModelSpec(whole.name, whole.input_shape, whole.classes).build().to(device).eval()
    if not options.model or target.card:
        model = build_named(options.target, options.which, options.model)
    else:
        model = _as_exported(default_model(options.model, target.test), options).build()
    return load(options.target, model=model, which=options.which, device=device)


def build_named(path: Path, which: str, factory: str) -> "nn.Module | None":
    """Build the network of a run or an exported model by the user's ``factory``; None, for the card to do it, without one."""
    from hauberk.models import ModelSpec
    from hauberk.training import read_card

    if not factory:
        return None
    return replace(ModelSpec.from_dict(read_card(path, which)[0].get("model", {})), name=factory).build()


def _as_exported(whole: "ModelSpec", options: TargetOptions) -> "ModelSpec":
    """Return the network behind the normalisation that an exported state dict has before it, or alone where it has none.

    Args:
        whole: the network, behind the nearest row where the data are rows of a table.
        options: which name the file.
    """
    from hauberk.models import ModelSpec
    from hauberk.training.export import read_weights

    alone = ModelSpec(whole.name, whole.input_shape, whole.classes)
    place = 1 if whole.integers or whole.groups else 0
    weights, names = read_weights(options.target, None, options.which), (f"{place}.mean", f"{place}.std")
    if not weights.keys() >= {*names} or names[0] in dict(alone.build().named_buffers()):  # which has its own there
        return alone
    mean, std = (tuple(weights[name].flatten().tolist()) for name in names)
    return replace(whole, mean=mean, std=std)
