"""Trained models out of the house: plain state dicts and safetensors; torch.export and ONNX, compared with the model itself."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import make_folder, read_json, write_atomically
from hauberk.training.model_card import FORMAT, card_of, load, read_card, save_model

FORMATS = {
    ".pth": "state dict of plain PyTorch",
    ".safetensors": "weights, and a card beside them",
    ".pt2": "torch.export: a program that needs no Python code of the model",
    ".onnx": "ONNX; needs onnx and onnxscript",
}
_LARGEST_ONNX = 2**31 - 2**20  # bytes of weights; the rest for the program itself
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
        UserError: as :func:`hauberk.load`; for another ending, an exporter that is not installed or refuses the model, a
            program whose logits differ, and a file that cannot be written; nothing is left of it then.
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise UserError(f"an exported model ends in {', '.join(FORMATS)}, not {path.suffix or path.name!r}")
    net = load(target, model=model, which=which)
    card = read_card(Path(target), which)[0]
    make_folder(path.parent)
    if path.suffix == ".safetensors":
        _require_replaceable(card_of(path))
        kept = {key: value for key, value in card.items() if key not in ("format", "weights", "versions")}
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "folder"}  # nobody else's business
        save_model(path.with_suffix(""), net.state_dict(), kept)
    else:
        # Made and checked in memory: exporters that write to a full disk leave parts of files, or end the process.
        write_atomically(path, _PROGRAMS[path.suffix](net, _inputs(card)))
    return path


def _require_replaceable(card: Path) -> None:
    """Refuse to write a card over another kind of file, such as ``run.json``."""
    try:
        replaceable = not card.exists() or read_json(card).get("format") == FORMAT
    except UserError:
        replaceable = False
    except OSError as error:
        raise UserError(f"cannot write {card}: {error.strerror or error}") from error
    if not replaceable:
        raise UserError(f"the card would replace {card}, which is none; choose another name")


def _inputs(card: dict[str, Any]) -> Tensor:
    """Three random inputs of the right shape."""
    shape = tuple(card["model"]["input_shape"])
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def _state_dict(net: nn.Module, x: Tensor) -> bytes:
    content = io.BytesIO()
    torch.save(net.state_dict(), content)
    return content.getvalue()


def _torch_export(net: nn.Module, x: Tensor) -> bytes:
    content = io.BytesIO()
    torch.export.save(_program(net, x), content)
    content.seek(0)
    _compare(net(x), torch.export.load(content).module()(x))
    return content.getvalue()


def _onnx(net: nn.Module, x: Tensor) -> bytes:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs onnx and onnxscript; pip install 'hauberk[onnx]'") from error
    if sum(value.nbytes for value in net.state_dict().values()) > _LARGEST_ONNX:
        raise UserError("one ONNX file holds at most 2 GB, and this network is larger; export it to .pt2")
    program = _program(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        exported = torch.onnx.export(program, (), input_names=["input"], output_names=["logits"], verbose=False)
    assert exported is not None  # of an exported program it never is
    content: bytes = exported.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return content  # nothing here that could run it
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for some in (x, x[:2]):
        logits = session.run(None, {session.get_inputs()[0].name: some.numpy()})[0]
        _compare(net(some), torch.from_numpy(logits))
    return content


def _program(net: nn.Module, x: Tensor) -> "torch.export.ExportedProgram":
    try:
        with torch.no_grad():
            return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # an exporter may refuse other people's modules in any way
        raise UserError(f"torch.export refuses this model: {in_one_line(error)}") from error


def _compare(ours: Tensor, theirs: Tensor) -> None:
    ours = ours.detach()
    apart = float((ours - theirs.detach()).abs().max() / ours.abs().max().clamp_min(1e-12))
    if not apart < _CLOSE:
        raise UserError(f"the exported model computes other logits (relative difference {apart:.2g}); it was not kept")


# What a file of each ending holds; given the network and some inputs.
_PROGRAMS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {".pth": _state_dict, ".pt2": _torch_export, ".onnx": _onnx}
