"""hauberk data, methods, attacks, models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hauberk.cli.options import parse, program

_WIDE_RESNET = "wide ResNet for 32×32 images; any wrn-d-k with d = 6n + 4, or 6n + 2 as Madry's code counts the same network"


@dataclass(frozen=True)
class Data:
    """List data sets; or read one from its original files, check it, and say what is in it.

    Example: hauberk data mnist --data-dir ~/data
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of a data set, the schema of a table, FILE.toml, or module:attribute for your own; without one, all are listed."""
    label: str = ""
    """NAME is a CSV or Parquet file, and this its column with the class: print a schema of it to start from."""
    data_dir: Path = Path("data")
    """Folder with the original files."""
    verify: bool = True
    """Compare checksums of the files with the original ones."""
    download: bool = False
    """Download it into the folder first, through torchvision."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Methods:
    """List training methods, or explain one.

    Example: hauberk methods mart
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of a method; all are listed if there is none."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Attacks:
    """List attacks, and the suites of them that an evaluation runs."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Models:
    """List networks."""

    json: bool = False
    """Print JSON."""


def data(arguments: Sequence[str]) -> int:
    """Run ``hauberk data``."""
    options = parse(Data, "data", arguments)
    from hauberk.core.io import as_json
    from hauberk.data import DATASETS, find_dataset, labels
    from hauberk.data.named import download
    from hauberk.tables import Table, infer_schema, reach_of, read_frame

    if not options.name:
        rows = {name: f"{known.summary}; L∞ ε {known.eps}" for name, known in DATASETS.items()}
        return _show(rows, options.json, f"Next: {program()} data NAME --data-dir FOLDER checks the files.")
    if options.label:
        frame = read_frame(Path(options.name))
        print(infer_schema(frame, options.label, options.name), end="")  # a file by itself: redirect it
        return 0
    if options.download:
        download(options.name, options.data_dir)
    parts: dict[str, Any] = {}
    named = find_dataset(options.name)
    for split in ("train", "test"):
        source = named.load(split, options.data_dir, verify=options.verify)
        counts = labels(source).bincount(minlength=source.classes or 0).tolist()
        parts[split] = {"examples": len(source), "shape": list(source.input_shape), "per_class": counts}
    reach = reach_of(source, named.default_threat()) if isinstance(named, Table) else None
    if options.json:
        print(as_json(parts | ({"reach": reach.to_dict()} if reach else {})))
        return 0
    files = options.name in DATASETS and options.name != "digits"
    checked = "checksums right" if options.verify and files else "not compared with checksums"
    for split, part in parts.items():
        shape = "×".join(map(str, part["shape"]))
        few, many = min(part["per_class"]), max(part["per_class"])
        print(f"{options.name} {split}: {part['examples']:,} of {shape}, {few} to {many} per class, {checked}")
    if reach:
        print(f"Of the table {reach}")
    where = f" --data-dir {options.data_dir}" if files else ""
    print(f"Next: {program()} train --data {options.name}{where}")
    return 0


def methods(arguments: Sequence[str]) -> int:
    """Run ``hauberk methods``."""
    options = parse(Methods, "methods", arguments)
    from hauberk.core.io import as_json
    from hauberk.methods import default_settings, equation, get_method_spec, list_methods

    if not options.name:
        return _show(list_methods(), options.json, f"Next: {program()} methods NAME explains one; each also takes +awp.")
    recipe = get_method_spec(options.name)
    facts = {
        "name": options.name,
        "summary": recipe.summary,
        "source": recipe.source,
        "minimises": equation(recipe),
        "objective": type(recipe.objective).__name__,
        "weighting": type(recipe.weighting).__name__ if recipe.weighting else "none, all weights are 1",
        "settings": _plain(default_settings(options.name)),
        "official code": _plain(recipe.official) or "no setting differs",
        "training (CIFAR-10)": _published(options.name),
        "loss": (getattr(recipe.objective, "function", type(recipe.objective)).__doc__ or "").strip(),
    }
    if options.json:
        print(as_json(facts))
        return 0
    for key, value in facts.items():
        if value is not None:
            print(f"{key}: {value}")
    print(f"Next: {program()} train --method {options.name}")
    return 0


def attacks(arguments: Sequence[str]) -> int:
    """Run ``hauberk attacks``."""
    options = parse(Attacks, "attacks", arguments)
    from hauberk.attacks import PRESETS
    from hauberk.evaluation import SUITES

    rows = {f"suite {name}": suite.description for name, suite in SUITES.items()} | {n: p.source for n, p in PRESETS.items()}
    return _show(rows, options.json, f"Next: {program()} evaluate RUN --suite NAME, or --attacks NAME ...")


def models(arguments: Sequence[str]) -> int:
    """Run ``hauberk models``."""
    options = parse(Models, "models", arguments)
    from hauberk.models import MODELS, WIDE_RESNETS

    rows = {name: what for name, (_, what) in MODELS.items()}
    rows |= dict.fromkeys(WIDE_RESNETS, _WIDE_RESNET)
    rows |= {"timm:NAME": "a network of timm, if installed", "torchvision:NAME": "of torchvision, likewise; 3 channels"}
    rows["module:factory"] = "your own, called with input_shape= and classes= if it takes them"
    return _show(rows, options.json, f"Next: {program()} train --model NAME")


def _published(name: str) -> str:
    """Say how the sources train this method on CIFAR-10."""
    from hauberk.training.published import BY_DATA, OFFICIAL, find_published

    found = [(model, find_published("cifar10", model, name)) for data, model in BY_DATA if data == "cifar10"]
    official = [(f"{model}, official", row) for (method, model), row in OFFICIAL.items() if method == name]
    return "".join(f"\n  {model}: {_plain(row.settings | row.method)} ({row.source})" for model, row in found + official)


def _plain(settings: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, ()))


def _show(rows: dict[str, str], in_json: bool, then: str) -> int:
    from hauberk.core.io import as_json

    if in_json:
        print(as_json(rows))
        return 0
    width = max(map(len, rows))
    for name, what in rows.items():
        print(f"{name:<{width}}  {what}")
    print(then)
    return 0
