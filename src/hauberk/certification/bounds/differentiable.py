"""Bounds with gradients: a model is watched once, and its graph made anew with the present parameters at every step.

The certifier's graph holds constants in float64. Here the same operations are read with the parameters themselves, in the
model's own dtype and with their gradients, so rounding is not allowed for: these bounds are for training, not for certificates.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hauberk.attacks.model.frozen_model import kept_buffers
from hauberk.certification.bounds.crown import lower_bound
from hauberk.certification.bounds.graph import Affine, Bounds, Graph, Interval, Node
from hauberk.certification.bounds.recorder import Recorder
from hauberk.certification.bounds.trace import flat, record

_MOST_TAPES = 4  # of a model: in training and in evaluation mode, for two shapes


class Tape(Recorder):
    """What was read of a model, in order, so that it can be read again with other parameters.

    Args:
        model: in the mode that counts.
        x: two inputs, (2, ...).
    """

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__(x)
        self.x = x
        self.normalises_by_batch = False
        self._entries: list[Callable[[_Reader], None]] = []
        with torch.no_grad(), kept_buffers(model):  # training mode moves the statistics of batch normalisations
            self._names = {id(value): name for name, value in _tensors(model).items()}
            self._kept = list(_tensors(model).values())  # so that no other tensor gets one of these ids
            self.output = record(model, self, x).output

    def read(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Read, and remember what; an operation without numbers of its own makes the same node each time."""
        count = len(self.nodes)
        constants = [value for value in flat((args[1:], kwargs)) if isinstance(value, Tensor) and not self.is_known(value)]
        super().read(function, *args, **kwargs)
        layer, node = self.layers[-1], self.nodes[-1] if len(self.nodes) > count and not constants else None
        self._entries.append(lambda r: r.read_again(layer, node, function, args, kwargs))

    def compute(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation on constants, and remember it if it makes another out of parameters or buffers."""
        out = function(*args, **kwargs)
        changes = function._schema.is_mutable  # type: ignore[attr-defined]
        if not changes and any(id(value) in self._names for value in flat((args, kwargs)) if isinstance(value, Tensor)):
            self._kept += (made := [value for value in flat([out]) if isinstance(value, Tensor)])
            self._names |= {id(value): "" for value in made}
            self._entries.append(lambda r: r.compute_again(made, function, args, kwargs))
        return out

    def alias(self, out: Any, value: Tensor) -> None:
        """Let a tensor stand for the same node as another, now and later."""
        super().alias(out, value)
        self._entries.append(lambda r: r.known.update({id(out): (out, r.known.get(id(value), (value, None))[1])}))

    def value(self, constant: Tensor, like: Tensor) -> Tensor:
        """A constant as the network has it."""
        return constant.to(like.dtype)

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the two inputs, which nobody uses."""
        self.normalises_by_batch = True
        return _statistics(x)

    def graph(self, model: nn.Module, x: Tensor) -> Graph:
        """Return the graph with the model's present parameters, differentiable in them.

        Batch normalisations in training mode take the statistics of the clean inputs x, (B, ...), with their gradients, as in
        CROWN-IBP's public code and Shi et al. (2021). That costs one more forward pass, because they have to be computed.
        """
        tensors = _tensors(model)
        values = {key: tensors[name] for key, name in self._names.items() if name}
        reader = _Reader(self.x, values, x if self.normalises_by_batch else None)
        for entry in self._entries:
            entry(reader)
        return Graph(reader.nodes, self.output)


class _Reader(Recorder):
    """Reads a tape.

    Args:
        x: inputs of the tape.
        values: present values of constants, by the id of those on the tape.
        clean: inputs (B, ...) whose statistics batch normalisations use; None where there are none in training mode.
    """

    def __init__(self, x: Tensor, values: dict[int, Tensor], clean: Tensor | None):
        super().__init__(x)
        self._values, self._clean = values, None if clean is None else [clean]

    def read_again(self, layer: str, node: Node | None, function: Callable[..., None], args: Any, kwargs: Any) -> None:
        self.layers = [layer]
        if node is None:
            self.read(function, *self._present(args), **self._present(kwargs))
        else:
            self.add(node, args[0])

    def compute_again(self, made: list[Tensor], function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        out = function(*self._present(args), **self._present(kwargs))
        self._values |= {id(old): new for old, new in zip(made, flat([out]), strict=True)}

    def value(self, constant: Tensor, like: Tensor) -> Tensor:
        return constant.to(like.dtype)

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self._clean is not None  # the tape has met this normalisation
        return _statistics(self._clean[self.number(x)])

    def add(self, node: Node, out: Tensor) -> None:
        super().add(node, out)
        if self._clean is not None:
            self._clean.append(node.evaluate(*(self._clean[i] for i in node.inputs)))

    def _present(self, given: Any) -> Any:
        """The arguments of an operation with constants as they are now."""
        if isinstance(given, Tensor):
            return self._values.get(id(given), given)
        if isinstance(given, tuple | list):
            return [self._present(one) for one in given]
        return {key: self._present(one) for key, one in given.items()} if isinstance(given, dict) else given


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    over = [d for d in range(x.ndim) if d != 1]
    return x.mean(over), x.var(over, unbiased=False)


_TAPES: WeakKeyDictionary[nn.Module, dict[Any, Tape]] = WeakKeyDictionary()


def present_graph(model: nn.Module, x: Tensor) -> Graph:
    """Return a model's graph with its present parameters, in its own mode and dtype, differentiable in them.

    The model is watched the first time it comes in a mode and with inputs of a shape; what its operations are may change
    afterwards only with the mode of its modules.

    Args:
        model: from inputs (B, ...) to logits (B, C).
        x: clean inputs, (B, ...); batch normalisations in training mode take their statistics.

    Raises:
        UserError: if it does something that there are no bounds for; the layer and the operation are named.
    """
    tapes = _TAPES.setdefault(model, {})
    key = (x.shape[1:], x.dtype, x.device, tuple(module.training for module in model.modules()))
    if key not in tapes:
        if len(tapes) >= _MOST_TAPES:
            tapes.clear()
        first = x.detach()[:1]
        tapes[key] = Tape(model, torch.cat([first, first + 1 + first.abs()]))  # no number is the same in both
    return tapes[key].graph(model, x)


class Box:
    """A box of inputs, in their own dtype: what bounds that go back to the inputs need of it.

    Args:
        low: lower bounds, (B, ...).
        high: upper bounds, likewise.
    """

    def __init__(self, low: Tensor, high: Tensor):
        self.interval: Interval = low, high
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    def lowest(self, a: Tensor) -> Tensor:
        """Bound linear functions from below. a: coefficients (B, S, ...) -> (B, S)."""
        rows = a.flatten(2)
        ends = rows @ self._middle.flatten(1)[:, :, None] - rows.abs() @ self._half.flatten(1)[:, :, None]
        return ends.squeeze(2)


def propagate_box(graph: Graph, box: Box) -> Bounds:
    """Bound all values of a graph by intervals (Gowal et al. 2018), without an allowance for rounding."""
    bounds = Bounds([box.interval], [None])
    for node in graph.nodes[1 : graph.output + 1]:
        bounds.errors.append(None)
        bounds.intervals.append(node.interval(None, *(bounds.intervals[i] for i in node.inputs)))
    return bounds


def interval_lower_bound(graph: Graph, bounds: Bounds, c: Tensor) -> Tensor:
    """Bound linear functions of the output by intervals of what the last operation works on, where that is affine.

    Args:
        graph: of the network.
        bounds: of :func:`propagate_box`.
        c: coefficients (B, S, C).

    Returns:
        (B, S).
    """
    node = graph.nodes[graph.output]
    if not isinstance(node, Affine):
        return Box(*bounds.intervals[graph.output]).lowest(c)
    parts, total, _ = node.backward(c, None)
    for part, i in zip(parts, node.inputs, strict=True):
        total = total + Box(*bounds.intervals[i]).lowest(part)
    return total


def crown_lower_bound(graph: Graph, bounds: Bounds, box: Box, c: Tensor) -> Tensor:
    """Bound linear functions of the output by CROWN-IBP (Zhang et al. 2020): back to the inputs, with intervals in between.

    Arguments as in :func:`interval_lower_bound`, with the box of the inputs.
    """
    return lower_bound(graph, bounds, box, graph.output, c)
