"""Validation: clean and PGD accuracy on the part of the training set that is held out to choose the best checkpoint."""

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, frozen_model, run_attack
from hauberk.core.distributed import World
from hauberk.core.random import ExampleRng
from hauberk.data import IndexedDataset, fetch_for
from hauberk.methods import Method


def validate(
    model: nn.Module,
    source: IndexedDataset,
    method: Method,
    steps: int,
    seed: int,
    batch_size: int,
    world: World,
    class_weights: Tensor | None = None,
) -> dict[str, float]:
    """Measure clean accuracy, and accuracy under PGD (ε/4, uniform start, cross-entropy, best point kept).

    Each process looks at its share, ``batch_size`` examples at a time. With class weights (C,), an example counts as much as in
    the loss: otherwise a network that knows only the frequent class could be the best.

    Returns:
        ``val_clean_accuracy`` and ``val_robust_accuracy``, shares in [0, 1].
    """
    # A model that recognises adversarial inputs is right to do so: what counts is what evades it.
    attack = PGD(steps, loss="evade" if method.extra_outputs else "ce")
    sums = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    for index in world.local_shard(torch.arange(len(source))).split(batch_size):
        if not len(index):
            break
        x, y = fetch_for(model, source, index)
        # The same starts every epoch, so that epochs are compared on equal terms.
        found = run_attack(attack, model, x, y, method.threat, seed=ExampleRng(seed, index.to(x.device), stage=-2))
        with frozen_model(model) as view, torch.no_grad():
            right = view(x).argmax(1) == y
        weight = torch.ones(len(y), device=y.device) if class_weights is None else class_weights.to(y.device)[y]
        sums += torch.stack([(weight * right).sum(), (weight * (right & ~found.success)).sum(), weight.sum()])
    clean, robust, total = world.sum(sums).tolist()
    total = total or 1.0  # all weights may be 0
    return {"val_clean_accuracy": clean / total, "val_robust_accuracy": robust / total}
