"""What a weighting did, in a few numbers."""

import torch
from torch import Tensor

_QUANTILES = (0.1, 0.5, 0.9)


@torch.no_grad()
def effective_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size as a share of the batch: ``(Σω)² / (B·Σω²)``; 1 for equal weights. (B,) -> scalar."""
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp_min(torch.finfo(weights.dtype).tiny)


@torch.no_grad()
def summary(weights: Tensor, measure: Tensor | None) -> dict[str, Tensor]:
    """Summarise the weights of a batch, and the measure they were made from, without host synchronisation.

    Args:
        weights: ω, (B,).
        measure: margins or step counts, (B,), or None for equal weights.

    Returns:
        Scalars: effective size, 10 %, 50 % and 90 % quantiles of weights and measure.
    """
    found = {"effective_size": effective_size(weights)}
    for name, values in (("weight", weights), ("measure", measure)):
        if values is not None:
            marks = torch.quantile(values.float(), torch.tensor(_QUANTILES, dtype=torch.float32, device=values.device))
            found |= {f"{name}_q{int(100 * q)}": mark for q, mark in zip(_QUANTILES, marks, strict=True)}
    return found
