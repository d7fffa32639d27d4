"""How far float arithmetic may be from real arithmetic, as in Higham, Accuracy and Stability of Numerical Algorithms (2002).

A sum of n products, added in any order, differs from its real value by at most ``γ_n Σ|w_j x_j|`` with
``γ_n = n u / (1 - n u)`` and the unit roundoff u of the dtype (2⁻²⁴ of float32). The bounds of this room hold for what a
network computes, not only for the real function that it stands for: each operation of it is allowed an error of this size,
wherever it rounds. They are themselves computed in float64, whose own error is covered by the same formula, with a count that
is larger than any that occurs.

What is taken for granted: convolutions and matrix products add up products of float32 numbers, in any order and with or without
fused multiply-add (as oneDNN, MKL, cuBLAS, and the direct and implicit-GEMM algorithms of cuDNN do, and not TF32, Winograd's
algorithm and the FFT); sigmoid, tanh and the scaling of a normalisation are right to 16 roundings.
"""

import torch

SAFETY = 1.001  # times an error, for the rounding of the error itself
ELEMENTARY = 16  # roundings within one value of sigmoid, tanh or a normalisation


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return u, half the distance between 1 and the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, u: float) -> float:
    """Return ``γ_n = n u / (1 - n u)``, infinity where n u reaches 1."""
    return n * u / (1 - n * u) if n * u < 1 else float("inf")


def allowance(dtype: torch.dtype, roundings: int, size: int) -> float:
    """Return the relative error to allow for an operation.

    Args:
        dtype: that the network computes it in.
        roundings: that one value of it passes through there.
        size: how many numbers the float64 computation of bounds adds up for it at most.
    """
    return SAFETY * (gamma(roundings, unit_roundoff(dtype)) + 4 * gamma(size + 100, unit_roundoff(torch.float64)))


def smallest(dtype: torch.dtype, roundings: int) -> float:
    """Return the absolute error to allow where products underflow, also where subnormal numbers are flushed to zero."""
    return roundings * torch.finfo(dtype).tiny
