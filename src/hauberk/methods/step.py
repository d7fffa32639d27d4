"""A method and the model it trains as one module, for training on several processes."""

from typing import Any

from torch import Tensor, nn

from hauberk.core.distributed import get_world
from hauberk.methods.method import Method
from hauberk.methods.output import Output


class Step(nn.Module):
    """One training step up to the loss, as a module to wrap in ``DistributedDataParallel`` or whatever else synchronises.

    Its forward attacks the model itself, so nothing is sent during an attack, however many steps it takes in each process;
    the passes of the loss and the objective are inside the one forward that the wrapper sees. Within a
    ``torch.distributed`` process group each process hands over its part of the batch: weights are then normalised, and losses
    averaged, over the whole batch, also where the parts differ in size.

    Args:
        model: classifier to logits.
        method: what :func:`hauberk.method` made.

    Example:
        >>> import torch, hauberk as hb
        >>> step = hb.Step(torch.nn.Linear(4, 3), hb.method("mart", hb.Linf(0.1)))  # now DistributedDataParallel(step)
        >>> step(torch.rand(8, 4), torch.arange(8) % 3).loss.backward()
    """

    def __init__(self, model: nn.Module, method: Method):
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, x: Tensor, y: Tensor, epoch: int | None = None, **more: Any) -> Output:
        """Return what the method returns for this process's part of a batch.

        Args:
            x: clean inputs, (b, ...).
            y: labels, (b,).
            epoch: 0-based; 0 where none is given.
            **more: further arguments of :meth:`hauberk.Method.__call__`.
        """
        return self.method(self.model, x, y, epoch, world=get_world(), **more)
