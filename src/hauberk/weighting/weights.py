"""From margins or step counts to weights: MAIL's sigmoid and GAIRAT's three functions."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.core.errors import UserError

Kind: TypeAlias = Literal["tanh", "sigmoid", "discrete"]

OFFICIAL_SCALE = 3.0  # of MAIL's public code, in place of the paper's normalisation


def mean_one(weights: Tensor) -> Tensor:
    """Scale weights to mean 1: ``ω_i = M · w_i / Σ_j w_j`` (MAIL paper, Algorithm 1, line 11).

    Args:
        weights: (B,), not negative.

    Returns:
        (B,). All ones where every weight is 0.
    """
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean.clamp_min(torch.finfo(weights.dtype).tiny), torch.ones_like(weights))


@torch.no_grad()
def mail(margin: Tensor, slope: float = 10.0, bias: float = -0.5, preset: Literal["paper", "official"] = "paper") -> Tensor:
    """MAIL's weights: ``ω ∝ sigmoid(-slope · (PM - bias))`` (MAIL paper, Eq. 8).

    Args:
        margin: probabilistic margins, (B,).
        slope: γ ≥ 0; 10 for MAIL-AT, 2 for MAIL-TRADES and MAIL-MART.
        bias: β; -0.5 for MAIL-AT, 0 for the others.
        preset: ``"paper"``: mean 1 over the batch. ``"official"``: 3 times the sigmoid, as the public code has it.

    Returns:
        (B,), detached.
    """
    raw = torch.sigmoid(-slope * (margin - bias))
    return OFFICIAL_SCALE * raw if preset == "official" else mean_one(raw)


@torch.no_grad()
def gairat(kappa: Tensor, steps: int, lam: float = -1.0, kind: Kind = "tanh") -> Tensor:
    """GAIRAT's weights of geometry values κ (Zhang et al. 2021), scaled to mean 1.

    ``tanh``: ``(1 + tanh(λ + 5·(1 - 2κ/K))) / 2``; ``sigmoid`` of the same argument; ``discrete``: ``(K + 1 - κ)/(K + 1)``.
    The public code writes ``(⌊K/2⌋ - κ)·5/⌊K/2⌋``, which is the same for even K and divides by 0 for K = 1; ours is the
    paper's form, and equal to the code's where K is even.

    Args:
        kappa: (B,), 0 to K: how many iterates were classified right, or the least number of steps.
        steps: K.
        lam: λ; -1 for GAIRAT, 0 for GAIR-FAT.
        kind: the function.

    Returns:
        (B,), detached, mean 1.

    Raises:
        UserError: for an unknown kind.
    """
    kappa = kappa if kappa.is_floating_point() else kappa.float()
    argument = lam + 5 * (1 - 2 * kappa / steps)
    if kind == "tanh":
        raw = (1 + argument.tanh()) / 2
    elif kind == "sigmoid":
        raw = argument.sigmoid()
    elif kind == "discrete":
        raw = (steps + 1 - kappa) / (steps + 1)
    else:
        raise UserError(f"kind is 'tanh', 'sigmoid' or 'discrete', not {kind!r}")
    return mean_one(raw)
