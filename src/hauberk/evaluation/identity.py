"""What an evaluation is of: digests of data and models, by which one that goes on knows that it is the same."""

from typing import Any

import torch
from torch import nn

from hauberk.attacks.model.bpda import StandInLike
from hauberk.core.distributed import World
from hauberk.core.imports import code_digest
from hauberk.core.io import versions
from hauberk.data import IndexedDataset, Subset, data_digest
from hauberk.data.dataset import in_memory
from hauberk.evaluation.records import difference
from hauberk.models import model_code, model_id

FIRST = 16  # examples that are looked at before anything else


def identity(model: nn.Module, surrogate: nn.Module | None, source: IndexedDataset, count: int) -> dict[str, Any]:
    """Return what data, models and versions are."""
    return {
        "data": source.name,
        "data_digest": evaluated_digest(source, count),
        "model_code": model_code(model),
        "surrogate_id": None if surrogate is None else model_id(surrogate),
        "surrogate_code": None if surrogate is None else model_code(surrogate),
        **{name: versions()[name] for name in ("hauberk", "torch", "python")},
    }


def stand_in_identity(stand_in: StandInLike | None) -> str | None:
    """Return what the backward pass is of."""
    if isinstance(stand_in, nn.Module):
        return f"{model_id(stand_in)} {model_code(stand_in)}"
    return None if stand_in is None else code_digest(stand_in)


def evaluated_digest(source: IndexedDataset, count: int) -> str:
    """Return the digest of data that the plan of an evaluation of the first ``count`` examples holds.

    Each example is compared again in the clean pass, so data that are not in memory are not read twice for that.
    """
    return data_digest(Subset(source, torch.arange(count if in_memory(source) else min(count, FIRST))))


def require_same_plan(plan: dict[str, Any], source: IndexedDataset, count: int, world: World) -> None:
    """Refuse, by a UserError in all processes, to evaluate together where they were started differently, or see other data.

    Each process looks at examples of its own, so all of them are compared here, also where they are not in memory.
    """
    if not in_memory(source):
        plan = {**plan, "data_digest": data_digest(Subset(source, torch.arange(count)))}
    differs = difference(world.on_main_process(lambda: plan), plan, harmless=())
    world.raise_if_any(f"process {world.rank} is not like the first one: other {differs}" if differs else "")
