"""hauberk export."""

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
class Export:
    """Write a trained model as a plain PyTorch state dict (.pth), safetensors, torch.export (.pt2) or ONNX (.onnx).

    Example: hauberk export runs/mnist-trades model.onnx
    """

    target: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or an exported .safetensors or .json."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write; its ending names the format."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""


def export(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Export, "export", arguments)
    from hauberk.training.export import FORMATS, export_model

    written = export_model(options.target, options.out, which=options.which)
    print(f"Written to {written} ({FORMATS[written.suffix]}); inputs are in the units of the data, outputs are logits")
    print("Next: " + _THEN[written.suffix].format(file=written, program=program()))
    return 0
