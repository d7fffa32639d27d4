"""Linear maps between examples: what a network does between two nonlinear operations, forward, in absolute values, and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


class LinearMap:
    """A linear map L from examples of ``shape`` to others.

    Attributes:
        shape: of an input, without the batch.
        terms: how many products one value of the output adds up at most; 0 for maps that only move numbers.
        mixes: whether a value of the output depends on several of the input.
    """

    shape: Shape
    terms: int = 0
    mixes: bool = True

    def apply(self, x: Tensor) -> Tensor:
        """Return ``L x``. (M, ...) -> (M, ...)."""
        raise NotImplementedError

    def magnitude(self, x: Tensor) -> Tensor:
        """Return ``|L| x``, with the absolute value of each coefficient. (M, ...) -> (M, ...)."""
        raise NotImplementedError

    def adjoint(self, a: Tensor) -> Tensor:
        """Return ``Lᵀ a``, differentiable in a. (M, ...) -> (M, ...)."""
        raise NotImplementedError


class Dense(LinearMap):
    """A matrix product with the last dimension: ``x Wᵀ``; weight (out, in)."""

    def __init__(self, weight: Tensor, shape: Shape):
        self.weight, self.absolute, self.shape, self.terms = weight, weight.abs(), shape, weight.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def magnitude(self, x: Tensor) -> Tensor:
        return F.linear(x, self.absolute)

    def adjoint(self, a: Tensor) -> Tensor:
        return a @ self.weight


class Convolution(LinearMap):
    """A convolution, or a transposed one, of any number of dimensions.

    Args:
        weight: as torch's.
        shape: of an input.
        options: stride, padding, dilation, transposed, output padding and groups, as ``torch.convolution`` takes them.
    """

    def __init__(self, weight: Tensor, shape: Shape, *options: Any):
        self.weight, self.absolute, self.shape, self.options = weight, weight.abs(), shape, options
        transposed, groups = options[3], options[5]
        # Per output a transposed convolution has at most all channels of a group times the whole kernel.
        self.terms = weight[0].numel() if not transposed else weight.shape[0] // groups * weight[0, 0].numel()

    def apply(self, x: Tensor) -> Tensor:
        return torch.convolution(x, self.weight, None, *self.options)

    def magnitude(self, x: Tensor) -> Tensor:
        return torch.convolution(x, self.absolute, None, *self.options)

    def adjoint(self, a: Tensor) -> Tensor:
        x = a.new_empty(1).expand(len(a), *self.shape)  # only its shape is looked at
        back, *_ = torch.ops.aten.convolution_backward(
            a.contiguous(), x, self.weight, None, *self.options, [True, False, False]
        )
        result: Tensor = back
        return result


class Scale(LinearMap):
    """A product of each value with a number of its own; factor broadcasts to (1, ...)."""

    mixes = False

    def __init__(self, factor: Tensor, shape: Shape):
        self.factor, self.shape, self.terms = factor.expand(1, *shape), shape, 1

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor

    def magnitude(self, x: Tensor) -> Tensor:
        return x * self.factor.abs()

    def adjoint(self, a: Tensor) -> Tensor:
        return a * self.factor


class Identity(LinearMap):
    """Each value as it is; with a sign, its opposite."""

    mixes = False

    def __init__(self, shape: Shape, sign: int = 1):
        self.shape, self.sign = shape, sign

    def apply(self, x: Tensor) -> Tensor:
        return x if self.sign > 0 else -x

    def magnitude(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, a: Tensor) -> Tensor:
        return self.apply(a)


class Reshape(LinearMap):
    """The same numbers in another shape."""

    mixes = False

    def __init__(self, shape: Shape, new: Shape):
        self.shape, self.new = shape, new

    def apply(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.new)

    magnitude = apply

    def adjoint(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), *self.shape)


class Function(LinearMap):
    """A linear function with coefficients of at least 0, such as a mean, a permutation or a slice; autograd takes it back.

    Args:
        function: (M, ...) -> (M, ...).
        shape: of an input.
        terms: as the attribute.
        mixes: as the attribute.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: Shape, terms: int = 0, mixes: bool = False):
        self.function, self.shape, self.terms, self.mixes = function, shape, terms, mixes

    def apply(self, x: Tensor) -> Tensor:
        return self.function(x)

    magnitude = apply

    def adjoint(self, a: Tensor) -> Tensor:
        back = torch.func.vjp(self.function, a.new_zeros(1, *self.shape))[1]
        result: Tensor = torch.func.vmap(lambda row: back(row)[0])(a[:, None])[:, 0]
        return result
