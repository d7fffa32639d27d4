"""hauberk report and hauberk export: what a run leaves for others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hauberk.cli.options import parse, program

_THEN = {
    ".pth": "net.load_state_dict(torch.load('{file}', weights_only=True))",
    ".safetensors": "{program} evaluate {file}",
    ".pt2": "torch.export.load('{file}').module()",
    ".onnx": "onnxruntime.InferenceSession('{file}')",
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


def report(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Report, "report", arguments)
    from hauberk.report import make_report

    print(f"Written to {make_report(options.target, options.out, options.figures)}. Next: open it in any browser")
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


def export(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Export, "export", arguments)
    from hauberk.training.export import FORMATS, export_model

    written = export_model(options.target, options.out, which=options.which)
    print(f"Written to {written} ({FORMATS[written.suffix]}); inputs are in the units of the data, outputs are logits")
    print("Next: " + _THEN[written.suffix].format(file=written, program=program()))
    return 0
