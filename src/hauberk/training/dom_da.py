"""DOM-DA: examples that are learned by heart are augmented again, before the attack (Lin et al. 2024)."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def augment_again(
    x: Tensor,
    losses: Callable[[Tensor], Tensor],
    again: Callable[[Tensor, int], Tensor],
    threshold: float,
    tries: int,
    share: float,
) -> Tensor:
    """Augment examples until their loss is at least a threshold, by the rule of DOM-DA's public code.

    Those whose loss is at most the threshold are tried at most so often. A try whose loss is at least the threshold is taken,
    and so is the last one; another moves the example by a share of the way to it, from where the next one goes on.

    Args:
        x: (b, ...).
        losses: from such inputs to the loss of each, (b,).
        again: from such inputs, and the number of the try, to augmented ones.
        threshold: T.
        tries: how many at most.
        share: in [0, 1].

    Returns:
        (b, ...). The host does not wait: all are augmented, and those that need it are taken.
    """

    def of_each(flags: Tensor) -> Tensor:
        return flags.view(-1, *[1] * (x.ndim - 1))

    learned = losses(x) <= threshold
    for k in range(tries):
        tried = again(x, k)
        hard = losses(tried) >= threshold
        taken = tried if k == tries - 1 else torch.where(of_each(hard), tried, torch.lerp(x, tried, share))
        x = torch.where(of_each(learned), taken, x)
        learned = learned & ~hard
    return x
