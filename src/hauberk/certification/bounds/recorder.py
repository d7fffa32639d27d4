"""A graph while it grows: which tensors are the values of its nodes, and new nodes for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.certification.bounds.graph import Affine, Input, Node
from hauberk.certification.bounds.maps import Function, LinearMap, Scale, Shape

DTYPES = (torch.float32, torch.float64)


class Unknown(Exception):
    """An operation has no bounds; the message says why, after its name."""


def shape_of(x: Tensor) -> Shape:
    """Return the shape of one example."""
    return tuple(x.shape[1:])


class Recorder:
    """The nodes so far, for one batch that passes through a model.

    Args:
        x: the batch, (B, ...).

    Attributes:
        batch: B.
        layers: names of the layers at work, the innermost last.
        nodes: the nodes.
        known: by the id of a tensor, the tensor, which keeps it alive so that no other gets that id, and the number of its
            node; None if its value has no bounds, because it was changed in place through another, or is not continuous.
    """

    def __init__(self, x: Tensor):
        self.batch, self.layers = len(x), ["the model"]
        self.nodes: list[Node] = [Input("input", (), shape_of(x), x.dtype)]
        self.known: dict[int, tuple[Tensor, int | None]] = {id(x): (x, 0)}

    def is_known(self, value: Any) -> bool:
        """Whether a value depends on the input."""
        return isinstance(value, Tensor) and id(value) in self.known

    def hides(self, value: Any) -> bool:
        """Whether a tensor that is no node's value has the memory of one, so that nobody sees how it depends on the input."""
        if not isinstance(value, Tensor) or self.is_known(value) or value.layout != torch.strided:
            return False
        place = _memory(value)
        return place != 0 and any(_memory(tensor) == place for tensor, _ in self.known.values())

    def number(self, value: Tensor) -> int:
        """The node of a tensor."""
        node = self.known[id(value)][1]
        if node is None:
            raise Unknown("uses what has no bounds: a view of what was changed in place, or the places of largest values")
        return node

    def read(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Let a function of operations.py add what an operation does, given the recorder, its value and its arguments."""
        function(self, *args, **kwargs)

    def compute(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation on what does not depend on the input."""
        return function(*args, **kwargs)

    def value(self, constant: Tensor, like: Tensor) -> Tensor:
        """A constant of the network as bounds on a tensor are computed with it."""
        numbers: Tensor = constant.detach().double()
        return numbers

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel that a batch normalisation in training mode uses."""
        raise Unknown("depends on the other examples of a batch")

    def alias(self, out: Any, value: Tensor) -> None:
        """Let a tensor stand for the same node as another."""
        self.known[id(out)] = (out, self.known[id(value)][1])

    def add(self, node: Node, out: Tensor) -> None:
        """Append a node, whose value a tensor is."""
        if out.ndim < 1 or len(out) != self.batch:
            raise Unknown("mixes the examples of a batch")
        if out.dtype not in DTYPES:
            raise Unknown(f"computes in {out.dtype}")
        self.nodes.append(node)
        if id(out) in self.known:  # in place: other views of the same memory have changed with it
            storage = out.untyped_storage().data_ptr()
            for key, (tensor, _) in list(self.known.items()):
                if tensor.untyped_storage().data_ptr() == storage:
                    self.known[key] = tensor, None
        self.known[id(out)] = out, len(self.nodes) - 1

    def affine(
        self,
        out: Tensor,
        parts: Sequence[tuple[Tensor, LinearMap]],
        bias: Tensor | None = None,
        offset: Tensor | None = None,
        roundings: int = 0,
    ) -> None:
        """Append an affine node."""
        shape = tuple(out.shape[1:])
        bias = None if bias is None else self.value(bias, out).expand(shape).contiguous()
        offset = None if offset is None else self.value(offset, out).expand(shape)
        inputs = tuple(self.number(value) for value, _ in parts)
        maps = [one for _, one in parts]
        self.add(Affine(self.layers[-1], inputs, shape, out.dtype, maps, bias, offset, roundings), out)

    def function(
        self, out: Tensor, x: Tensor, function: Callable[[Tensor], Tensor], terms: int = 0, mixes: bool = False
    ) -> None:
        """Append a linear function of one tensor."""
        self.affine(out, [(x, Function(function, shape_of(x), terms, mixes))])

    def constant(self, value: Any, like: Tensor) -> Tensor:
        """A number or tensor that does not depend on the input, as :meth:`value`, for one example of shape ``like``."""
        if not isinstance(value, Tensor):
            return self.value(torch.full((), float(value), dtype=torch.float64, device=like.device), like)
        numbers = self.value(value, like)
        if numbers.ndim < like.ndim:
            return numbers
        if len(numbers) not in (1, self.batch) or (len(numbers) > 1 and not bool((numbers == numbers[:1]).all())):
            raise Unknown("has a constant that depends on the input, or on the place in the batch")
        return numbers[0]

    def scaled(self, out: Tensor, x: Tensor, factor: Tensor, roundings: int = 0) -> None:
        """Append a product with numbers."""
        if x.shape != out.shape:
            raise Unknown("broadcasts what depends on the input")
        self.affine(out, [(x, Scale(factor, shape_of(x)))], roundings=roundings)


def _memory(value: Tensor) -> int:
    """Where the numbers of a tensor are; where their device has no addresses, which storage they are in."""
    storage = value.untyped_storage()
    try:
        return storage.data_ptr()
    except RuntimeError:
        return int(storage._cdata)
