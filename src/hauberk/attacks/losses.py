"""What attacks maximise. Each loss takes logits (B, C) and labels (B,) and returns (B,), larger is more adversarial."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.errors import UserError, unknown_name
from hauberk.objectives.kl import at_least_float32, kl_divergence

LossName: TypeAlias = Literal["ce", "kl", "cw", "dlr"]
AttackLoss: TypeAlias = Callable[[Tensor], Tensor]


def make_loss(name: str, y: Tensor, clean_logits: Tensor | None = None, confidence: float = 0.0) -> AttackLoss:
    """Bind a loss to a batch.

    Args:
        name: ``"ce"`` cross-entropy; ``"kl"`` KL from the clean prediction (TRADES); ``"cw"`` Carlini-Wagner margin;
            ``"dlr"`` difference of logits ratio (AutoAttack).
        y: labels, (B,).
        clean_logits: logits of the clean inputs, (B, C), for ``"kl"`` only.
        confidence: κ of the margin, for ``"cw"`` only.

    Returns:
        A function of logits (B, C) that returns (B,).

    Raises:
        UserError: if the name is unknown.
    """
    if name == "ce":
        return lambda logits: F.cross_entropy(at_least_float32(logits), y, reduction="none")
    if name == "kl" and clean_logits is not None:
        fixed = clean_logits.detach()
        return lambda logits: kl_divergence(fixed, logits)
    if name == "cw":
        return lambda logits: cw_loss(logits, y, confidence)
    if name == "dlr":
        return lambda logits: dlr_loss(logits, y)
    raise unknown_name("attack loss", name, ("ce", "kl", "cw", "dlr"))


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``z_y - max_{k≠y} z_k``: negative where the example is misclassified. (B, C), (B,) -> (B,)."""
    logits = at_least_float32(logits)
    true = F.one_hot(y, logits.shape[1]).bool()
    # The true class is masked with -inf: a mask of zeros picks it again where all other logits are negative.
    return logits.gather(1, y[:, None]).squeeze(1) - logits.masked_fill(true, -torch.inf).amax(1)


def cw_loss(logits: Tensor, y: Tensor, confidence: float = 0.0) -> Tensor:
    """``-max(z_y - max_{k≠y} z_k, -κ)`` (f_6 of Carlini and Wagner 2017, untargeted). (B, C), (B,) -> (B,)."""
    return -logit_margin(logits, y).clamp_min(-confidence)


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """``-(z_y - max_{k≠y} z_k) / (z_π1 - z_π3 + 1e-12)`` (Croce and Hein 2020). (B, C), (B,) -> (B,).

    Raises:
        UserError: with fewer than 3 classes, where it is undefined.
    """
    if logits.shape[1] < 3:
        raise UserError(f"the DLR loss needs at least 3 classes, this model has {logits.shape[1]}; use loss='cw' instead")
    top = at_least_float32(logits).topk(3, dim=1).values
    return -logit_margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)
