"""Windows of the Square attack: their sizes, where they lie and the patterns in them, as tables for images of one shape."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod, sqrt

import torch
from torch import Tensor

from hauberk.core.device import send
from hauberk.core.random import ExampleRng
from hauberk.threat.norms import Norm

P_INIT = 0.8  # fraction of the pixels in the first windows
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries; the paper's schedule for 10,000
_TILES = 5
_CPU = torch.device("cpu")


def image_shape(x: Tensor) -> tuple[int, int, int]:
    """View an example as an image (C, H, W): a vector as one row, a matrix as one channel, leading dimensions as channels."""
    *lead, height, width = (1, *x.shape[1:]) if x.ndim == 2 else x.shape[1:]
    return prod(lead), height, width


@lru_cache(maxsize=8)
def pick_windows(shape: tuple[int, int, int], norm: Norm, device: torch.device = _CPU) -> "Windows":
    """Prepare the windows for images (C, H, W) on a device.

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
    return Windows(shape, norm, sizes, device)


@dataclass(frozen=True, eq=False)
class Cells:
    """The pixels of windows in the top left corner, by size; a smaller window repeats its first pixel up to N.

    Attributes:
        offsets: places in the flattened image, (K + 1, N) int64.
        valid: 1 for a pixel, 0 for a repetition, (K + 1, N).
        patterns: of L2 and L1, as they are and turned, (K + 1, 2, N).
    """

    offsets: Tensor
    valid: Tensor
    patterns: Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows for images of one shape; rows may be at different queries.

    Attributes:
        shape: (C, H, W).
        norm: of the threat model.
        host_sizes: heights and widths, one more than there are halvings (K).
        device: where the tables are.
    """

    shape: tuple[int, int, int]
    norm: Norm
    host_sizes: Sequence[tuple[int, int]]
    device: torch.device

    @cached_property
    def ahead(self) -> Tensor:
        """How far ahead of a row's next query it may look, (2,)."""
        return send(torch.arange(2), self.device)

    def size_at(self, query: Tensor) -> Tensor:
        """Which size belongs to queries (...), counted from 1; (...) int64."""
        return torch.bucketize(query, self._after)

    def largest_from(self, query: int) -> int:
        """Which size the largest window from a query on has."""
        return bisect_left(HALVED_AFTER, query - 1)

    def first(self, draws: Tensor, size: Tensor) -> Tensor:
        """First rows and columns of windows, from uniform draws (..., 2): (..., 2) int64.

        As in the official code never the last that fits, unless it is the only one; in a vector each, lest its last feature
        is never changed.
        """
        return (draws * self._room[size]).long()

    def bands(self, first: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of windows that begin at ``first`` (..., 2): 1 inside and 0 outside, (..., H) and (..., W)."""
        top, left = (self._sides - first).unbind(-1)
        rows, columns = self._bands
        return rows[size, top], columns[size, left]

    def places(self, first: Tensor) -> Tensor:
        """Where windows begin in the flattened image; (..., 2) -> (..., 1)."""
        return (first * self._strides).sum(-1, keepdim=True)

    def cells(self, largest: int) -> Cells:
        """The pixels of windows of one size and all smaller ones."""
        return _cells(self, largest)

    def tiles(self, rng: ExampleRng, tag: Tensor, like: Tensor) -> Tensor:
        """Tiles in the middle of the image: the pattern, turned or not, with a sign for each channel. (B, C, H, W)."""
        channels, height, width = self.shape
        high, wide, tall, broad = self._tile
        row, column = (
            ((torch.arange(side, device=like.device) - (side - size * count) // 2) // size).clamp(0, count - 1)
            for side, size, count in ((height, high, tall), (width, wide, broad))
        )
        heads = rng.uniform(like.new_empty(len(like), channels + 1, tall, broad), tag) < 0.5
        heads = heads[:, :, row[:, None], column]
        sign = torch.where(heads[:, 1:], 1.0, -1.0).to(like.dtype)
        return sign * torch.where(heads[:, :1], self._tilings[1], self._tilings[0]).to(like.dtype)

    @cached_property
    def _after(self) -> Tensor:
        """Last queries, counted from 1, before p is halved, (K,)."""
        return send(torch.tensor(HALVED_AFTER) + 1, self.device)

    @cached_property
    def _sides(self) -> Tensor:
        """Height and width."""
        return send(torch.tensor(self.shape[1:]), self.device)

    @cached_property
    def _strides(self) -> Tensor:
        """How far apart rows are in the flattened image, and columns."""
        return send(torch.tensor([self.shape[2], 1]), self.device)

    @cached_property
    def _room(self) -> Tensor:
        """How many first rows and columns there are for each size, (K + 1, 2)."""
        _, height, width = self.shape
        spare = int(min(height, width) == 1)
        room = [(max(height - high + spare, 1), max(width - wide + spare, 1)) for high, wide in self.host_sizes]
        return send(torch.tensor(room, dtype=torch.float32), self.device)

    @cached_property
    def _bands(self) -> tuple[Tensor, Tensor]:
        """For each size and each place of a window on a side, which pixels of the side are inside; a view of little memory."""
        bands = []
        for side, length in enumerate(self.shape[1:]):
            line = torch.zeros(len(self.host_sizes), 2 * length)
            for k, size in enumerate(self.host_sizes):
                line[k, length : length + size[side]] = 1
            bands.append(send(line, self.device).unfold(1, length, 1))
        return bands[0], bands[1]

    @cached_property
    def _tilings(self) -> Tensor:
        """The pattern of a tile in each place, as it is and turned, 0 in the margin that is left over, (2, H, W)."""
        _, height, width = self.shape
        high, wide, tall, broad = self._tile
        whole = torch.zeros(2, height, width)
        top, left = (height - tall * high) // 2, (width - broad * wide) // 2
        for turned in (0, 1):
            tiles = _pattern(high, wide, self.norm, bool(turned)).repeat(tall, broad)
            whole[turned, top : top + tall * high, left : left + broad * wide] = tiles
        return send(whole, self.device)

    @property
    def _tile(self) -> tuple[int, int, int, int]:
        """Height and width of the tiles, and how many there are below and beside each other: 5, where the image allows."""
        _, height, width = self.shape
        return max(height // _TILES, 1), max(width // _TILES, 1), min(height, _TILES), min(width, _TILES)


@lru_cache(maxsize=32)
def _cells(windows: Windows, largest: int) -> Cells:
    count = prod(windows.host_sizes[largest])
    offsets = torch.zeros(len(windows.host_sizes), count, dtype=torch.long)
    valid = torch.zeros(len(windows.host_sizes), count)
    patterns = torch.zeros(len(windows.host_sizes), 2, count)
    for k, (high, wide) in list(enumerate(windows.host_sizes))[largest:]:
        offsets[k, : high * wide] = (torch.arange(high)[:, None] * windows.shape[2] + torch.arange(wide)).flatten()
        valid[k, : high * wide] = 1
        for turned in (0, 1) if not windows.norm.is_box else ():
            pattern = _pattern(high, wide, windows.norm, bool(turned)).flatten()
            patterns[k, turned] = pattern[0]
            patterns[k, turned, : high * wide] = pattern
    return Cells(*(send(table, windows.device) for table in (offsets, valid, patterns)))


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
