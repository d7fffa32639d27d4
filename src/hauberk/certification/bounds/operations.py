"""Operations of torch that bounds are known for: each is read as nodes of a graph."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hauberk.certification.bounds.activations import LeakyReLU, MaxPool, Sigmoidal
from hauberk.certification.bounds.maps import Convolution, Dense, Function, Identity, LinearMap, Reshape, Scale
from hauberk.certification.bounds.recorder import Recorder, Unknown, shape_of
from hauberk.certification.bounds.rounding import ELEMENTARY

aten = torch.ops.aten


def _dims(dims: Any, ndim: int) -> list[int]:
    """Dimensions counted from the front; the batch is refused."""
    dims = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    counted = [d % ndim for d in dims]
    if 0 in counted:
        raise Unknown("mixes the examples of a batch")
    return counted


def read_linear(r: Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Read ``x Wᵀ + b``."""
    if not r.is_known(x) or r.is_known(weight) or r.is_known(bias) or x.ndim < 2:
        raise Unknown("multiplies with what depends on the input")
    r.affine(out, [(x, Dense(r.value(weight, x), shape_of(x)))], bias)


def _addmm(r: Recorder, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor, **scales: Any) -> None:
    if scales or x.ndim != 2:
        raise Unknown
    read_linear(r, out, x, weight.t(), bias)


def _mm(r: Recorder, out: Tensor, x: Tensor, weight: Tensor) -> None:
    read_linear(r, out, x, weight.t())


def _convolution(r: Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> None:
    if r.is_known(weight) or r.is_known(bias) or x.ndim < 3:
        raise Unknown("convolves with what depends on the input")
    bias = None if bias is None else bias.view(-1, *[1] * (x.ndim - 2))
    r.affine(out, [(x, Convolution(r.value(weight, x), shape_of(x), *options))], bias)


def read_batch_norm(
    r: Recorder,
    out: Tensor,
    x: Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    """Read a batch normalisation, a product and a sum for each channel."""
    if training or mean is None or var is None:
        mean, var = r.batch_statistics(x)
    view = (-1, *[1] * (x.ndim - 2))
    weight, bias, mean, var = (None if one is None else r.value(one, x).view(view) for one in (weight, bias, mean, var))
    factor = (var + eps).rsqrt() * (1 if weight is None else weight)
    moved = mean * factor
    constant = -moved if bias is None else bias - moved
    size = moved.abs() + (0 if bias is None else bias.abs())
    r.affine(out, [(x, Scale(factor, shape_of(x)))], constant, size, roundings=ELEMENTARY)


def _add(r: Recorder, out: Tensor, x: Any, other: Any, alpha: float = 1, sign: int = 1) -> None:
    if alpha != 1:
        raise Unknown("with a factor has no bounds")
    if r.is_known(x) and r.is_known(other):
        if x.shape != out.shape or other.shape != out.shape:
            raise Unknown("broadcasts what depends on the input")
        r.affine(out, [(x, Identity(shape_of(x))), (other, Identity(shape_of(x), sign))])
        return
    if r.is_known(x):
        known, constant, way = x, sign * r.constant(other, out), 1
    else:
        known, constant, way = other, r.constant(x, out), sign
    if known.shape != out.shape:
        raise Unknown("broadcasts what depends on the input")
    inexact = not bool((constant.to(out.dtype) == constant).all())  # then it is rounded before it is added
    r.affine(out, [(known, Identity(shape_of(known), way))], constant, roundings=int(inexact))


def _sub(r: Recorder, out: Tensor, x: Any, other: Any, alpha: float = 1) -> None:
    _add(r, out, x, other, alpha, sign=-1)


def _rsub(r: Recorder, out: Tensor, x: Any, other: Any, alpha: float = 1) -> None:
    _add(r, out, other, x, alpha, sign=-1)


def _mul(r: Recorder, out: Tensor, x: Any, other: Any) -> None:
    if r.is_known(x) and r.is_known(other):
        raise Unknown("multiplies what depends on the input with itself")
    known, constant = (x, other) if r.is_known(x) else (other, x)
    r.scaled(out, known, r.constant(constant, out), roundings=1)


def _div(r: Recorder, out: Tensor, x: Any, other: Any) -> None:
    if r.is_known(other):
        raise Unknown("divides by what depends on the input")
    r.scaled(out, x, 1 / r.constant(other, out), roundings=2)


def _neg(r: Recorder, out: Tensor, x: Tensor) -> None:
    r.affine(out, [(x, Identity(shape_of(x), -1))])


def _leaky_relu(r: Recorder, out: Tensor, x: Tensor, slope: float = 0.0) -> None:
    if not 0 <= slope < 1:
        raise Unknown(f"with a slope of {slope} has no bounds")
    r.add(LeakyReLU(r.layers[-1], (r.number(x),), shape_of(x), x.dtype, slope), out)


def _clamp_min(r: Recorder, out: Tensor, x: Tensor, least: Any = None, most: Any = None) -> None:
    if least != 0 or most is not None:
        raise Unknown("with other limits than 0 has no bounds")
    _leaky_relu(r, out, x)


def _sigmoid(r: Recorder, out: Tensor, x: Tensor) -> None:
    r.add(Sigmoidal(r.layers[-1], (r.number(x),), shape_of(x), x.dtype), out)


def _tanh(r: Recorder, out: Tensor, x: Tensor) -> None:
    r.add(Sigmoidal(r.layers[-1], (r.number(x),), shape_of(x), x.dtype, tanh=True), out)


def read_view(r: Recorder, out: Tensor, x: Tensor, *shape: Any, **options: Any) -> None:
    """Read what leaves the numbers of each example in their order."""
    if len(out) != r.batch or len(x) != r.batch:
        raise Unknown("mixes the examples of a batch")
    r.affine(out, [(x, Reshape(shape_of(x), shape_of(out)))])


def _permute(r: Recorder, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    order = [d % x.ndim for d in dims]
    if order[0] != 0:
        raise Unknown("mixes the examples of a batch")
    r.function(out, x, lambda v: v.permute(order))


def _transpose(r: Recorder, out: Tensor, x: Tensor, first: int, second: int) -> None:
    a, b = _dims([first, second], x.ndim)
    r.function(out, x, lambda v: v.transpose(a, b))


def _slice(r: Recorder, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> None:
    if dim % x.ndim == 0:
        if out.shape != x.shape:
            raise Unknown("takes some of the examples of a batch")
        r.affine(out, [(x, Identity(shape_of(x)))])
        return
    part = slice(start, None if end is None or end > x.shape[dim] else end, step)
    where = (*[slice(None)] * (dim % x.ndim), part)
    r.function(out, x, lambda v: v[where])


def _select(r: Recorder, out: Tensor, x: Tensor, dim: int, index: int) -> None:
    (d,) = _dims(dim, x.ndim)
    r.function(out, x, lambda v: v.select(d, index))


def _index(r: Recorder, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    if (
        not r.is_known(x)
        or indices[0] is not None
        or any(r.is_known(i) for i in indices)
        or any(i is not None and i.dtype == torch.bool for i in indices)
    ):
        raise Unknown("takes some of the examples of a batch, or depends on the input")
    where = tuple(slice(None) if i is None else i for i in indices)
    r.function(out, x, lambda v: v[where])


def _index_select(r: Recorder, out: Tensor, x: Tensor, dim: int, index: Tensor) -> None:
    (d,) = _dims(dim, x.ndim)
    r.function(out, x, lambda v: v.index_select(d, index))


def _pad(r: Recorder, out: Tensor, x: Tensor, widths: Sequence[int], value: float = 0.0) -> None:
    if value != 0 or len(widths) > 2 * (x.ndim - 1):
        raise Unknown("with other values than 0 has no bounds")
    r.function(out, x, lambda v: F.pad(v, list(widths)))


def _expand(r: Recorder, out: Tensor, x: Tensor, shape: Sequence[int], **options: Any) -> None:
    if out.ndim != x.ndim:
        raise Unknown
    r.function(out, x, lambda v: v.expand(len(v), *out.shape[1:]))


def _mean(r: Recorder, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> None:
    over = _dims(dims, x.ndim)
    r.function(out, x, lambda v: v.mean(over, keepdim), math.prod(x.shape[d] for d in over) + 1, True)


def _sum(r: Recorder, out: Tensor, x: Tensor, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> None:
    over = _dims(dims, x.ndim)
    r.function(out, x, lambda v: v.sum(over, keepdim), math.prod(x.shape[d] for d in over), True)


def _avg_pool(r: Recorder, out: Tensor, x: Tensor, kernel: Any, *options: Any) -> None:
    if x.ndim != 4:
        raise Unknown("without a batch has no bounds")
    if len(options) > 4 and options[4] is not None:
        raise Unknown("with a divisor of its own has no bounds")
    r.function(out, x, lambda v: F.avg_pool2d(v, kernel, *options), math.prod(_pair(kernel)) + 1, True)


def _adaptive_avg_pool(r: Recorder, out: Tensor, x: Tensor, size: Any) -> None:
    if x.ndim != 4:
        raise Unknown("without a batch has no bounds")
    terms = math.prod(-(-x.shape[d] // out.shape[d]) + 1 for d in (2, 3)) + 1
    r.function(out, x, lambda v: F.adaptive_avg_pool2d(v, size), terms, True)


def _max_pool(
    r: Recorder, out: Tensor, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> None:
    if x.ndim != 4:
        raise Unknown("without a batch has no bounds")
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if stride else kernel
    place = torch.arange(x[0, 0].numel(), dtype=torch.float64).view(1, 1, *x.shape[2:])
    # So many rows and columns more at the far side that every window lies inside, as with ceil_mode.
    more = [
        max((out.shape[d + 2] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1 - x.shape[d + 2] - padding[d], 0)
        for d in (0, 1)
    ]
    wide = F.pad(place, [padding[1], more[1], padding[0], more[0]], value=float(place.numel()))
    columns = F.unfold(wide, kernel, dilation, 0, stride)[0].long()
    across = (wide.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    columns = columns.view(len(columns), -1, across)[:, : out.shape[2], : out.shape[3]].flatten(1)
    r.add(MaxPool(r.layers[-1], (r.number(x),), shape_of(out), x.dtype, columns.to(x.device)), out)


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values if len(values) == 2 else (values[0], values[0])


def _cat(r: Recorder, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    (d,) = _dims(dim, out.ndim)
    maps: list[tuple[Tensor, LinearMap]] = []
    bias, begin = r.value(torch.zeros(out.shape[1:], dtype=torch.float64, device=out.device), out), 0
    for part in parts:
        size = part.shape[d]
        if r.is_known(part):
            widths = [0, 0] * (out.ndim - 1 - d) + [begin, out.shape[d] - begin - size]
            maps.append((part, Function(lambda v, widths=widths: F.pad(v, widths), shape_of(part))))  # type: ignore[misc]
        else:
            bias.narrow(d - 1, begin, size).copy_(r.constant(part, out).to(out.dtype))  # a large integer is rounded
        begin += size
    known = len(maps) == len(parts)
    # What is added to each value is 0, so nothing rounds.
    r.affine(out, maps, None if known else bias, roundings=1 - len(maps) - (not known))


def _to_copy(r: Recorder, out: Tensor, x: Tensor, **options: Any) -> None:
    lower = torch.finfo(out.dtype).bits < torch.finfo(x.dtype).bits if out.is_floating_point() else True
    r.affine(out, [(x, Identity(shape_of(x)))], roundings=int(lower))


SHAPE_ONLY = {aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty}
SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
OPERATIONS: dict[Any, Callable[..., None]] = {
    aten.addmm: _addmm, aten.mm: _mm, aten.linear: read_linear, aten.convolution: _convolution,
    aten.native_batch_norm: read_batch_norm, aten.cudnn_batch_norm: read_batch_norm,
    aten.add: _add, aten.add_: _add, aten.sub: _sub, aten.sub_: _sub, aten.rsub: _rsub, aten.mul: _mul, aten.mul_: _mul,
    aten.div: _div, aten.div_: _div, aten.neg: _neg,
    aten.relu: _leaky_relu, aten.relu_: _leaky_relu, aten.leaky_relu: _leaky_relu, aten.leaky_relu_: _leaky_relu,
    aten.clamp_min: _clamp_min, aten.clamp: _clamp_min, aten.sigmoid: _sigmoid, aten.sigmoid_: _sigmoid,
    aten.tanh: _tanh, aten.tanh_: _tanh, aten.max_pool2d_with_indices: _max_pool,
    aten.avg_pool2d: _avg_pool, aten._adaptive_avg_pool2d: _adaptive_avg_pool, aten.mean: _mean, aten.sum: _sum,
    aten.view: read_view, aten._unsafe_view: read_view, aten.reshape: read_view, aten.squeeze: read_view,
    aten.unsqueeze: read_view, aten.clone: read_view, aten.permute: _permute, aten.transpose: _transpose,
    aten.slice: _slice, aten.select: _select,
    aten.index: _index, aten.index_select: _index_select, aten.constant_pad_nd: _pad, aten.expand: _expand, aten.cat: _cat,
    aten._to_copy: _to_copy,
}  # fmt: skip
