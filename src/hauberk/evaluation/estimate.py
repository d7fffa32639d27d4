"""Two-phase estimate: how many survivors of the first attacks the rest of a protocol would break, from a random sample of them.

Survivors are sorted by the margin that the first attacks have left, because those with the least are the ones that more attacks
break: the tenth with the least is one stratum, the rest another, and each is sampled at random without replacement. A first
sample, the pilot, only plans: its examples count as what they are, and from what it showed follows how large the sample of
the others must be, and how it is divided (Neyman 1934). The interval comes from that second sample alone, whose size was fixed
before it was looked at, and is exact: by the hypergeometric distributions of the strata, as Clopper and Pearson's (1934) is for
one. Where it is still too wide, the sample grows; each look then has its own share of the 5 %, so that all intervals that could
be shown hold together with 95 %.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LOWEST = 10  # one part in so many of the survivors, those with the least margin, is a stratum of its own
PILOT = (1 / 40, 50, 200)  # of the survivors, at least, at most
PILOT_FAVOUR = 3.0  # how much likelier the pilot takes one of the lowest
SAFETY = 0.9  # of the half-width that is asked for, the second sample is planned to reach
GROWTH = 1.3  # of the sample from one look to the next
FIRST_SHARE, NEXT_SHARE = 0.03, 0.01  # of the 5 %: the first look, the second; each later one has half of the one before
_MANY = 32  # divisions of a total between the strata


@dataclass(frozen=True)
class Estimate:
    """How many of the survivors the rest of the protocol breaks.

    Attributes:
        survivors: of the first attacks.
        sampled: how many of them the whole protocol was run on.
        broken: how many of all survivors it would break, as estimated.
        low: lower end of the 95 % interval of that, a whole number.
        high: upper end.
        looks: how many times the sample was looked at.
        weights: for how many survivors each stands, (M,): 0 for those that were not sampled.
    """

    survivors: int
    sampled: int
    broken: float
    low: int
    high: int
    looks: int
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Sampled:
    """What a two-phase evaluation of n examples has found.

    Attributes:
        estimate: of how many of those that stand after the first attacks the others break.
        weights: for how many examples each stands, (n,): 1 for those whose fate the first attacks decided, and 0 for those that
            stand after them and were not sampled.
        proved: how many are proved robust, and so are no survivors to sample from: nothing would break them.
    """

    estimate: Estimate
    weights: np.ndarray
    proved: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of what the whole protocol would leave of these n examples, as a fraction of them."""
        n, standing = len(self.weights), self.proved + self.estimate.survivors
        return (standing - self.estimate.high) / n, (standing - self.estimate.low) / n

    def __str__(self) -> str:
        low, high = self.interval
        left = self.proved + self.estimate.survivors - self.estimate.broken
        found, besides = f"{100 * left / len(self.weights):.1f} %", f", {self.proved:,} others proved" if self.proved else ""
        if self.estimate.sampled == self.estimate.survivors:
            return f"AutoAttack {found}, all {self.estimate.survivors:,} survivors attacked{besides}"
        some = f"estimated from {self.estimate.sampled:,} of {self.estimate.survivors:,} survivors{besides}"
        return f"AutoAttack {found} [{100 * low:.1f}, {100 * high:.1f}] {some}"


def next_sample(margin: np.ndarray, broken: np.ndarray, wanted: float) -> tuple[np.ndarray, Estimate | None]:
    """Say whom to attack next, or, where that is known, what follows.

    Args:
        margin: of each survivor, (M,), in a random order, as the first attacks left it; NaN, which is no margin, counts as the
            least. Those that come first are sampled first.
        broken: (M,) float64, 1 where the rest of the protocol broke one, 0 where it did not, NaN where it has not been tried.
        wanted: half the width that the interval may have, in survivors; 0 for all of them to be attacked.

    Returns:
        Places of the survivors to attack, (m,) int64, and None; or none, and the estimate. Called again with what was found, it
        comes to the same samples, and goes on from there.
    """
    total = len(margin)
    lowest = np.argsort(np.nan_to_num(margin, nan=-np.inf), kind="stable")[: total // LOWEST]
    low = np.isin(np.arange(total), lowest)
    strata = [part for part in (np.flatnonzero(low), np.flatnonzero(~low)) if len(part)]
    if wanted <= 0 or not total:
        return _whole(broken, strata)
    pilot = _allocate(_sizes(strata), np.array([PILOT_FAVOUR, 1.0])[-len(strata) :], _pilot_size(total))
    pilots = [part[:size] for part, size in zip(strata, pilot, strict=True)]
    if len(missing := _unknown(broken, pilots)):
        return missing, None
    if sum(pilot) == total:
        return _whole(broken, strata)
    others = [part[size:] for part, size in zip(strata, pilot, strict=True)]
    seen = sum(float(broken[part].sum()) for part in pilots)
    sizes_there = _sizes(others)
    size, favour = _plan(_fractions(broken, pilots), sizes_there, SAFETY * wanted)
    look = 0
    while True:
        look += 1
        sizes = _allocate(sizes_there, favour, size)
        sample = [part[:count] for part, count in zip(others, sizes, strict=True)]
        if len(missing := _unknown(broken, sample)):
            return missing, None
        found = [int(broken[part].sum()) for part in sample]
        counts = tuple(zip(found, sizes, map(len, others), strict=True))
        value, low_end, high_end = combined_limits(counts, _share(look))
        if (high_end - low_end) / 2 <= wanted:
            break
        size = math.ceil(GROWTH * size)
    weights = np.zeros(total)
    for first, part, all_of_them in zip(pilots, sample, others, strict=True):
        weights[first] = 1.0
        weights[part] = len(all_of_them) / max(len(part), 1)
    sampled = sum(map(len, pilots)) + sum(map(len, sample))
    return missing, Estimate(total, sampled, seen + value, int(seen) + low_end, int(seen) + high_end, look, weights)


def expected_sample(total: int, wanted: float) -> int:
    """How many of so many survivors a sample is likely to need, where the rest of the protocol breaks one in a hundred."""
    if wanted <= 0 or total <= PILOT[1]:
        return total
    pilot = _pilot_size(total)
    fractions = np.array([0.05, 0.005])
    others = np.array([total // LOWEST, total - total // LOWEST])
    return min(total, pilot + _plan(fractions, others, SAFETY * wanted)[0])


def _pilot_size(total: int) -> int:
    share, least, most = PILOT
    return int(np.clip(total * share, least, most))


def _whole(broken: np.ndarray, strata: Sequence[np.ndarray]) -> tuple[np.ndarray, Estimate | None]:
    """All of them: nothing is estimated."""
    missing, total = _unknown(broken, strata), len(broken)
    if len(missing):
        return missing, None
    count = int(broken.sum())
    return missing, Estimate(total, total, count, count, count, 1, np.ones(total))


def _sizes(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(part) for part in parts])


def _fractions(broken: np.ndarray, pilots: Sequence[np.ndarray]) -> np.ndarray:
    """Which fraction of each stratum is broken, (S,), by the pilots: drawn a little towards that of all, as they are small."""
    mean = np.mean(broken[np.concatenate(pilots)])
    return np.array([(broken[part].sum() + 0.5 * mean) / (len(part) + 0.5) for part in pilots])


def _unknown(broken: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    some = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    return np.asarray(some[np.isnan(broken[some])])


def _share(look: int) -> float:
    """The chance of error that a look, counted from 1, may have; over all looks 5 %."""
    return FIRST_SHARE if look == 1 else NEXT_SHARE / 2 ** (look - 2)


def _allocate(there: np.ndarray, favour: np.ndarray, size: int) -> list[int]:
    """Divide a sample among strata in proportion to ``favour`` (S,) times their sizes (S,), of none more than there are."""
    wanted, left = np.zeros(len(there)), float(min(size, there.sum()))
    open_ones = there > 0
    while open_ones.any() and left > 0:
        share = left * favour * there * open_ones / (favour * there)[open_ones].sum()
        full = open_ones & (share >= there)
        if not full.any():
            wanted[open_ones] = share[open_ones]
            break
        wanted[full] = there[full]
        left -= there[full].sum()
        open_ones &= ~full
    return [int(count) for count in np.minimum(np.ceil(wanted - 1e-9), there)]


def _plan(fractions: np.ndarray, sizes: np.ndarray, wanted: float) -> tuple[int, np.ndarray]:
    """How large a sample is likely to give so narrow an interval, and how it should favour the strata, (S,).

    fractions: of each stratum, as far as known, that are broken, (S,); sizes: of the strata, (S,).
    """
    favour = np.sqrt(np.maximum(fractions * (1 - fractions), 1e-4))

    def wide(size: int) -> bool:
        counts = [
            (round(f * m), m, n) for f, m, n in zip(fractions, _allocate(sizes, favour, size), sizes.tolist(), strict=True)
        ]
        return _half_width(counts, FIRST_SHARE) > wanted

    return _last(wide, 0, int(sizes.sum()) - 1) + 1, favour


def _half_width(counts: Sequence[tuple[int, int, int]], error: float) -> float:
    """About half the width of the interval: ``sqrt(Σ d_h²)`` with those of each stratum (Zou and Donner 2008)."""
    ends = (exact_limits(*count, error) for count in counts)
    return math.sqrt(sum((high - low) ** 2 for low, high in ends)) / 2


def combined_limits(counts: Sequence[tuple[int, int, int]], error: float) -> tuple[float, int, int]:
    """Estimate how many of one stratum, or of two together, are broken, with exact limits.

    The estimate is ``T = Σ N_h k_h / m_h``. The limits are the smallest and the largest total under which so large, or so
    small, a T had a chance above ``error / 2``, however the total is divided between the strata; divisions that the strata
    themselves refute are left out, for a tenth of the error (Berger and Boos 1994).

    Args:
        counts: for each stratum, how many were broken, out of how many sampled, of how many.
        error: the chance that the interval misses, at most.

    Returns:
        The estimate, and the limits, which are whole numbers.
    """
    value = sum(n * k / m for k, m, n in counts if m)
    if len(counts) == 1:
        return (value, *exact_limits(*counts[0], error))
    refuted, tail = 0.1 * error / 2, 0.9 * error / 2
    ranges = [exact_limits(k, m, n, refuted / 2) for k, m, n in counts]
    (first, second), ((low_1, high_1), (low_2, high_2)) = counts, ranges

    def chance(total: int, of_so_many: bool) -> float:
        """The largest chance of a T of at least (otherwise at most) what was seen, over the divisions of a total.

        It changes little from one division to the next, so of many divisions some are looked at, and all near the best of them.
        """
        divisions = np.arange(max(low_1, total - high_2), min(high_1, total - low_2) + 1)
        stride = -(-len(divisions) // _MANY)
        some = np.union1d(divisions[::stride], divisions[-1:])
        chances = chances_of(total, some, of_so_many)
        if stride > 1:
            near = divisions[np.abs(divisions - some[chances.argmax()]) < stride]
            chances = chances_of(total, near, of_so_many)
        return float(chances.max())

    def chances_of(total: int, divided: np.ndarray, of_so_many: bool) -> np.ndarray:
        """Those chances, of each number (B,) that the first stratum may have of the total, (B,)."""
        of_first, of_second = _chances(divided, *first[1:]), _chances(total - divided, *second[1:])
        reach = np.arange(first[1] + 1) * _weight(first)
        if of_so_many:  # the chance that the second stratum makes up for what the first has not
            least = np.ceil((value - reach) / _weight(second) - 1e-9).clip(0, second[1] + 1).astype(int)
            tails = np.concatenate([np.ones((len(divided), 1)), 1 - of_second.cumsum(1)], 1)
        else:
            least = np.floor((value - reach) / _weight(second) + 1e-9).clip(-1, second[1]).astype(int) + 1
            tails = np.concatenate([np.zeros((len(divided), 1)), of_second.cumsum(1)], 1)
        return np.asarray((of_first * tails[:, least]).sum(1))

    middle = min(max(round(value), low_1 + low_2), high_1 + high_2)
    high = _last(lambda total: chance(total, False) > tail, middle, high_1 + high_2)
    low = -_last(lambda minus: chance(-minus, True) > tail, -middle, -(low_1 + low_2))
    return value, low, high


def _weight(count: tuple[int, int, int]) -> float:
    """For how many of its stratum one that was sampled stands."""
    _, drawn, size = count
    return size / max(drawn, 1)


def _chances(broken: np.ndarray, drawn: int, size: int) -> np.ndarray:
    """The chance of each number of broken ones, 0 to ``drawn``, where so many (B,) of ``size`` are: (B, drawn + 1)."""
    log_factorial = _log_factorials(size)

    def choices(of: np.ndarray, some: np.ndarray) -> np.ndarray:
        inside = (some >= 0) & (some <= of)
        part = np.where(inside, some, 0)
        return np.where(inside, log_factorial[of] - log_factorial[part] - log_factorial[of - part], -np.inf)

    k, whole = np.arange(drawn + 1), broken[:, None]
    chances = choices(whole, k) + choices(size - whole, drawn - k) - choices(np.array(size), np.array(drawn))
    return np.asarray(np.exp(chances))


@lru_cache(maxsize=8)
def _log_factorials(size: int) -> np.ndarray:
    """The logarithms of 0! to ``size``!, (size + 1,)."""
    return np.concatenate([[0.0], np.log(np.arange(1, size + 1)).cumsum()])


@lru_cache(maxsize=10_000)
def exact_limits(k: int, m: int, n: int, error: float) -> tuple[int, int]:
    """Exact limits of how many of n are broken, where k of m that were drawn without replacement are.

    They are the smallest and the largest number under which so many, or so few, had a chance above ``error / 2``.
    """
    from scipy.stats import hypergeom  # half a second to import

    if m == n:
        return k, k
    high = _last(lambda total: bool(hypergeom.cdf(k, n, total, m) > error / 2), k, n - (m - k))
    low = -_last(lambda minus: bool(hypergeom.sf(k - 1, n, -minus, m) > error / 2), -(n - (m - k)), -k)
    return low, high


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last whole number from ``low``, which fits, to ``high`` that does, where all before it do."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
