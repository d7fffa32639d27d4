"""Pseudo-labels: unlabelled examples for semi-supervised training, as RST and MART use them."""

from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.data.dataset import Arrays, as_source, fetch_for

_BATCH = 1000


def pseudo_label(model: nn.Module, x: Any, *, least_confidence: float = 0.0) -> Arrays:
    """Label examples with the prediction of a standard model (Carmon et al. 2019, robust self-training).

    Args:
        model: trained without an attack, on the labelled examples; unchanged afterwards.
        x: inputs, (N, ...), floating or uint8, a tensor or a NumPy array.
        least_confidence: leave out examples whose largest probability is below this.

    Returns:
        The examples with their predicted labels, ready for ``hb.train(..., unlabelled=...)``.

    Raises:
        UserError: if ``x`` cannot be read, or nothing is left.
    """
    inputs = torch.as_tensor(x)
    source = as_source((inputs, torch.zeros(len(inputs), dtype=torch.int64)))
    found: list[Tensor] = []
    sure: list[Tensor] = []
    with frozen_model(model) as view, torch.no_grad():
        for index in torch.arange(len(source)).split(_BATCH):
            probabilities = view(fetch_for(model, source, index)[0]).float().softmax(1).cpu()
            found.append(probabilities.argmax(1))
            sure.append(probabilities.amax(1) >= least_confidence)
    keep = torch.cat(sure)
    labelled = as_source((inputs[keep], torch.cat(found)[keep]))
    assert isinstance(labelled, Arrays)  # a pair of arrays always is
    return labelled
