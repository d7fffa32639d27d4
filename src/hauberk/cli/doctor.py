"""hauberk doctor."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from hauberk import __version__
from hauberk.cli.options import parse, program
from hauberk.core.errors import first_line

_EXTRAS = {
    "pandas": "tables",
    "tensorboard": "training curves in TensorBoard",
    "onnxscript": "export to ONNX",
    "submitit": "Slurm clusters",
    "torchvision": "'hauberk data --download', and its networks",
    "timm": "its networks",
}


@dataclass(frozen=True)
class Doctor:
    """Say what this machine offers: versions, device, threads, precision, what is missing."""

    json: bool = False
    """Print JSON."""


def doctor(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Doctor, "doctor", arguments)
    from hauberk.core.io import as_json

    facts = _facts()
    if options.json:
        print(as_json(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<14} {value}")
    print(f"Next: {program()} demo")
    return 0


def _facts() -> dict[str, Any]:
    import torch

    others = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "scikit-learn", "safetensors", "tyro", "rich")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": ", ".join([f"hauberk {__version__}", *others]),  # ours may run from a checkout that is not installed
        "device": f"cuda: {', '.join(gpus)}" if gpus else "cpu (no CUDA device found)",
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "bf16": _bf16(bool(gpus)),
    }
    for name, purpose in _EXTRAS.items():
        facts[name] = _importable(name, purpose)
    return facts


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
