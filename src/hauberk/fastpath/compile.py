"""A twin run by torch.compile, for the few shapes that come again and again."""

import torch
from torch import Tensor, nn

from hauberk.fastpath.frozen_copy import InferenceCopy

_SHAPES = 2  # a full batch, and the last one of an epoch
_COMPILATIONS = 200


class Compiled(nn.Module):
    """A twin that is compiled for the first shapes it sees; inputs of any other shape take the twin as it is.

    A compilation costs seconds to minutes, so attacks that shrink their batches as examples fall out must not start one for
    each size. On CUDA the passes are captured as graphs.

    Args:
        twin: to compile; it can be refreshed at any time.
        shapes: of inputs that it is compiled for; grows as they come. A run saves them, because compiled passes round
            differently.
    """

    def __init__(self, twin: InferenceCopy, shapes: list[list[int]] | None = None):
        super().__init__()
        self.twin = twin
        self.shapes = [] if shapes is None else shapes
        self._graphs = next(twin.parameters()).is_cuda
        self._compiled = torch.compile(twin, dynamic=False, mode="reduce-overhead" if self._graphs else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...)."""
        shape = list(x.shape)
        if shape not in self.shapes:
            if len(self.shapes) >= _SHAPES:
                return self.twin(x)  # type: ignore[no-any-return]
            self.shapes.append(shape)
        x = x.contiguous()  # another layout would be compiled for anew
        if not self._graphs:
            return self._run(x)
        # The memory of a captured graph is written over by its next run: what leaves it is copied.
        x = x.view_as(x)
        if x.requires_grad:
            x.register_hook(torch.clone)
        return self._run(x).clone()

    def _run(self, x: Tensor) -> Tensor:
        # torch counts compilations by the code of forward, which all twins of a process share.
        with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
            return self._compiled(x)  # type: ignore[no-any-return]
