"""hauberk data, methods, attacks, models and doctor: what there is."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal

import tyro

from hauberk import __version__
from hauberk.cli.options import command, parse, print_rows, program, say
from hauberk.core.arguments import shown
from hauberk.core.errors import first_line

_WIDTH = 100  # letters of what a setting is
_EXTRAS = {
    "pandas": "tables",
    "tensorboard": "training curves in TensorBoard",
    "onnxscript": "export to ONNX",
    "submitit": "Slurm clusters",
    "torchvision": "'hauberk data --download', and its networks",
    "timm": "its networks",
}


@dataclass(frozen=True)
class Data:
    """List data sets; or read one from its original files, check it, and say what is in it.

    Example: hauberk data mnist --data-dir ~/data
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of a data set, or the description of a table, FILE.toml; all are listed if there is none."""
    label: str = ""
    """NAME is a CSV or Parquet file, and this its column with the class: print a description of it to start from."""
    target: str = ""
    """With --label, the class of interest (default, fraud), a value of the label, whose recall and cost are measured."""
    can_change: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[COLUMN ...]")] = ()
    """With --label, the columns that an adversary can change; without it the description lets all of them change."""
    data_dir: Path = Path("data")
    """Folder with the original files of the data set."""
    verify: bool = True
    """Compare the checksums of these files with those of the original ones."""
    download: bool = False
    """Download the data set into the folder first, through torchvision."""
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
class Listing:
    """What a command that only lists something can be told."""

    json: bool = False
    """Print JSON."""


def data(arguments: Sequence[str]) -> int:
    """Run ``hauberk data``."""
    options = parse(Data, "data", arguments)
    from hauberk.core.io import as_json
    from hauberk.data import DATASETS, Table, class_overlap, find_dataset, infer_schema, labels, reach_of, read_frame
    from hauberk.data.named import download

    if not options.name:
        rows = {name: f"{known.summary}; L∞ ε {known.eps}" for name, known in DATASETS.items()}
        return print_rows(rows, options.json, f"Next: {program()} data NAME --data-dir FOLDER checks the files.")
    if options.label:
        frame = read_frame(Path(options.name))
        text = infer_schema(frame, options.label, options.name, options.target, options.can_change)
        print(text, end="")  # a file by itself: redirect it
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
    overlap = class_overlap(named.train, named.default_threat()) if isinstance(named, Table) else None
    if options.json:
        found = {"reach": reach, "overlap": overlap}
        print(as_json(parts | {key: asdict(one) for key, one in found.items() if one}))
        return 0
    files = options.name in DATASETS and options.name != "digits"
    checked = "checksums right" if options.verify and files else "not compared with checksums"
    for split, part in parts.items():
        shape = "×".join(map(str, part["shape"]))
        few, many = min(part["per_class"]), max(part["per_class"])
        say(f"{options.name} {split}: {part['examples']:,} of {shape}, {few} to {many} per class, {checked}")
    if reach:
        say(f"Of the table {reach}")
        for name, how in reach.how.items():
            say(f"  {name} can change {how}")
        say(f"Whatever the network, {overlap}")
    where = ["--data-dir", options.data_dir] if files else []
    say(f"Next: {command('train', '--data', options.name, *where)}")
    return 0


def methods(arguments: Sequence[str]) -> int:
    """Run ``hauberk methods``."""
    options = parse(Methods, "methods", arguments)
    from hauberk.cli.train import is_option_of_training
    from hauberk.core.io import as_json
    from hauberk.methods import ADDITIONS, default_settings, get_method_spec, list_methods
    from hauberk.methods.registry import find_method, method_settings
    from hauberk.methods.settings import words_of

    if not options.name:
        added = " ".join(f"+{name}" for name in ADDITIONS)
        return print_rows(
            list_methods(), options.json, f"Next: {program()} methods NAME explains one; each also takes {added}."
        )
    name = find_method(options.name)
    spec, usual = get_method_spec(name), default_settings(name)
    facts = {
        "name": name,
        "summary": spec.summary,
        "source": spec.source,
        "minimises": f"mean of {spec.equation}",
        "objective": type(spec.objective).__name__,
        "weighting": type(spec.weighting).__name__ if spec.weighting else "none, all weights are 1",
        "settings": _plain(usual),
        "official code": _plain(spec.official) or "no setting differs",
        **{f"preset {name}": _plain(settings) for name, settings in spec.further.items()},
        "training (CIFAR-10)": _published(name),
        "loss": (getattr(spec.objective, "function", type(spec.objective)).__doc__ or "").strip(),
    }
    if options.json:
        print(as_json(facts))
        return 0
    known = method_settings(name)
    options_of = {key: f"--set {key}=" if is_option_of_training(key) else f"--{key.replace('_', '-')} " for key in known}
    rows = []
    for key, one in known.items():
        if key in usual:
            about = shorten(one.about or f"of the {one.part}", _WIDTH, placeholder=" ...")
            rows.append(f"\n  {options_of[key]}{words_of(one.kind)} ({shown(usual[key])}): {about}")
    others = ", ".join(option.strip() for key, option in options_of.items() if key not in usual)
    facts["settings"] = "".join([*rows, f"\n  and, not used unless given, {others}"])
    for key, value in facts.items():
        if value is not None:
            say(f"{key}: {value}")
    say(f"Next: {command('train', '--method', name)}, with --help for these settings as options and all they mean")
    return 0


def _published(method: str) -> str:
    """Say how the sources train this method on CIFAR-10."""
    from hauberk.training.published import BY_DATA, OFFICIAL, resolve

    found = [(model, resolve("cifar10", model, method)) for data, model in BY_DATA if data == "cifar10"]
    official = [model for name, model in OFFICIAL if name == method]
    found += [(f"{model}, official", resolve("cifar10", model, method, preset="official")) for model in official]
    return "".join(f"\n  {model}: {_plain(row.settings | row.added)} ({row.source})" for model, row in found)


def _plain(settings: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, ()))


def attacks(arguments: Sequence[str]) -> int:
    """Run ``hauberk attacks``."""
    options = parse(Listing, "attacks", arguments, text="List attacks, and the suites of them that an evaluation runs.")
    from hauberk.attacks import PRESETS, SUITES

    rows = {f"suite {name}": suite.description for name, suite in SUITES.items()} | {n: p.source for n, p in PRESETS.items()}
    return print_rows(rows, options.json, f"Next: {program()} evaluate RUN --suite NAME, or --attacks NAME ...")


def models(arguments: Sequence[str]) -> int:
    """Run ``hauberk models``."""
    options = parse(Listing, "models", arguments, text="List networks.")
    from hauberk.models import MODELS

    rows = {name: what for name, (_, what) in MODELS.items()}
    rows |= {"timm:NAME": "a network of timm, if installed", "torchvision:NAME": "of torchvision, likewise; 3 channels"}
    rows["package.module:factory"] = "your own, called with input_shape= and classes= if it takes them"
    return print_rows(rows, options.json, f"Next: {program()} train --model NAME")


def doctor(arguments: Sequence[str]) -> int:
    """Run ``hauberk doctor``."""
    text = "Say what this machine offers: versions, device, threads, precision, what is missing."
    options = parse(Listing, "doctor", arguments, text=text)
    import torch

    others = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "scikit-learn", "safetensors", "tyro", "rich")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    facts = {
        "python": platform.python_version(),
        "versions": ", ".join([f"hauberk {__version__}", *others]),  # ours may run from a checkout that is not installed
        "device": f"cuda: {', '.join(gpus)}" if gpus else "cpu (no CUDA device found)",
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "bf16": _bf16(bool(gpus)),
    }
    facts |= {name: _importable(name, purpose) for name, purpose in _EXTRAS.items()}
    return print_rows(facts, options.json, f"Next: {program()} demo")


def _bf16(on_gpu: bool) -> str:
    import torch

    if on_gpu:
        return "supported" if torch.cuda.is_bf16_supported() else "not supported by this GPU"
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "fast instructions" if fast else "no fast instructions"


def _importable(name: str, purpose: str) -> str:
    try:
        return f"{import_module(name).__version__}"
    except ModuleNotFoundError:
        return f"not installed; only needed for {purpose}"
    except Exception as error:  # a broken installation can fail in any way
        return f"cannot be imported ({first_line(error)}); only needed for {purpose}"


_THEN = {
    ".pth": "hauberk.load({file!r}, model=net)",
    ".safetensors": "{command}",
    ".pt2": "torch.export.load({file!r}).module()",
    ".onnx": "onnxruntime.InferenceSession({file!r})",
}


@dataclass(frozen=True)
class Report:
    """Write one HTML file, with pictures, of a run, an evaluation, a comparison or studies. It opens without a network.

    Example: hauberk report runs/mnist-trades
    """

    target: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, an evaluation, a comparison or studies, or the JSON file of an evaluation or a study."""
    out: Path | None = None
    """The file to write; by default report.html in the target."""
    figures: Path | None = None
    """Folder for every picture as PNG, SVG and PDF, and every table as Markdown, LaTeX and CSV."""
    standard: Path | None = None
    """Of a run or an evaluation: the standard model to show beside it, evaluated by the same suite: the folder of a run, or of
    an evaluation; by default, of a run, one of the same data and network in the same folder, if there is one."""


def report(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Report, "report", arguments)
    from hauberk.report import make_report

    written = make_report(options.target, options.out, options.figures, options.standard)
    say(f"Written to {written}. Next: open it in any browser")
    return 0


@dataclass(frozen=True)
class Export:
    """Write a trained model as a plain PyTorch state dict (.pth), safetensors, torch.export (.pt2) or ONNX (.onnx).

    Example: hauberk export runs/mnist-trades model.onnx
    """

    target: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or an exported .safetensors or .json file."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write; its ending names the format."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run to take: the best one by validation, or the last."""
    model: str = ""
    """The package.module:factory to build a model with that its card cannot build (this imports your module)."""


def export(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Export, "export", arguments)
    from hauberk.cli.target import build_named
    from hauberk.training.export import FORMATS, export_model

    model = build_named(options.target, options.which, options.model)
    written = export_model(options.target, options.out, model=model, which=options.which)
    say(f"Written to {written} ({FORMATS[written.suffix]}); inputs are in the units of the data, outputs are logits")
    say("Next: " + _THEN[written.suffix].format(file=str(written), command=command("evaluate", written)))
    return 0
