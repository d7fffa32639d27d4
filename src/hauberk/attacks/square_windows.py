"""The windows of the Square attack: their sizes as the search goes on, their places, and their patterns."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod, sqrt

import torch
from torch import Tensor

from hauberk.core.random import ExampleRng
from hauberk.threat.norms import Norm

P_INIT = 0.8  # fraction of the pixels in the first windows
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries; the paper's schedule for 10,000
_TILES = 5


def image_shape(x: Tensor) -> tuple[int, int, int]:
    """View an example as an image (C, H, W): a vector as one row, a matrix as one channel, leading dimensions as channels."""
    *lead, height, width = (1, *x.shape[1:]) if x.ndim == 2 else x.shape[1:]
    return prod(lead), height, width


@lru_cache(maxsize=8)
def pick_windows(shape: tuple[int, int, int], norm: Norm) -> "Windows":
    """Prepare the windows for images (C, H, W).

    Each window has a fraction p of the pixels, p = 0.8, halved after so many queries; a square, unless one side of the image is
    too short. In L2 and L1 its sides are odd and at least 3, where the image allows.
    """
    _, height, width = shape
    sizes = []
    for halvings in range(len(HALVED_AFTER) + 1):
        area = P_INIT / 2**halvings * height * width
        side = max(round(sqrt(area)), 1)
        short = min(height, width)
        long = max(round(area / short), 1) if side > short else side
        side = min(side, short)
        if not norm.is_box:
            side, long = _odd(side, short), _odd(long, max(height, width))
        sizes.append((side, long) if height <= width else (long, side))
    patterns = torch.zeros(len(sizes), 2, height, width)
    if not norm.is_box:
        for k, (high, wide) in enumerate(sizes):
            for turned in (0, 1):
                patterns[k, turned, :high, :wide] = _pattern(high, wide, norm, bool(turned))
    return Windows(shape, norm, torch.tensor(HALVED_AFTER), torch.tensor(sizes), patterns)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows for images of one shape; rows may be at different queries.

    Attributes:
        shape: (C, H, W).
        norm: of the threat model.
        after: (K,) queries after which p is halved.
        sizes: (K + 1, 2) heights and widths.
        patterns: (K + 1, 2, H, W), in the top left corner, as they are and turned.
    """

    shape: tuple[int, int, int]
    norm: Norm
    after: Tensor
    sizes: Tensor
    patterns: Tensor

    def to(self, device: torch.device) -> "Windows":
        """Move to a device."""
        if self.after.device == device:
            return self
        return replace(self, after=self.after.to(device), sizes=self.sizes.to(device), patterns=self.patterns.to(device))

    def size_at(self, query: Tensor) -> Tensor:
        """Which size belongs to the queries (B,), counted from 0; (B,) int64."""
        return (query[:, None] > self.after).sum(1)

    def largest_from(self, query: int) -> tuple[int, int]:
        """Height and width of the largest window from a query on."""
        high, wide = self.sizes[bisect_left(HALVED_AFTER, query)].tolist()
        return high, wide

    def cells(self, down: Tensor, right: Tensor, size: Tensor, largest: tuple[int, int]) -> Tensor:
        """Pixels of the windows of these sizes (B,), as places in the flattened image: (B, largest height · width).

        Where a window is smaller than the largest, its first pixel is repeated.
        """
        top, left = self._first(down, 1, size), self._first(right, 2, size)
        rows = torch.arange(largest[0], device=down.device)
        columns = torch.arange(largest[1], device=down.device)
        inside = (rows < self.sizes[size, 0, None])[:, :, None] & (columns < self.sizes[size, 1, None])[:, None]
        places = (top[:, None] + rows)[:, :, None] * self.shape[2] + (left[:, None] + columns)[:, None]
        first = (top * self.shape[2] + left)[:, None, None]
        return torch.where(inside, places, first).flatten(1)

    def mask(self, down: Tensor, right: Tensor, size: Tensor) -> Tensor:
        """Windows of these sizes (B,) at random places, from uniform draws (B,): (B, H, W) bool."""
        rows, columns = self._inside(down, 1, size), self._inside(right, 2, size)
        return ((rows >= 0) & (rows < self.sizes[size, 0, None]))[:, :, None] & (
            (columns >= 0) & (columns < self.sizes[size, 1, None])
        )[:, None, :]

    def pattern(self, down: Tensor, right: Tensor, size: Tensor, turned: Tensor) -> Tensor:
        """The patterns in the same windows, 0 outside: (B, H, W)."""
        rows, columns = self._inside(down, 1, size), self._inside(right, 2, size)
        values = self.patterns[
            size[:, None, None],
            turned.long()[:, None, None],
            rows.clamp_min(0)[:, :, None],
            columns.clamp_min(0)[:, None, :],
        ]
        return values.to(down.dtype) * self.mask(down, right, size)

    def tiles(self, rng: ExampleRng, tag: Tensor, like: Tensor) -> Tensor:
        """Tiles over the whole image, each the pattern with a random sign for each channel: (B, C, H, W)."""
        channels, height, width = self.shape
        high, wide = max(height // _TILES, 1), max(width // _TILES, 1)
        tall, broad = height // high, width // wide
        up = rng.uniform(like.new_empty(len(like), channels, tall, broad), tag) < 0.5
        sign = torch.where(up, 1.0, -1.0).repeat_interleave(high, 2).repeat_interleave(wide, 3)
        whole = torch.zeros(height, width)
        whole[: tall * high, : broad * wide] = _pattern(high, wide, self.norm, False).repeat(tall, broad)
        padded = torch.nn.functional.pad(sign, (0, width - broad * wide, 0, height - tall * high))
        return padded.to(like.dtype) * whole.to(like)

    def _inside(self, draw: Tensor, side: int, size: Tensor) -> Tensor:
        """Coordinates counted from the window's edge: (B, H) or (B, W)."""
        return torch.arange(self.shape[side], device=draw.device) - self._first(draw, side, size)[:, None]

    def _first(self, draw: Tensor, side: int, size: Tensor) -> Tensor:
        """First row or column of windows, from uniform draws: (B,)."""
        return (draw.double() * (self.shape[side] - self.sizes[size, side - 1] + 1)).long()


def _odd(side: int, most: int) -> int:
    side = max(side, 3)
    return min(side + (side % 2 == 0), most)


def _pattern(high: int, wide: int, norm: Norm, turned: bool) -> Tensor:
    """Two hills side by side, one up and one down, of unit length: (high, wide)."""
    if high == 1 and wide == 1:
        return torch.ones(1, 1)
    if (turned and wide > 1) or high == 1:
        return _pattern(wide, high, norm, False).T
    first = high // 2
    both = torch.cat([_hill(first, wide, norm), -_hill(high - first, wide, norm)])
    unit: Tensor = both / both.norm(p=norm.p)
    return unit


def _hill(high: int, wide: int, norm: Norm) -> Tensor:
    """``Σ_{m ≥ distance} (m + 1)^{-2}`` (L2; -4 in L1) by the distance (of the larger coordinate) from the middle."""
    top, left = high // 2, wide // 2
    reach = max(top, left) + 1
    terms = torch.arange(1, reach + 1, dtype=torch.float64) ** (-4.0 if norm.p == 1 else -2.0)
    tail = terms.flip(0).cumsum(0).flip(0)
    rows, columns = (torch.arange(high) - top).abs(), (torch.arange(wide) - left).abs()
    hill = tail[torch.maximum(rows[:, None], columns[None])].float()
    unit: Tensor = hill / hill.norm(p=norm.p)
    return unit
