"""Bounds of single values behind convolutions, whose coefficients fill small windows of the images before them.

What a value of a convolutional layer depends on is a window of the layer before, and a wider one of that before it. Going back
(crown.py) on windows alone takes a fraction of the numbers; where the window has grown to most of the image, or an operation is
met that is not known here, the coefficients are spread out and the usual way is gone on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hauberk.certification.bounds.activations import Activation
from hauberk.certification.bounds.graph import Affine, Bounds, Graph, Input, Node
from hauberk.certification.bounds.maps import Convolution, Identity, Scale
from hauberk.certification.bounds.region import Region
from hauberk.core.device import send

_MOST = 0.5  # of an image that a window may be


@dataclass
class Window:
    """Where the coefficients of rows may differ from 0 in the output of a node.

    Attributes:
        node: number of the node.
        size: height and width.
        pad: by how much windows reach beyond the image above, below, left and right at most.
    """

    node: int
    size: tuple[int, int]
    pad: tuple[int, int, int, int]


def plan(graph: Graph, number: int) -> list[Window]:
    """Return the windows on the way back from one value of a node, until there are none; the input comes last if they reach it.

    Empty where windows do not pay.
    """
    windows: list[Window] = []
    if not isinstance(graph.nodes[number], Affine):
        return windows
    size, low, high = (1, 1), (0, 0), tuple(n - 1 for n in graph.nodes[number].shape[1:])
    while True:
        node = graph.nodes[number]
        if len(node.shape) != 3:
            break
        above, left = (max(0, -low[d]) for d in (0, 1))
        below, right = (max(0, high[d] + size[d] - node.shape[d + 1]) for d in (0, 1))
        if windows and size[0] * size[1] > _MOST * node.shape[1] * node.shape[2]:
            break
        windows.append(Window(number, size, (above, below, left, right)))
        if not _known(node):
            break
        if isinstance(node, Affine) and isinstance(map_ := node.maps[0], Convolution):
            stride, padding, dilation = map_.options[:3]
            kernel = map_.weight.shape[2:]
            size = tuple((size[d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1))
            low, high = (tuple(end[d] * stride[d] - padding[d] for d in (0, 1)) for end in (low, high))
        number = node.inputs[0]
    return windows if len(windows) > 1 else []


def _known(node: Node) -> bool:
    if isinstance(node, Affine):
        if len(node.maps) > 1:
            return False
        one = node.maps[0]
        return isinstance(one, Scale | Identity) or (
            isinstance(one, Convolution) and not one.options[3] and len(one.shape) == 3
        )
    return isinstance(node, Activation)


def go_back(
    graph: Graph, bounds: Bounds, region: Region, windows: Sequence[Window], index: Tensor
) -> tuple[Tensor, Tensor | None, int]:
    """Bound single values of a node from below, and their opposites, as far back as windows go.

    Args:
        graph: of the network.
        bounds: of the values before that node.
        region: sets of B inputs.
        windows: of :func:`plan`.
        index: which values of the flattened output, (B, S) int64.

    Returns:
        Bounds (B, 2S) and None where the windows reach the input. Otherwise the constant part of the bounds, the coefficients
        (B, 2S, ...) of the last window's node, and its number.
    """
    count, each = index.shape
    channels, height, width = graph.nodes[windows[0].node].shape
    flat = index.flatten()
    a = F.one_hot(flat // (height * width), channels).double()[:, :, None, None]
    place = torch.stack([flat // width % height, flat % width], 1)
    example = torch.arange(count, device=index.device).repeat_interleave(each)
    total = a.new_zeros(len(flat))
    for step, window in enumerate(windows):
        node = graph.nodes[window.node]
        if step and max(window.pad):
            a = a * _cut(a.new_ones(1, 1, *node.shape[1:]), place, window, None)
        if isinstance(node, Input):
            parts = [_cut(value, place, window, example) for value in region.parts]
            return (total + region.lowest_of(a, parts)).view(count, -1), None, window.node
        if step == len(windows) - 1:
            return total.view(count, -1), _spread(a, place, window, node.shape).unflatten(0, (count, -1)), window.node
        if isinstance(node, Activation):
            below, start, above, end = (_cut(part, place, window, example) for part in bounds.of(graph, window.node))
            up, down = a.clamp(min=0), a.clamp(max=0)
            total = total + (up * start + down * end).flatten(1).sum(1)
            a = up * below + down * above
            continue
        assert isinstance(node, Affine)
        relaxed, map_ = bounds.of(graph, window.node), node.maps[0]
        constant = 0.0 if node.bias is None else (a * _cut(node.bias[None], place, window, None)).flatten(1).sum(1)
        error = 0.0 if relaxed is None else (a.abs() * _cut(relaxed, place, window, example)).flatten(1).sum(1)
        total = total + constant - error
        if isinstance(map_, Convolution):
            stride, padding, dilation, _, _, groups = map_.options
            a = F.conv_transpose2d(a, map_.weight, None, stride, 0, 0, groups, dilation)
            scale, shift = send(torch.tensor([stride, padding]), place.device)
            place = place * scale - shift
        elif isinstance(map_, Scale):
            a = a * _cut(map_.factor, place, window, None)
        else:
            a = map_.apply(a)
        if step == 0:  # the first step is linear, so values and their opposites share it, but for its error
            a = torch.stack([a.unflatten(0, (count, each)), -a.unflatten(0, (count, each))], 1).flatten(0, 2)
            signs = [(constant - error), (-constant - error)]
            total = torch.stack([(s + total.new_zeros(len(flat))).view(count, each) for s in signs], 1).flatten()
            place, example = (
                torch.stack([value.unflatten(0, (count, each))] * 2, 1).flatten(0, 2) for value in (place, example)
            )
    raise AssertionError  # the loop ends with the last window


def _cut(value: Tensor, place: Tensor, window: Window, example: Tensor | None) -> Tensor:
    """Windows of images (B, C, H, W), with 0 beyond them: (R, C, h, w); all of the same image where ``example`` is None."""
    above, below, left, right = window.pad
    wide = F.pad(value, [left, right, above, below])
    views = wide.unfold(2, window.size[0], 1).unfold(3, window.size[1], 1)
    first = torch.zeros_like(place[:, 0]) if example is None else example
    return views[first, :, place[:, 0] + above, place[:, 1] + left]


def _spread(a: Tensor, place: Tensor, window: Window, shape: tuple[int, ...]) -> Tensor:
    """Coefficients (R, C, h, w) of windows in whole images (R, C, H, W)."""
    above, below, left, right = window.pad
    height, width = shape[1] + above + below, shape[2] + left + right
    whole = a.new_zeros(len(a), a.shape[1], height * width)
    rows = place[:, 0, None] + above + torch.arange(a.shape[2], device=a.device)
    columns = place[:, 1, None] + left + torch.arange(a.shape[3], device=a.device)
    where = (rows[:, :, None] * width + columns[:, None]).flatten(1)
    whole.scatter_(2, where[:, None].expand(-1, a.shape[1], -1), a.flatten(2))
    return whole.view(len(a), -1, height, width)[:, :, above : above + shape[1], left : left + shape[2]]
