"""What a data set brings with it by its name: the threat model, and how a network looks at it."""

from dataclasses import replace

import torch

from hauberk.core.errors import UserError, unknown_name
from hauberk.data import DATASETS, Source, channel_statistics
from hauberk.models import ModelSpec
from hauberk.tables.table import read_table
from hauberk.threat import ThreatModel, make_threat, parse_eps


def default_threat(data: str, norm: str = "Linf", eps: str = "") -> ThreatModel:
    """Return the threat model of a data set.

    Args:
        data: name, or the description of a table.
        norm: of the ball.
        eps: ε; by default the literature's in L∞. For a table, what every feature's own ε is multiplied by.

    Raises:
        UserError: for an unknown data set, or where there is no usual ε.
    """
    if data.endswith(".toml"):
        factor = float(torch.as_tensor(parse_eps(eps)[0])) if eps else 1.0
        return read_table(data).threat_in(norm, factor)
    if data not in DATASETS:
        raise unknown_name("data set", data, DATASETS)
    if not eps and norm != "Linf":
        raise UserError(f"give --eps: there is no usual radius in {norm}")
    return make_threat(norm, eps or DATASETS[data].eps)


def default_model(data: str, model: str, source: Source, *, extra: int = 0, normalize: bool = False) -> ModelSpec:
    """Return how to build a network for a data set.

    Args:
        data: name, or the description of a table, whose networks always normalise and look at the nearest valid row.
        model: name of the network.
        source: its training examples.
        extra: outputs besides the classes.
        normalize: normalise inputs inside the model.
    """
    classes = (source.classes or 2) + extra
    if data.endswith(".toml"):
        return replace(read_table(data).network(model), classes=classes)
    mean, std = channel_statistics(source) if normalize else ((), ())
    return ModelSpec(model, tuple(source.fetch(torch.arange(1))[0].shape[1:]), classes, mean, std)
