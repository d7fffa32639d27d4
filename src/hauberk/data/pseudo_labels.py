"""Labels by a model, for examples that have none."""

from typing import Any

import torch
from torch import nn

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, in_one_line
from hauberk.data.dataset import TensorDataset, as_dataset
from hauberk.data.fetch import fetch_for


@checked
def pseudo_label(model: nn.Module, x: Any, *, least_confidence: float = 0.0) -> TensorDataset:
    """Label examples with the prediction of a standard model (Carmon et al. 2019, robust self-training).

    Args:
        model: trained without an attack, on the labelled examples; unchanged afterwards.
        x: inputs, (N, ...), floating or uint8, a tensor or a NumPy array.
        least_confidence: leave out examples whose largest probability is below this.

    Returns:
        The examples with their predicted labels, for ``hb.train(..., extra=...)``.

    Raises:
        UserError: if ``x`` cannot be read, or nothing is left.
    """
    try:
        inputs = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"x must be an array: {in_one_line(error)}") from error
    dataset = as_dataset((inputs, torch.zeros(inputs.shape[:1], dtype=torch.int64)))
    confidences, predictions = [], []
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}), torch.no_grad():
            for index in torch.arange(len(dataset)).split(1000):
                x_part, _ = fetch_for(model, dataset, index)
                try:
                    best = model(x_part).float().softmax(1).cpu().max(1)
                except Exception as error:  # the forward of somebody's model may raise anything, or return anything
                    problem = f"{type(error).__name__}: {in_one_line(error)}"
                    raise UserError(f"the model gives no logits (B, C) for inputs {tuple(x_part.shape)}: {problem}") from error
                confidences.append(best.values)
                predictions.append(best.indices)
    finally:
        for module, mode in modes:
            module.training = mode
    keep = torch.cat(confidences) >= least_confidence
    if not bool(keep.any()):
        raise UserError(f"the data set is empty: no prediction has a probability of {least_confidence}")
    return TensorDataset(inputs[keep], torch.cat(predictions)[keep])
