"""Random draws keyed by what they are for, not by when they are drawn.

Every number is a hash of (seed, stage, example, tag, position), so an example gets the same draws in any order, in any
batch and in any process, no generator has a state to save, and nobody's global generator is touched. Uniform draws are the same
on any device, normal ones up to the last digits of its ``erfinv``.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_TAG = -4132994306676758123  # 0xC6A4A7935BD1E995: another odd number, so that tags and positions do not meet


class ExampleRng:
    """Draws for one batch.

    Args:
        seed: any integer.
        ids: (B,) int64, what identifies each example (its index in the data set).
        stage: a second key that separates uses of the same examples: the training step, the attack, ...

    Attributes:
        keys: (B,) int64, all there is to it.
    """

    def __init__(self, seed: int, ids: Tensor, stage: int = 0):
        start = _mix_number(_mix_number(seed) + _GOLDEN * (stage + 1))
        self.keys = _mix(ids.long() * _GOLDEN + _wrap(start + _GOLDEN))

    @classmethod
    def of_keys(cls, keys: Tensor) -> "ExampleRng":
        """Return the draws whose ``keys`` were saved."""
        rng = cls.__new__(cls)
        rng.keys = keys
        return rng

    def index_select(self, index: Tensor) -> "ExampleRng":
        """Return the draws of some of the examples. index: (b,) int64."""
        return self.of_keys(self.keys[index])

    def index_copy(self, places: Tensor, new: "ExampleRng") -> "ExampleRng":
        """Return these draws with those of some examples replaced. places: (b,) int64, new: draws of b examples."""
        return self.of_keys(self.keys.index_copy(0, places, new.keys))

    def uniform(self, like: Tensor, tag: int | Tensor) -> Tensor:
        """Uniform draws in [0, 1) of the shape, dtype and device of ``like`` (B, ...); each tag is independent.

        A tag is an integer, or one for each example, (B,) int64, or several, (B, K), for ``like`` of shape (B, K, ...).
        """
        if isinstance(tag, Tensor):
            keys = self.keys.view(-1, *[1] * (tag.ndim - 1)) + _TAG * (tag + 1)
        else:
            keys = self.keys + _wrap(_TAG * (tag + 1))
        count = prod(like.shape[keys.ndim :])
        bits = _mix(keys.to(like.device)[..., None] + _positions(count, like.device)).view(like.shape)
        if like.dtype == torch.float64:
            return _shift(bits, 11).double().mul_(2.0**-53)
        return _shift(bits, 40).float().mul_(2.0**-24).to(like.dtype)

    def normal(self, like: Tensor, tag: int | Tensor) -> Tensor:
        """Standard normal draws, likewise, through the inverse distribution function."""
        half = 2.0**-54 if like.dtype == torch.float64 else 2.0**-25
        middle = (self.uniform(like, tag) + half) * 2 - 1
        # The largest uniform draw, one in 2²⁴ of them, rounds up to 1, whose inverse is infinite.
        return torch.erfinv(middle.clamp_max_(1 - 2 * half)) * 2**0.5


@lru_cache(maxsize=16)
def _positions(count: int, device: torch.device) -> Tensor:
    """What tells the numbers of one example apart, (count,) int64."""
    with torch.inference_mode(False):
        return torch.arange(1, count + 1, device=device) * _GOLDEN


def content_ids(x: Tensor) -> Tensor:
    """Identify inputs (B, ...) by their content in float32, (B,) int64: they keep their draws anywhere in a data set."""
    bits = x.detach().float().cpu().contiguous().view(torch.int32).flatten(1).long()
    return _mix(bits + _positions(bits.shape[1], bits.device)).sum(1)


def batch_rng(seed: int | ExampleRng, x: Tensor) -> ExampleRng:
    """Take a seed, or draws already keyed by example. A bare seed keys each example by its place in the batch ``x``."""
    return seed if isinstance(seed, ExampleRng) else ExampleRng(seed, torch.arange(len(x), device=x.device))


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shift right without the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    bits = _shift(bits, 30).bitwise_xor_(bits).mul_(_MIX1)
    bits = _shift(bits, 27).bitwise_xor_(bits).mul_(_MIX2)
    return _shift(bits, 31).bitwise_xor_(bits)


def _mix_number(number: int) -> int:
    """Scramble a Python integer likewise, without a device."""
    bits = number % 2**64
    bits = (bits ^ (bits >> 30)) * _MIX1 % 2**64
    bits = (bits ^ (bits >> 27)) * _MIX2 % 2**64
    return bits ^ (bits >> 31)


def _wrap(number: int) -> int:
    """Bring a Python integer into the signed 64-bit range, as the tensors wrap by themselves."""
    return (number + 2**63) % 2**64 - 2**63


def shuffled_order(seed: int, n: int) -> Tensor:
    """Return a random order of n examples, (n,) int64."""
    return ExampleRng(seed, torch.arange(n)).uniform(torch.empty(n, 1, dtype=torch.float64), 0).squeeze(1).argsort()
