"""What attacks maximise. Each loss takes logits (B, C) and labels (B,) and returns (B,), larger is more adversarial."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.objectives.kl import at_least_float32, kl_divergence

LossName: TypeAlias = Literal["ce", "kl", "cw", "dlr", "slm", "evade", "ce-targeted", "cw-targeted"]
AIMED = ("ce-targeted", "cw-targeted", "dlr-targeted", "evade-targeted")
# logits, labels, aim: logits of the clean inputs for "kl", the target class (B,) for the losses with a target
AttackLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def make_loss(name: str, confidence: float = 0.0) -> AttackLoss:
    """Return a loss by name.

    Args:
        name: ``"ce"`` cross-entropy; ``"kl"`` KL from the clean prediction (TRADES); ``"cw"`` Carlini-Wagner margin;
            ``"dlr"`` difference of logits ratio (AutoAttack); ``"slm"`` soft logit margin (MMA); ``"evade"`` margin against
            the label and the class of adversarial inputs together. With a target class: ``"ce-targeted"``,
            ``"cw-targeted"`` (``z_t - z_y``), ``"dlr-targeted"`` (AutoAttack), ``"evade-targeted"``.
        confidence: κ of the margin, for ``"cw"`` only.

    Raises:
        UserError: if the name is unknown.
    """
    losses: dict[str, AttackLoss] = {
        "ce": lambda logits, y, aim: F.cross_entropy(at_least_float32(logits), y, reduction="none"),
        "kl": _kl_from_clean,
        "cw": lambda logits, y, aim: cw_loss(logits, y, confidence),
        "dlr": lambda logits, y, aim: dlr_loss(logits, y),
        "slm": lambda logits, y, aim: soft_logit_margin(logits, y),
        "evade": lambda logits, y, aim: evade_loss(logits, y),
        "ce-targeted": lambda logits, y, aim: -F.cross_entropy(at_least_float32(logits), _given(aim), reduction="none"),
        "cw-targeted": lambda logits, y, aim: _at(at_least_float32(logits), _given(aim)) - _at(at_least_float32(logits), y),
        "dlr-targeted": lambda logits, y, aim: targeted_dlr_loss(logits, y, _given(aim)),
        "evade-targeted": _targeted_evade,
    }
    if name not in losses:
        raise unknown_name("attack loss", name, losses)
    return losses[name]


def fooled(logits: Tensor, y: Tensor, evading: bool = False) -> Tensor:
    """Say which examples are misclassified; with ``evading``, taking an input for adversarial (the last output) is no mistake.

    Logits that are NaN or infinite are no answer, so they are a mistake, whatever class the largest stands for.

    (B, C), (B,) -> (B,) bool.
    """
    predicted = logits.argmax(1)
    wrong = predicted != y
    if evading:
        wrong &= predicted != logits.shape[1] - 1
    return wrong | ~logits.isfinite().all(1)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``z_y - max_{k≠y} z_k``: negative where the example is misclassified. (B, C), (B,) -> (B,)."""
    logits = at_least_float32(logits)
    # The true class is masked with -inf: a mask of zeros picks it again where all other logits are negative.
    return _at(logits, y) - _without(logits, y).amax(1)


def cw_loss(logits: Tensor, y: Tensor, confidence: float = 0.0) -> Tensor:
    """``-max(z_y - max_{k≠y} z_k, -κ)`` (f_6 of Carlini and Wagner 2017, untargeted); κ is ``confidence``.

    ``logits`` (B, C) and labels ``y`` (B,) give (B,).
    """
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


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_π1 - (z_π3 + z_π4)/2 + 1e-12)`` (Croce and Hein 2020). (B, C), (B,), (B,) -> (B,).

    Raises:
        UserError: with fewer than 4 classes, where it is undefined.
    """
    if logits.shape[1] < 4:
        raise UserError(f"the targeted DLR loss needs at least 4 classes, this model has {logits.shape[1]}; use 'ce' or 'cw'")
    logits = at_least_float32(logits)
    top = logits.topk(4, dim=1).values
    return -(_at(logits, y) - _at(logits, target)) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def soft_logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``log Σ_{k≠y} exp z_k - z_y`` (Ding et al. 2020, MMA). (B, C), (B,) -> (B,)."""
    logits = at_least_float32(logits)
    return _without(logits, y).logsumexp(1) - _at(logits, y)


def evade_loss(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{k≠y, k<K} z_k - max(z_y, z_K)``: positive where the input is misclassified and not recognised as adversarial.

    Our construction, for models whose last output K is the class of adversarial inputs. (B, K + 1), (B,) -> (B,).

    Raises:
        UserError: with fewer than 2 classes besides the last.
    """
    if logits.shape[1] < 3:
        raise UserError(f"a model with a class of adversarial inputs needs at least 3 outputs, this one has {logits.shape[1]}")
    logits = at_least_float32(logits)
    real = logits[:, :-1]
    return _without(real, y).amax(1) - torch.maximum(_at(real, y), logits[:, -1])


def _kl_from_clean(logits: Tensor, y: Tensor, aim: Tensor | None) -> Tensor:
    return kl_divergence(_given(aim), logits)


def _targeted_evade(logits: Tensor, y: Tensor, aim: Tensor | None) -> Tensor:
    logits = at_least_float32(logits)
    return _at(logits, _given(aim)) - torch.maximum(_at(logits, y), logits[:, -1])


def _given(aim: Tensor | None) -> Tensor:
    assert aim is not None  # the engines give the clean logits, or a target for each example
    return aim


def _at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _without(logits: Tensor, y: Tensor) -> Tensor:
    return logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
