"""Trained models out of the house: plain state dicts and safetensors; torch.export and ONNX, compared with the model itself."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hauberk.errors import UserError, in_one_line
from hauberk.training.card import load, read_card, save_model

FORMATS = {
    ".pth": "state dict of plain PyTorch",
    ".safetensors": "weights, and a card beside them",
    ".pt2": "torch.export: a program that needs no Python code of the model",
    ".onnx": "ONNX; needs onnx and onnxscript",
}
_CLOSE = 1e-4  # largest difference of logits, relative to their size


def export_model(
    target: str | Path, out: str | Path, *, model: nn.Module | None = None, which: Literal["best", "last"] = "best"
) -> Path:
    """Write a trained model in the format that the ending of ``out`` names.

    A program (``.pt2``; ``.onnx`` where onnxruntime is installed) is read again, and must compute the same logits. Its batch
    size stays free. Normalisation is inside, as in the model: inputs are in the units of the data.

    Args:
        target: a run's folder, or an exported ``.safetensors`` or ``.json``.
        out: file to write: ``.pth``, ``.safetensors``, ``.pt2`` or ``.onnx``.
        model: as for :func:`hauberk.load`.
        which: of a run: "best" or "last".

    Returns:
        ``out``.

    Raises:
        UserError: as :func:`hauberk.load`; for another ending, an exporter that is not installed or refuses the model, and a
            program whose logits differ.
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise UserError(f"an exported model ends in {', '.join(FORMATS)}, not {path.suffix or path.name!r}")
    net = load(target, model=model, which=which)
    card = read_card(Path(target), which)[0]
    x = _inputs(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pth":
            torch.save(net.state_dict(), path)
        elif path.suffix == ".safetensors":
            kept = {key: value for key, value in card.items() if key not in ("format", "weights", "versions")}
            kept["data"] = {key: value for key, value in kept["data"].items() if key != "folder"}  # nobody else's business
            save_model(path.with_suffix(""), net.state_dict(), kept)
        elif path.suffix == ".pt2":
            torch.export.save(_program(net, x), path)
            _compare(path, net(x), torch.export.load(path).module()(x))
        else:
            _write_onnx(net, x, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _inputs(card: dict[str, Any]) -> Tensor:
    """Three random inputs of the right shape."""
    shape = tuple(card["model"]["input_shape"])
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def _program(net: nn.Module, x: Tensor) -> "torch.export.ExportedProgram":
    try:
        with torch.no_grad():
            return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # an exporter may refuse other people's modules in any way
        raise UserError(f"torch.export refuses this model: {in_one_line(error)}") from error


def _write_onnx(net: nn.Module, x: Tensor, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs onnx and onnxscript; pip install 'hauberk[onnx]'") from error
    program = _program(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        torch.onnx.export(program, (), path, input_names=["input"], output_names=["logits"], external_data=False, verbose=False)
    try:
        import onnxruntime
    except ImportError:
        return  # nothing here that could run it
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for some in (x, x[:2]):
        logits = session.run(None, {session.get_inputs()[0].name: some.numpy()})[0]
        _compare(path, net(some), torch.from_numpy(logits))


def _compare(path: Path, ours: Tensor, theirs: Tensor) -> None:
    ours = ours.detach()
    apart = float((ours - theirs.detach()).abs().max() / ours.abs().max().clamp_min(1e-12))
    if not apart < _CLOSE:
        path.unlink(missing_ok=True)
        raise UserError(f"the exported model computes other logits (relative difference {apart:.2g}); it was not kept")
