"""Exported models: weights in safetensors, and beside them a JSON card that says what they are."""

from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hauberk.core.environment import versions
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import json_file, read_json, read_tensors, write_together
from hauberk.models import ModelSpec

FORMAT = "hauberk-card/1"
_TORCH_FILES = (".pt", ".pth")


def save_model(path: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write ``path``.safetensors and ``path``.json.

    Args:
        path: without suffix.
        weights: a state dict.
        card: plain types; the format, versions and date are added.

    Raises:
        UserError: if they cannot be written; neither is then.
    """
    # safetensors refuses shared and non-contiguous memory.
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    kept = path.with_name(f"{path.name}.safetensors")  # with_suffix would cut off a part of model.v1
    about = {"format": FORMAT, "weights": kept.name} | card | {"versions": versions()}
    write_together({card_of(kept): json_file(about), kept: save_tensors(whole)})


def card_of(path: Path) -> Path:
    """Return where the card of a model is: given its weights, the card itself, or the name that both share."""
    return path.with_suffix(".json") if path.suffix in (".safetensors", ".json") else path.with_name(f"{path.name}.json")


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
            (``.pt``, ``.pth``), for which ``model`` is needed.
        model: the network to load the weights into; needed where the card cannot build it.
        which: of a run: the best checkpoint by validation, or the last.
        allow_code: build a model that the card names as ``module:factory``, which imports that module.
        device: where to put it.

    Returns:
        The network, (B, ...) to logits (B, C).

    Raises:
        UserError: if files are missing, damaged, foreign, do not fit the model, or would need code.
    """
    path = Path(path)
    if path.suffix in _TORCH_FILES:
        card, weights = dict[str, Any](), path
    else:
        card, weights = read_card(path, which)
    if model is None:
        if path.suffix in _TORCH_FILES:
            raise UserError(f"{path} does not say which network it belongs to; pass model=")
        spec = ModelSpec.from_dict(card.get("model", {}))
        if spec.imports and not allow_code:
            raise UserError(f"this card would import {spec.name!r}; pass model=, or allow_code=True if you trust it")
        with torch.random.fork_rng(devices=[]):
            model = spec.build()
    tensors = _read_weights(weights)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"the weights in {weights} do not fit this model: {in_one_line(error, 300)}") from error
    return model.to(device).eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix not in _TORCH_FILES:
        try:
            return load_tensors(raw)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    content = read_tensors(raw, path)
    content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state dict")
    return content


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
    for room in ("model", "method", "threat", "data"):
        if not isinstance(card.get(room, {}), dict):
            raise UserError(f"{where} has no readable {room!r}")
    name = card.get("weights")
    if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
        raise UserError(f"{where} names its weights as {name!r}; they must lie beside it")
    return card, path.parent / name
