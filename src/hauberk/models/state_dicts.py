"""State dicts of other people's code: where in a file they are, and which of their names are the same network's here."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError

_HOLDERS = ("state_dict", "model_state_dict", "model", "net")  # under which a checkpoint has its weights
_STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}  # names of a normalisation's buffers
# Wide ResNets of TRADES' public code, from which most others come: their names for the parts of a stage and of a block.
_SAME = ((re.compile(r"(block\d)\.layer\."), r"\1."), (re.compile(r"\bconvShortcut\b"), "shortcut"))
_UNUSED = re.compile(r"(^|\.)(sub_block1\..*|n_averaged)$")  # a stage that code never calls, a count of averaged weights


def find_state_dict(content: Mapping[str, Any], which: str) -> Mapping[str, Any] | None:
    """Return the tensors by name in what ``torch.save`` wrote, or None.

    Args:
        content: the state dict itself; or a checkpoint that has it under ``which``, or a usual name, at any depth.
        which: "best" or "last", where a file has both.
    """
    while not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in (which, *_HOLDERS) if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return None
        content = inner
    return content


def fit_names(tensors: Mapping[str, Tensor], model: nn.Module, file: str) -> dict[str, Tensor]:
    """Give the tensors of a file the names that they have in ``model``.

    What all names of a side begin with (``module.`` of ``DataParallel``, ``model.`` of a wrapper, the place of the network
    behind a normalisation) is left aside on both sides, and so are the statistics of a normalisation: those of the file must
    be the model's; where it has none, the model keeps its own, as RobustBench does.

    Args:
        tensors: a state dict.
        model: where they are to be loaded.
        file: where they are from, for errors.

    Returns:
        A state dict for ``model``; ``tensors`` as they are where names differ in any other way.

    Raises:
        UserError: where the file has a normalisation of inputs that the model does not have.
    """
    own = model.state_dict()
    theirs, ours = _core(tensors), _core(own)
    if tensors.keys() == own.keys() or theirs is None or ours is None or theirs.keys() != ours.keys():
        return dict(tensors)
    fitted = {name: own[name] for name in own if _statistic(name)}
    here = {name: value for name, value in model.named_buffers() if _statistic(name)}
    before = {_statistic(name): name for name in here}
    for name, value in tensors.items():
        kind = _statistic(name)
        if not kind:
            continue
        place = name if name in here else before.get(kind, "")
        kept = here.get(place, torch.zeros(0))
        if place in own and kept.numel() == value.numel():
            fitted[place] = value.reshape(kept.shape)
        elif kept.numel() != value.numel() or not torch.allclose(kept.flatten().cpu(), value.flatten().to(kept.dtype).cpu()):
            numbers = [round(number, 4) for number in value.flatten().tolist()]
            raise UserError(
                f"the network of {file} normalises its inputs ({name} {numbers}), and this model does not, or by other "
                "numbers; put hauberk.models.Normalize(mean, std) before it"
            )
    return fitted | {ours[core]: tensors[name] for core, name in theirs.items()}


def _statistic(name: str) -> str:
    """Which statistic of a normalisation a name stands for: "mean", "std" or "" for another tensor."""
    return _STATISTICS.get(name.rpartition(".")[2], "")


def _core(names: Iterable[str]) -> dict[str, str] | None:
    """Names by what is left of them without normalisation and common beginnings; None where two are then the same."""
    kept = [name for name in names if not _statistic(name) and not _UNUSED.search(name)]
    parts = [name.split(".")[:-1] for name in kept]
    common = 0
    while parts and all(len(part) > common and part[common] == parts[0][common] for part in parts):
        common += 1
    cores = {}
    for name in kept:
        core = ".".join(name.split(".")[common:])
        for pattern, here in _SAME:
            core = pattern.sub(here, core)
        cores[core] = name
    return cores if len(cores) == len(kept) else None
