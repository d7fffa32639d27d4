"""Kullback-Leibler divergence between softmax outputs."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p‖q) of each example, in log space.

    ``KL(p‖q) = Σ_k p_k (log p_k - log q_k)``

    The gradient is finite even where a probability underflows, which ``F.kl_div`` with a probability target is not.

    Args:
        logits_p: logits of p, (B, C).
        logits_q: logits of q, (B, C).

    Returns:
        (B,), in float32 or wider, with a gradient to both arguments.
    """
    log_p, log_q = log_softmax(logits_p), log_softmax(logits_q)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities in at least float32, whatever the network runs in. (B, C) -> (B, C)."""
    return F.log_softmax(at_least_float32(logits), dim=1)


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half-precision tensors; leave float32 and float64 as they are."""
    return values.float() if values.element_size() < 4 else values
