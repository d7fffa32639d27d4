"""Time series: windows as examples, splits by date without leakage, and what of a window an adversary may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, in_one_line, unknown_name
from hauberk.data.dataset import TensorDataset


@dataclass(eq=False, repr=False)
class WindowDataset(TensorDataset):
    """Windows of series, ``x`` (N, T, F), the last step the latest.

    ``y``, ``classes``, ``name``, ``folder``, ``probabilities`` and ``labelled_by`` are as in :class:`TensorDataset`.

    Attributes:
        starts: date of the first step of each window, (N,).
        ends: date at which its label is known, (N,): of its last step, or of the step it foretells.
        in_time_order: whether they come in the order of ``ends``.
    """

    starts: Any = None
    ends: Any = None
    in_time_order: bool = False

    @checked
    def split(self, test_fraction: float = 0.2, *, gap: Any = 0) -> tuple["WindowDataset", "WindowDataset"]:
        """Split by date, see :func:`split_by_date`: no value of a test window is in any training window, nor its label.

        Args:
            test_fraction: fraction of the windows whose label is known last, those to test on; those of them that begin before
                all training windows have ended are left out.
            gap: time to leave out before them besides.

        Returns:
            Training and test windows, each in the order of ``ends``. Training windows can be split once more, for ``val_set=``
            of :func:`hauberk.train`.
        """
        train, test = split_by_date(self.ends, test_fraction, starts=self.starts, gap=gap)
        return self._part(train), self._part(test)

    def _part(self, index: Tensor) -> "WindowDataset":
        x, y = self.gather(index)
        dates = {"starts": self.starts[index.numpy()], "ends": self.ends[index.numpy()]}
        return WindowDataset(x, y, self.classes, self.name, in_time_order=True, **dates)


@checked
def make_windows(
    values: Any,
    labels: Any,
    dates: Any,
    *,
    length: int,
    horizon: int = 0,
    stride: int = 1,
    series: Any = None,
    with_time: bool = False,
    name: str = "windows",
) -> WindowDataset:
    """Cut series into windows: what is known at a date, and the label of that date or of a later one.

    Window i is the rows ``t - length + 1 ... t`` of one series, its label that of row ``t + horizon``.

    Args:
        values: of all series, one below the other, (M, F).
        labels: class at each row, (M,), whole numbers.
        dates: of each row, (M,): numbers, numpy or pandas dates, or texts such as "2026-11-30"; within a series they rise.
        length: T, steps in a window.
        horizon: how many steps ahead the label is.
        stride: steps from one window to the next.
        series: which series each row is of, (M,), such as the number of an account; None for a single one.
        with_time: put the date of each step last among the features, (N, T, F + 1), in days since the first date of all (in the
            units of the dates where these are numbers), for :class:`Before`. A network should leave it out.
        name: of the data set.

    Raises:
        UserError: if shapes do not fit, values or dates are missing, dates do not rise, or no series is long enough.
    """
    x, y, when = np.asarray(values, dtype=np.float64), np.asarray(labels), _as_numbers(dates, "dates")
    key = np.zeros(len(when), dtype=np.int64) if series is None else np.unique(np.asarray(series), return_inverse=True)[1]
    if x.ndim != 2 or not len(x) == len(y) == len(when) == len(key):
        raise UserError(
            f"values {x.shape} need a label, a date and a series for each row, got {len(y)}, {len(when)}, {len(key)}"
        )
    if not np.isfinite(x).all() or y.ndim != 1 or not np.equal(y, np.round(y)).all() or y.min() < 0:
        raise UserError("values must be finite, and labels whole numbers from 0")
    if min(length, stride) < 1 or horizon < 0:
        raise UserError(f"length and stride must be at least 1, horizon at least 0, got {length}, {stride} and {horizon}")
    if with_time:
        passed = when - when.min()
        days = passed / np.timedelta64(1, "D") if passed.dtype.kind == "m" else passed
        x = np.concatenate([x, np.asarray(days, dtype=np.float64)[:, None]], 1)
    places = []
    for one in np.unique(key):
        rows = np.flatnonzero(key == one)
        steps = np.diff(when[rows])
        if (steps <= np.zeros((), steps.dtype)).any():
            raise UserError("dates must rise within a series; sort the rows, and let each date come once")
        last = np.arange(length - 1, len(rows) - horizon, stride)
        places.append(rows[last[:, None] + np.arange(1 - length, horizon + 1)])
    index = np.concatenate(places)
    if not len(index):
        raise UserError(f"no series has {length + horizon} rows, which a window of {length} and its label need")
    inputs = torch.from_numpy(x[index[:, :length]]).float()
    target = torch.from_numpy(y[index[:, -1]].astype(np.int64))
    first, known = when[index[:, 0]], when[index[:, -1]]
    return WindowDataset(inputs, target, int(y.max()) + 1, name, starts=first, ends=known)


@checked
def window_constraints(
    length: int,
    features: Sequence[str],
    *,
    change: Mapping[str, str] | None = None,
    last: int | None = None,
) -> dict[str, Tensor]:
    """Say what of a window an adversary may change, for any threat model: ``hb.Linf(eps, **window_constraints(...))``.

    Args:
        length: T, steps in a window.
        features: names of the F features, in order.
        change: for features by name "any", "up" (values can only rise), "down" or "none"; "any" for those that are not named.
            None lets all change.
        last: only the last so many steps can change, as what is past is on record; None for all.

    Returns:
        "frozen", (T, F) bool, and "monotone", (T, F): arguments of :func:`hauberk.Linf` and its kind.

    Raises:
        UserError: for features that there are not, and other ways to change.
    """
    names, ways = list(features), {"any": 0, "up": 1, "down": -1, "none": 0}
    if length < 1 or not names or not 0 <= (length if last is None else last) <= length:
        raise UserError(f"last must be 0 to {length} steps of at least one feature, got {last} of {len(names)} features")
    frozen, monotone = torch.zeros(length, len(names), dtype=torch.bool), torch.zeros(length, len(names), dtype=torch.int64)
    if last is not None:
        frozen[: length - last] = True
    for name, way in (change or {}).items():
        if name not in names:
            raise unknown_name("feature", name, names)
        if way not in ways:
            raise UserError(f"{name}: change is one of {', '.join(ways)}, not {way!r}")
        monotone[:, names.index(name)] = ways[way]
        frozen[:, names.index(name)] |= way == "none"
    return {"frozen": frozen, "monotone": monotone}


@dataclass(frozen=True, eq=False)
class Before:
    """What an adversary cannot change who came at a date: all steps before it, and the time itself; as ``frozen=`` of a threat.

    Windows need the time as their last feature (``make_windows(..., with_time=True)``); each example has a mask of its own.

    Attributes:
        time: in the units of that feature.
        frozen: of each window besides, (T, F + 1) bool, as of :func:`window_constraints`; None for nothing.
    """

    time: float
    frozen: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Mark what is fixed in windows (B, T, F + 1), bool of that shape."""
        fixed = (x[..., -1:] < self.time).expand_as(x).clone()
        fixed[..., -1] = True
        return fixed if self.frozen is None else fixed | self.frozen.to(x.device)


@checked
def split_by_date(dates: Any, test_fraction: float = 0.2, *, starts: Any = None, gap: Any = 0) -> tuple[Tensor, Tensor]:
    """Split examples so that every training example is over before the first test example begins.

    Examples of one date are never parted. The boundary is the earliest date from which on at most ``test_fraction`` of the
    examples are, or the last date, if there are more of that one.

    Args:
        dates: date of each example, (N,): numbers, numpy or pandas dates, or texts of dates such as "2026-11-30". Of a window
            of a series the last date whose value it or its label holds.
        test_fraction: fraction of the examples to test on, at most.
        starts: first date that an example looks at, (N,), where that is an earlier one, as of a window. A test example that
            begins before the boundary is left out, so that no value is in training and test examples both.
        gap: how much time to leave out before the boundary, where labels become known late: a number in the units of the
            dates, of days where these are dates, or a numpy timedelta.

    Returns:
        Indices of the training and of the test examples, int64, each in the order of their dates.

    Raises:
        UserError: if dates cannot be read or are missing, or if there is nothing to train or test on.
    """
    when = _as_numbers(dates, "dates")
    first = when if starts is None else _as_numbers(starts, "starts")
    if first.shape != when.shape or not (first <= when).all():
        raise UserError("starts must be one date for each example, not after its own")
    if when.dtype.kind == "M" and not isinstance(gap, np.timedelta64):
        gap = np.timedelta64(round(float(gap) * 86_400), "s")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    distinct, counts = np.unique(when, return_counts=True)
    after = counts[::-1].cumsum()[::-1]  # examples from each date on
    few = np.flatnonzero(after <= test_fraction * len(when))
    boundary = distinct[few[0]] if len(few) else distinct[-1]
    order = np.argsort(when, kind="stable")
    train, test = order[when[order] < boundary - gap], order[first[order] >= boundary]
    if not len(train) or not len(test):
        raise UserError(
            f"a split by date leaves {len(train)} examples to train on and {len(test)} to test on; "
            "take another test_fraction, or a smaller gap"
        )
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64))


def _as_numbers(dates: Any, name: str) -> np.ndarray:
    """Return dates as numbers or numpy dates, (N,)."""
    values: np.ndarray = np.asarray(dates)
    values = values.astype(np.int64) if values.dtype.kind == "u" else values  # whose differences would wrap around
    if values.dtype.kind not in "ifM":
        values = _parsed(values.tolist(), name)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{name} must be one for each example, got an array of shape {values.shape}")
    missing = np.isnat(values) if values.dtype.kind == "M" else ~np.isfinite(values)
    if missing.any():
        raise UserError(f"{name}: {int(missing.sum())} are missing, the first in row {int(missing.argmax())}")
    return values


def _parsed(texts: Sequence[Any], name: str) -> np.ndarray:
    try:
        return np.array([np.datetime64(str(text)) for text in texts], dtype="datetime64[us]")
    except ValueError as error:
        raise UserError(f"{name} must be numbers or dates such as 2026-11-30: {in_one_line(error)}") from error
