"""CROWN: linear functions of a network's values bounded from below, backward through the graph to its inputs.

Zhang et al. 2018 (CROWN), Xu et al. 2020 (general graphs), Zhang et al. 2020 (CROWN-IBP), Xu et al. 2021 (α-CROWN). Every
operation lies between two lines (activations.py); going backward, a value with a positive coefficient is replaced by its lower
line and one with a negative coefficient by its upper line, until a linear function of the inputs is left, whose least value on
ball and box is known.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hauberk.certification.bounds.activations import LeakyReLU
from hauberk.certification.bounds.graph import Affine, Bounds, Graph, Input, Interval, propagate
from hauberk.certification.bounds.region import Region
from hauberk.certification.bounds.rounding import allowance
from hauberk.certification.bounds.windows import Window, go_back, plan

# Numbers of a tensor of coefficients at once, of which some ten are there at a time: on a CPU 4 MiB each, which stay in its
# cache (ten times as many cost twice the time), otherwise 256 MiB.
AT_ONCE_CPU, AT_ONCE = 2**19, 2**25


class InputSet(Protocol):
    """What a bound that has come back to the inputs asks of their sets."""

    def lowest(self, a: Tensor) -> Tensor:
        """Bound linear functions from below. a: coefficients (B, S, ...) -> (B, S)."""


def lower_bound(
    graph: Graph,
    bounds: Bounds,
    region: InputSet,
    number: int,
    c: Tensor,
    alphas: Mapping[int, Tensor] | None = None,
    betas: Mapping[int, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
) -> Tensor:
    """Bound linear functions of a node's value from below, for every input of a set.

    Args:
        graph: of the network.
        bounds: of the values before that node.
        region: sets of B inputs.
        number: of the node.
        c: coefficients (B, S, ...).
        alphas: for the number of a ReLU, slopes (B, S, ...) of its lower lines; others take their own.
        betas: for the number of a ReLU, multipliers (B, S, ...) of its inputs z, at least 0 where the set is cut with z ≥ 0, at
            most 0 where it is with z ≤ 0, and 0 elsewhere: the bound then holds on what is cut out.
        seen: where to put the coefficients (B, S, ...) of the input and of the outputs of ReLUs, by number.

    Returns:
        (B, S).
    """
    return _finish(graph, bounds, region, {number: c}, c.new_zeros(c.shape[:2]), alphas or {}, betas or {}, seen)


def both_bounds(graph: Graph, bounds: Bounds, region: Region, number: int, c: Tensor) -> Interval:
    """Bound linear functions of a node's value from below and from above, (B, S) each; arguments as :func:`lower_bound`.

    The first step back is linear, so both share it where the node is affine.
    """
    node = graph.nodes[number]
    if not isinstance(node, Affine):
        low, minus_high = (lower_bound(graph, bounds, region, number, sign * c) for sign in (1, -1))
        return low, -minus_high
    parts, constant, error = node.backward(c, bounds.of(graph, number))
    coefficients: dict[int, Tensor] = {}
    for i, part in zip(node.inputs, parts, strict=True):
        _add(coefficients, i, torch.cat([part, -part], 1))
    total = torch.cat([constant - error, -constant - error], 1)
    low, minus_high = _finish(graph, bounds, region, coefficients, total, {}, {}).chunk(2, 1)
    return low, -minus_high


def _finish(
    graph: Graph,
    bounds: Bounds,
    region: InputSet,
    coefficients: dict[int, Tensor],
    total: Tensor,
    alphas: Mapping[int, Tensor],
    betas: Mapping[int, Tensor],
    seen: dict[int, Tensor] | None = None,
) -> Tensor:
    """Go back to the inputs from any set of nodes."""
    while coefficients:
        number = max(coefficients)
        node, a = graph.nodes[number], coefficients.pop(number)
        if isinstance(node, Input):
            if seen is not None:
                seen[number] = a.detach()
            return total + region.lowest(a)
        parts, constant, error = node.backward(a, bounds.of(graph, number), alphas.get(number))
        total = total + constant - error
        if number in betas:
            parts = [parts[0] - betas[number]]
        if seen is not None and isinstance(node, LeakyReLU):
            seen[number] = a.detach()
        for i, part in zip(node.inputs, parts, strict=True):
            _add(coefficients, i, part)
    return total


def _add(coefficients: dict[int, Tensor], number: int, part: Tensor) -> None:
    coefficients[number] = coefficients[number] + part if number in coefficients else part


def interval_bounds(graph: Graph, region: Region) -> Bounds:
    """Bound all values of a network by intervals, each from those of its inputs (Gowal et al. 2018).

    Where a set is no box, values that are affine functions of the inputs are bounded on the set itself, and the rest from them.
    """
    wanted = {i for i, exact in enumerate(graph.separable()) if i and exact and not region.norm.is_box}
    return propagate(graph, region.interval, partial(_refined, graph, region, wanted, set()))


def crown_bounds(graph: Graph, region: Region) -> Bounds:
    """Bound all values of a network, those before nonlinear operations by CROWN: the intermediate bounds of CROWN.

    Of values whose sign is settled already by interval arithmetic, before a ReLU, nothing better is asked.
    """
    before = {i for node in graph.nodes if not isinstance(node, Affine | Input) for i in node.inputs}
    wanted = {i for i in before if i and not (region.norm.is_box and graph.separable()[i])}
    relus = {i for i in wanted if all(isinstance(node, LeakyReLU | Affine) for node in graph.nodes if i in node.inputs)}
    return propagate(graph, region.interval, partial(_refined, graph, region, wanted, relus))


def _refined(graph: Graph, region: Region, wanted: set[int], relus: set[int], number: int, bounds: Bounds) -> Interval:
    """Better bounds for one node, where they are wanted."""
    low, high = bounds.intervals[number]
    if number not in wanted:
        return low, high
    flat_low, flat_high = low.flatten(1).clone(), high.flatten(1).clone()
    open_ = (flat_low < 0) & (flat_high > 0) if number in relus else torch.ones_like(flat_low, dtype=torch.bool)
    most = int(open_.sum(1).max())
    if not most:
        return low, high
    # The neurons that are asked for come first in each row; a row with fewer of them fills up with others.
    order = open_.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    way = plan(graph, number)
    whole = not way or not isinstance(graph.nodes[way[-1].node], Input)
    widest = graph.largest if whole else max(graph.nodes[w.node].shape[0] * w.size[0] * w.size[1] for w in way)
    at_once = AT_ONCE_CPU if low.device.type == "cpu" else AT_ONCE
    chunk = max(at_once // (2 * len(low) * widest), 1)
    for part in order.split(chunk, 1):
        below, above = _of_single(graph, bounds, region, number, part, way)
        flat_low.scatter_(1, part, torch.maximum(below, flat_low.gather(1, part)))
        flat_high.scatter_(1, part, torch.minimum(above, flat_high.gather(1, part)))
    return flat_low.view_as(low), torch.maximum(flat_high, flat_low).view_as(high)


def _of_single(graph: Graph, bounds: Bounds, region: Region, number: int, index: Tensor, way: Sequence[Window]) -> Interval:
    """Bound single values of a node, those at index (B, S), from below and above: (B, S) each."""
    if not way:
        shape = graph.nodes[number].shape
        c = torch.zeros(*index.shape, torch.Size(shape).numel(), dtype=torch.float64, device=index.device)
        c.scatter_(2, index[:, :, None], 1.0)
        return both_bounds(graph, bounds, region, number, c.view(*index.shape, *shape))
    total, a, reached = go_back(graph, bounds, region, way, index)
    if a is not None:
        total = _finish(graph, bounds, region, {reached: a}, total, {}, {})
    low, minus_high = total.chunk(2, 1)
    return low, -minus_high


def interval_bound(graph: Graph, bounds: Bounds, c: Tensor) -> Tensor:
    """Bound linear functions of the output by intervals: of the last operation's inputs, where that is affine. (B, S)."""
    node = graph.nodes[graph.output]
    low, high = bounds.intervals[graph.output]
    if isinstance(node, Affine):
        parts, total, error = node.backward(c, bounds.of(graph, graph.output))
        total = total - error
        ends = [bounds.intervals[i] for i in node.inputs]
    else:
        parts, total, ends = [c], c.new_zeros(c.shape[:2]), [(low, high)]
    for part, (least, most) in zip(parts, ends, strict=True):
        total = total + torch.minimum(part * least[:, None], part * most[:, None]).flatten(2).sum(2)
        reach = allowance(torch.float64, 0, part[0, 0].numel()) * torch.maximum(least.abs(), most.abs()).flatten(1)
        total = total - (part.abs().flatten(2) @ reach[:, :, None]).squeeze(2)
    return total
