"""MixUp and CutMix: an image and its label mixed with another one's."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.special import betaincinv
from torch import Tensor

from hauberk.core.device import constant
from hauberk.core.random import ExampleRng
from hauberk.data.augmentation.erasing import rectangle
from hauberk.data.augmentation.geometry import check_images

_MIXING = 150
_QUANTILES = 2**12


@dataclass(frozen=True)
class Mixing:
    """What is drawn for each example: whether it is mixed, in which way, and in which shares.

    Attributes:
        mixup: α of MixUp (Zhang et al. 2018): ``x ← λ·x + (1 - λ)·x₂`` with ``λ ~ Beta(α, α)``; 0 for never.
        cutmix: α of CutMix (Yun et al. 2019): a rectangle of ``1 - λ`` of the area, about a random pixel, is the other image's;
            λ is then what is left outside of it. 0 for never. With both, every other example is mixed in the one way.
        prob: part of the examples that are mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0

    def __call__(self, x: Tensor, other: Tensor, rng: ExampleRng) -> tuple[Tensor, Tensor]:
        """Mix inputs with others.

        Args:
            x: inputs, (B, ...); for CutMix images, (B, C, H, W).
            other: likewise.
            rng: random draws keyed by example.

        Returns:
            Mixed inputs, inside any box that both are in; and λ, the share of ``x`` in each, (B,).

        Raises:
            UserError: if CutMix is given other inputs than images.
        """
        draws = rng.uniform(x.new_empty(len(x), 5), _MIXING).unbind(1)
        mixes, cuts = draws[0] < self.prob, draws[1] < 0.5 if self.mixup else torch.ones_like(draws[1], dtype=torch.bool)
        share = torch.ones_like(draws[0])
        if self.mixup:
            share = torch.where(mixes, _beta(self.mixup, draws[2]), share)
        each = share.view(-1, *[1] * (x.ndim - 1))
        mixed = x
        if self.mixup:  # between the two, however it rounds
            mixed = (each * x + (1 - each) * other).clamp(torch.minimum(x, other), torch.maximum(x, other))
        if not self.cutmix:
            return mixed, share
        check_images(x, "CutMix is")
        height, width = x.shape[2:]
        side = (1 - _beta(self.cutmix, draws[2])).sqrt()
        edges = []
        for size, place in ((height, draws[3]), (width, draws[4])):
            middle, half = (place * size).floor(), ((side * size).floor() / 2).floor()
            edges += [(middle - half).clamp(0, size), (middle + half).clamp(0, size)]
        area = (edges[1] - edges[0]) * (edges[3] - edges[2])
        cuts = cuts & mixes
        inside = rectangle(x, *edges)
        cut = torch.where(inside & mixes.view(-1, 1, 1, 1), other, x)
        return (
            torch.where(cuts.view(-1, 1, 1, 1), cut, mixed),
            torch.where(cuts, 1 - area / (height * width), share),
        )


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Turn uniform draws into draws of Beta(α, α), through a table of its quantiles."""
    if alpha == 1:
        return uniform
    table = constant(_quantiles(alpha), uniform.dtype, uniform.device)
    place = uniform * _QUANTILES
    below = place.long()
    return torch.lerp(table[below], table[below + 1], place - below)


@lru_cache(maxsize=8)
def _quantiles(alpha: float) -> Tensor:
    return torch.as_tensor(betaincinv(alpha, alpha, torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64).numpy()))
