"""Trained models on disk: weights with a card; state dicts, torch.export and ONNX, compared with the model itself."""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hauberk.attacks.model.check_model import check_module
from hauberk.core.arguments import checked
from hauberk.core.distributed import usable_device
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import json_file, make_folder, read_json, read_tensors, versions, write_atomically, write_together
from hauberk.core.numerics import float32_mode
from hauberk.models import ModelSpec, Normalize
from hauberk.models.programs import onnx_program, torch_program
from hauberk.models.state_dicts import find_state_dict, fit_names

FORMAT = "hauberk-card/1"
_TORCH_FILES = (".pt", ".pth")
FORMATS = {
    ".pth": "state dict of plain PyTorch",
    ".safetensors": "weights, and a card beside them",
    ".pt2": "torch.export: a program that needs no Python code of the model",
    ".onnx": "ONNX; needs onnx and onnxscript",
}


def save_model(path: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write a state dict to ``path``.safetensors, and a card of plain types, with format, versions and date, to ``path``.json.

    Raises UserError if one of them cannot be written; neither is then.
    """
    # safetensors refuses shared and non-contiguous memory.
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    kept = path.with_name(f"{path.name}.safetensors")  # with_suffix would cut off a part of model.v1
    content = save_tensors(whole)
    about = {"format": FORMAT, "weights": kept.name, "weights_digest": _digest(content)} | card | {"versions": versions()}
    write_together({card_of(kept): json_file(about), kept: content})


def _digest(content: bytes) -> str:
    """Return what binds a card to its weights: a process may be killed between the two files."""
    return hashlib.sha256(content).hexdigest()[:16]


def card_of(path: Path) -> Path:
    """Return where the card of a model is: given its weights, the card itself, or the name that both share."""
    return path.with_suffix(".json") if path.suffix in (".safetensors", ".json") else path.with_name(f"{path.name}.json")


@checked
def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    which: Literal["best", "last"] = "best",
    allow_code: bool = False,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a trained model, in evaluation mode.

    Args:
        path: a run's folder, an exported ``.safetensors`` file or its ``.json`` card; or a state dict of plain PyTorch
            (``.pt``, ``.pth``), such as RobustBench's, for which ``model`` is needed. What wrappers put before all names may
            differ from the model's (see :func:`hauberk.models.state_dicts.fit_names`).
        model: the network to load the weights into; needed where the card cannot build it.
        which: of a run, or of a checkpoint that has both: the best by validation, or the last.
        allow_code: build a model that the card names as ``module:factory``, which imports that module.
        device: where to put it.

    Returns:
        The network, (B, ...) to logits (B, C).

    Raises:
        UserError: if files are missing, damaged, foreign, do not fit the model, or would need code.
    """
    if model is not None:
        check_module(model)
    where, path = usable_device(device), Path(path)
    is_plain = path.suffix in _TORCH_FILES
    card, weights = ({}, path) if is_plain else read_card(path, which)
    if model is None:
        if is_plain:
            raise UserError(f"{path} does not say which network it belongs to; pass model=")
        spec = ModelSpec.from_dict(card.get("model", {}))
        if spec.imports and not allow_code:
            again = f"on the command line, --model {spec.name} (of a surrogate, --surrogate-model)"
            raise UserError(f"this card would import {spec.name!r}; if you trust it, pass model=, or allow_code=True; {again}")
        with torch.random.fork_rng(devices=[]):
            model = spec.build()
    tensors, own = read_weights(weights, card.get("weights_digest"), which), model.state_dict()
    if is_plain:
        tensors = fit_names(tensors, model, str(path))
    for name, value in tensors.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise UserError(f"the weights in {weights} do not fit this model: {name} is {value.dtype}, not {own[name].dtype}")
        if value.is_floating_point() and bool(value.isnan().any()):
            raise UserError(f"the weights in {weights} are damaged: {name} has NaN")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"the weights in {weights} do not fit this model: {in_one_line(error)}") from error
    return model.to(where).eval()


def read_weights(path: Path, digest: str | None, which: str) -> Mapping[str, Tensor]:
    """Read a state dict, which has this digest if there is one; of a checkpoint that has both, the "best" or the "last" one.

    Raises:
        UserError: for a file that is missing, damaged, no state dict, or another than the digest is of.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if digest not in (None, _digest(raw)):
        again = "a run that was killed while it saved them saves them again when it is resumed"
        raise UserError(f"the weights in {path} are not those that its card is about; {again}")
    if path.suffix not in _TORCH_FILES:
        try:
            return load_tensors(raw)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    found = find_state_dict(read_tensors(raw, path), which)
    if found is None:
        raise UserError(f"{path} is not a state dict")
    return found


def read_card(path: Path, which: str = "best") -> tuple[dict[str, Any], Path]:
    """Find and read a card.

    Returns:
        The card, and where its weights are: always in the card's own folder.

    Raises:
        UserError: if there is none, or it is not Hauberk's.
    """
    if path.is_dir():
        path = path / f"{which}.json"
        if not path.exists():
            raise UserError(f"{path.parent} has no finished epoch to load ({path.name} is missing)")
    where = card_of(path)
    card = read_json(where)
    if card.get("format") != FORMAT:
        raise UserError(f"{where} is not a Hauberk card (format {card.get('format')!r})")
    for section in ("model", "method", "threat", "data"):
        if not isinstance(card.get(section, {}), dict):
            raise UserError(f"{where} has no readable {section!r}")
    name = card.get("weights")
    if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
        raise UserError(f"{where} names its weights as {name!r}; they must lie beside it")
    return card, path.parent / name


@checked
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
        kept = {key: value for key, value in card.items() if key not in ("format", "weights", "weights_digest", "versions")}
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "folder"}  # nobody else's business
        save_model(path.with_suffix(""), net.state_dict(), kept)
    else:
        x = torch.rand(3, *card["model"]["input_shape"], generator=torch.Generator().manual_seed(0))
        # Made and checked in memory: exporters that write to a full disk leave parts of files, or end the process.
        with float32_mode("fp32"):
            content = _PROGRAMS[path.suffix](net, x)
        write_atomically(path, content)
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


def _state_dict(net: nn.Module, x: Tensor) -> bytes:
    """The weights, and the statistics of a normalisation, which are not among them and without which they mean nothing."""
    weights, content = net.state_dict(), io.BytesIO()
    for name, module in net.named_modules():
        if isinstance(module, Normalize):
            weights |= {f"{name}.mean": module.mean, f"{name}.std": module.std}
    torch.save(weights, content)
    return content.getvalue()


# What a file of each ending holds; given the network and some inputs.
_PROGRAMS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {".pth": _state_dict, ".pt2": torch_program, ".onnx": onnx_program}
