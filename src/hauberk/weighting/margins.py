"""Probabilistic margins: how far an example is from the decision boundary, in probability (MAIL, Eqs. 4 to 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def probabilistic_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``PM = p_y - max_{k≠y} p_k`` (MAIL paper, Eq. 4): negative where the example is misclassified.

    On adversarial inputs it is PM^adv (Eq. 5), on clean inputs PM^nat (Eq. 6).

    Args:
        logits: (B, C), C ≥ 2.
        y: labels, (B,) int64.

    Returns:
        (B,) in [-1, 1], float32 or wider, detached.
    """
    p = _probabilities(logits)
    others = p.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -1.0)
    return _of_label(p, y) - others.amax(1)


@torch.no_grad()
def margin_difference(logits: Tensor, logits_lps: Tensor, y: Tensor) -> Tensor:
    """``PM^dif = p_y(x) - p_y(x^{(t)})`` with t the least number of PGD steps that fool the model (MAIL paper, Eq. 7).

    Args:
        logits: of the clean inputs, (B, C).
        logits_lps: at each example's iterate t, or the last one seen where none fools the model, (B, C).
        y: labels, (B,) int64.

    Returns:
        (B,) in [-1, 1], detached. The paper calls [0, 1] its range, which holds where the attack lowers p_y.
    """
    return _of_label(_probabilities(logits), y) - _of_label(_probabilities(logits_lps), y)


def _probabilities(logits: Tensor) -> Tensor:
    return (logits.float() if logits.element_size() < 4 else logits).softmax(1)


def _of_label(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(1, y[:, None]).squeeze(1)
