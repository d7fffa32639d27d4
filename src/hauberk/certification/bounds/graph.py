"""A network as a graph of operations that bounds are known for: affine maps, and the nonlinear ones of activations.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hauberk.certification.bounds.maps import LinearMap, Shape
from hauberk.certification.bounds.rounding import allowance, smallest

Interval = tuple[Tensor, Tensor]


@dataclass
class Node:
    """One operation of a network.

    Attributes:
        name: of the layer, for messages.
        inputs: numbers of the nodes that it works on.
        shape: of its output, without the batch.
        dtype: that the network computes it in.
    """

    name: str
    inputs: tuple[int, ...]
    shape: Shape
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many numbers an output has."""
        return torch.Size(self.shape).numel()

    def evaluate(self, *x: Tensor) -> Tensor:
        """Compute the operation in the dtype of its inputs. (B, ...) each -> (B, ...)."""
        raise NotImplementedError

    def error(self, *inputs: Interval) -> Tensor | None:
        """How far the network's own value may be from the real one, for inputs in intervals: (B, ...), or None for not at all.

        It also covers the rounding of bounds in float64.
        """
        raise NotImplementedError

    def interval(self, error: Tensor | None, *inputs: Interval) -> Interval:
        """Bounds of the network's own value for inputs in intervals, each (B, ...)."""
        raise NotImplementedError

    def relax(self, error: Tensor | None, *inputs: Interval) -> Any:
        """What :meth:`backward` needs to know of the inputs' intervals."""
        return error

    def backward(self, a: Tensor, relaxed: Any, alpha: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Bound a linear function of the output from below by one of the inputs.

        Args:
            a: coefficients (B, S, ...) of S linear functions of the output of each example.
            relaxed: of :meth:`relax`.
            alpha: slopes of lower bounds, (B, S, ...), for those that have a choice.

        Returns:
            Coefficients (B, S, ...) for each input, a constant (B, S), and what is to be subtracted for rounding, (B, S).
        """
        raise NotImplementedError


@dataclass
class Input(Node):
    """The network's input."""

    def evaluate(self, *x: Tensor) -> Tensor:
        return x[0]

    def error(self, *inputs: Interval) -> Tensor | None:
        return None


@dataclass
class Affine(Node):
    """A sum of linear maps of the inputs and a constant.

    Attributes:
        maps: one for each input.
        bias: the constant, of the shape of an output, or None.
        offset: what to take for its size where rounding is concerned, if that is more than its absolute value.
        roundings: that a value passes through, besides those of the products.
    """

    maps: list[LinearMap] = field(default_factory=list)
    bias: Tensor | None = None
    offset: Tensor | None = None
    roundings: int = 0

    def _rounds(self) -> int:
        return max(one.terms for one in self.maps) + self.roundings + (self.bias is not None) + len(self.maps) - 1

    @property
    def moves(self) -> bool:
        """Whether numbers only move in it, so that neither the network nor bounds round."""
        return self._rounds() == 0 and not any(one.mixes for one in self.maps)

    def evaluate(self, *x: Tensor) -> Tensor:
        total = sum((one.apply(part) for one, part in zip(self.maps[1:], x[1:], strict=True)), self.maps[0].apply(x[0]))
        return total if self.bias is None else total + self.bias

    def error(self, *inputs: Interval) -> Tensor | None:
        count, size = self._rounds(), self.size + sum(torch.Size(one.shape).numel() for one in self.maps)
        reach = [torch.maximum(low.abs(), high.abs()) for low, high in inputs]
        total = sum(
            (one.magnitude(part) for one, part in zip(self.maps[1:], reach[1:], strict=True)), self.maps[0].magnitude(reach[0])
        )
        if self.bias is not None:
            total = total + (self.bias.abs() if self.offset is None else self.offset)
        if self.moves:
            return None
        error: Tensor = allowance(self.dtype, count, size) * total + smallest(self.dtype, count)
        return error

    def interval(self, error: Tensor | None, *inputs: Interval) -> Interval:
        if self.moves:  # the middle of an interval is rounded even where its ends are not
            low, high = (self.evaluate(*(pair[side] for pair in inputs)) for side in (0, 1))
            return torch.minimum(low, high), torch.maximum(low, high)
        middle = self.evaluate(*((low + high) / 2 for low, high in inputs))
        halves = [(high - low) / 2 for low, high in inputs]
        half = sum(
            (one.magnitude(part) for one, part in zip(self.maps[1:], halves[1:], strict=True)),
            self.maps[0].magnitude(halves[0]),
        )
        reach = half if error is None else half + error
        return middle - reach, middle + reach

    def backward(self, a: Tensor, relaxed: Any, alpha: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        rows, flat = a.flatten(0, 1), a.flatten(2)
        parts = [one.adjoint(rows).unflatten(0, a.shape[:2]) for one in self.maps]
        constant = a.new_zeros(a.shape[:2]) if self.bias is None else flat @ self.bias.flatten()
        error = a.new_zeros(a.shape[:2]) if relaxed is None else (flat.abs() @ relaxed.flatten(1)[:, :, None]).squeeze(2)
        return parts, constant, error


@dataclass
class Graph:
    """A network: its operations in an order in which each comes after its inputs; the first is the input.

    Attributes:
        nodes: the operations.
        output: number of the one whose value is the network's.
    """

    nodes: list[Node]
    output: int

    def evaluate(self, x: Tensor) -> Tensor:
        """Compute the network, in the dtype of the inputs. (B, ...) -> (B, C)."""
        values: list[Tensor] = [x]
        for node in self.nodes[1:]:
            values.append(node.evaluate(*(values[i] for i in node.inputs)))
        return values[self.output]

    @property
    def largest(self) -> int:
        """How many numbers the largest value in it has."""
        return max(node.size for node in self.nodes)

    def separable(self) -> list[bool]:
        """For each node, whether interval arithmetic is exact there for a box of inputs.

        It is where each value is an affine function of the input, made of values that each depend on one input alone.
        """
        single, exact = [True], [True]
        for node in self.nodes[1:]:
            alone = all(single[i] for i in node.inputs) and len(node.inputs) == 1
            moves = isinstance(node, Affine) and not any(one.mixes for one in node.maps)
            single.append(alone and moves)
            exact.append(isinstance(node, Affine) and (alone or (moves and len(node.inputs) == 1 and exact[node.inputs[0]])))
        return exact


@dataclass
class Bounds:
    """What is known of the values of a graph for a batch of sets: intervals, and what follows from them.

    Attributes:
        intervals: for each node, lower and upper bounds, (B, ...) each.
        errors: for each node, as :meth:`Node.error`.
        relaxed: for the nodes where it has been asked for, as :meth:`Node.relax`.
    """

    intervals: list[Interval] = field(default_factory=list)
    errors: list[Tensor | None] = field(default_factory=list)
    relaxed: dict[int, Any] = field(default_factory=dict)

    def of(self, graph: Graph, number: int) -> Any:
        """Return what the backward pass needs to know at a node."""
        if number not in self.relaxed:
            node = graph.nodes[number]
            self.relaxed[number] = node.relax(self.errors[number], *(self.intervals[i] for i in node.inputs))
        return self.relaxed[number]

    def index_select(self, index: Tensor) -> "Bounds":
        """Return those of some of the examples. index: (b,) int64."""
        intervals = [(low[index], high[index]) for low, high in self.intervals]
        return Bounds(intervals, [None if error is None else error[index] for error in self.errors])


def propagate(graph: Graph, first: Interval, refine: Callable[[int, Bounds], Interval] | None = None) -> Bounds:
    """Bound all values of a graph, each from the bounds of its inputs (interval bound propagation, Gowal et al. 2018).

    Args:
        graph: of the network.
        first: bounds of the inputs, (B, ...) each.
        refine: a function of the number of a node and the bounds so far, its own included, that returns better ones for it.
    """
    bounds = Bounds([first], [None])
    for number, node in enumerate(graph.nodes[1:], 1):
        inputs = [bounds.intervals[i] for i in node.inputs]
        error = node.error(*inputs)
        bounds.errors.append(error)
        bounds.intervals.append(node.interval(error, *inputs))
        if refine is not None:
            bounds.intervals[number] = refine(number, bounds)
    return bounds
