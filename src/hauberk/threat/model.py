"""Threat models: what the adversary may do to an input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from hauberk.core.arguments import shown
from hauberk.core.device import constant, version
from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line, unknown_name
from hauberk.core.imports import code_digest
from hauberk.threat.feasible_set import FeasibleSet
from hauberk.threat.l0 import L0_NORM
from hauberk.threat.norms import NORMS, Norm
from hauberk.threat.numbers import Bound, Epsilon, as_tensor, from_plain, number_or_tensor, parse_eps, reads_as, to_plain
from hauberk.threat.one_hot import OneHotGroups

Features: TypeAlias = Sequence[int] | Tensor | None
Frozen: TypeAlias = Features | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class ThreatModel:
    """The set an adversarial example must stay in: a ball around the clean input, cut with a box.

    ``S(x) = {x' : ‖(x' - x) / ε‖_p ≤ 1,  low ≤ x' ≤ high,  x'_j = x_j for frozen j}``, and ``x'_j ≥ x_j`` or ``x'_j ≤ x_j`` for
    features that can only rise or fall. A feature with ε 0 cannot be changed. Make one with :func:`Linf`, :func:`L2`,
    :func:`L1` or :func:`L0`.

    Attributes:
        norm: the norm of the ball, one of ``hauberk.threat.NORMS``, or your own :class:`~hauberk.threat.Norm`.
        eps: ε in the units of the input: a float, or a tensor that broadcasts to one example.
        low: lower bound of every valid input: a float, or a tensor that broadcasts to one example.
        high: upper bound, likewise.
        frozen: boolean mask that broadcasts to one example, or indices into the flattened example; or a function of clean
            inputs (B, ...) that returns a mask of that shape, where it is another one for each; or None.
        eps_text: ε as it was given, for printing ("8/255").
        monotone: +1 for features that can only rise, -1 for those that can only fall, 0 for all others; broadcasts to one
            example; or None.
        one_hot: number, from 1, of the one-hot group that each feature belongs to, 0 for none; broadcasts to one example; or
            None. Of a group exactly one feature is 1, as of the values of a category. The box is not cut any further; attacks
            in L∞ go from one value of a group to another, where they would otherwise raise several at once.
    """

    norm: Norm
    eps: float | Tensor
    low: float | Tensor
    high: float | Tensor
    frozen: Tensor | Callable[[Tensor], Tensor] | None
    eps_text: str
    monotone: Tensor | None = None
    one_hot: Tensor | None = None

    def around(self, x: Tensor) -> FeasibleSet:
        """Lay the set around clean inputs.

        Args:
            x: clean inputs, (B, ...), any shape and floating dtype.

        Returns:
            The sets ``S(x_i)`` of the whole batch, on the device and in the dtype of ``x``.

        Raises:
            UserError: if what is given per feature does not fit the shape of one example.
        """
        low, high = self._fit(self.low, x, "low"), self._fit(self.high, x, "high")
        if self.monotone is not None:
            way = cast(Tensor, self._fit(self.monotone, x, "monotone"))
            low, high = (constant(bound, x.dtype, x.device) for bound in (low, high))
            low, high = torch.where(way > 0, x, low), torch.where(way < 0, x, high)
        eps = self._fit(self.eps, x, "eps")
        radius = self._radius(x, eps)
        if self.norm.feasible_set is not None:
            made: FeasibleSet = self.norm.feasible_set(x, self.norm, radius, low, high, eps)
            return made
        return FeasibleSet(x, self.norm, radius, low, high, eps, self._groups(x))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring points back to the nearest ones inside ``S(x)``. Shapes: (B, ...), (B, ...) -> (B, ...)."""
        return self.around(x).project(x_adv)

    def constraint_violation(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """By how much each point leaves ``S(x)``, see :class:`FeasibleSet`. (B, ...), (B, ...) -> (B,)."""
        return self.around(x).constraint_violation(x_adv)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Say which points are inside, up to the rounding of their dtype. (B, ...), (B, ...) -> (B,) bool."""
        return self.around(x).contains(x_adv)

    def scaled(self, factor: float) -> "ThreatModel":
        """Return the same threat model with ε times ``factor``, for ε warm-up and curves of accuracy against ε."""
        return replace(self, eps=self.eps * factor, eps_text=f"{factor:.4g}*({self.eps_text})")

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a JSON card; :func:`threat_from_dict` reads them back."""
        return {
            "norm": self.norm.name,
            "eps": self.eps_text if reads_as(self.eps_text, self.eps) else to_plain(self.eps),  # all digits, where text rounds
            "low": to_plain(self.low),
            "high": to_plain(self.high),
            "frozen": f"function {code_digest(self.frozen)}" if callable(self.frozen) else to_plain(self.frozen),
            "monotone": to_plain(self.monotone),
            "one_hot": to_plain(self.one_hot),
        }

    def __repr__(self) -> str:
        notes = [self.eps_text]
        if isinstance(self.low, Tensor) or isinstance(self.high, Tensor):
            notes.append("box per feature")
        elif (self.low, self.high) != (0.0, 1.0):
            notes.append(f"box [{self.low:g}, {self.high:g}]")
        if callable(self.frozen):
            notes.append(f"frozen by {getattr(self.frozen, '__qualname__', type(self.frozen).__qualname__)}")
        elif self.frozen is not None:
            count = int(self.frozen.sum()) if self.frozen.dtype == torch.bool else self.frozen.numel()
            notes.append(f"{count} frozen")
        if self.monotone is not None:
            notes.append(f"{int((self.monotone != 0).sum())} one-way")
        if self.one_hot is not None:
            notes.append(f"{len(self.one_hot[self.one_hot > 0].unique())} one-hot")
        return f"{self.norm}({', '.join(notes)})"

    def _radius(self, x: Tensor, eps: float | Tensor) -> float | Tensor:
        """ε, and 0 where a feature is frozen."""
        frozen = self.frozen
        if frozen is None:
            return eps
        if callable(frozen):
            return torch.where(_frozen_by(frozen, x), 0.0, torch.as_tensor(eps, dtype=x.dtype, device=x.device))
        if frozen.dtype != torch.bool:
            frozen = _mask_of(frozen, version(frozen), x.shape[1:])
        free = ~cast(Tensor, self._fit(frozen, x, "frozen"))
        return free.to(x.dtype) * eps

    def _groups(self, x: Tensor) -> OneHotGroups | None:
        """The one-hot groups of examples like ``x``."""
        if self.one_hot is None:
            return None
        check_fits(self.one_hot, x.shape[1:], "one_hot")
        return _groups_of(self.one_hot, version(self.one_hot), x.shape[1:], x.device)

    def _fit(self, value: float | Tensor, x: Tensor, name: str) -> float | Tensor:
        """Bring a setting to the device and dtype of the inputs, if it fits the shape of one example."""
        if not isinstance(value, Tensor):
            return value
        check_fits(value, x.shape[1:], name)
        return constant(value, value.dtype if value.dtype == torch.bool else x.dtype, x.device)


def _frozen_by(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Ask a function of the user's which features of inputs (B, ...) are frozen, (B, ...) bool."""
    with torch.no_grad():
        mask = function(x.detach())
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape:
        raise UserError(
            f"frozen must return a boolean mask of shape {tuple(x.shape)}, as its inputs, it returned {shown(mask)}"
        )
    return mask


@lru_cache(maxsize=16)
def _mask_of(indices: Tensor, version_of_it: int, shape: torch.Size) -> Tensor:
    """Mark the features at some indices into the flattened example: bool, of the shape of one."""
    if int(indices.max()) >= shape.numel() or int(indices.min()) < 0:
        raise UserError(f"frozen features go up to index {int(indices.max())}, but an example has {shape.numel()}")
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    mask[indices.cpu()] = True
    return mask.view(shape)


@lru_cache(maxsize=16)
def _groups_of(one_hot: Tensor, version_of_it: int, shape: torch.Size, device: torch.device) -> OneHotGroups:
    """Lay the numbers of one-hot groups out for an example of a shape."""
    return OneHotGroups(one_hot.expand(shape).flatten().to(device), int(one_hot.max()))


def check_fits(value: Tensor, shape: torch.Size, name: str) -> None:
    """Refuse, by a UserError that names the setting, values per feature that do not broadcast to the shape of one example."""
    try:
        torch.broadcast_to(value, shape)
    except RuntimeError as error:
        what = f"{name} has shape {tuple(value.shape)}"
        raise UserError(f"{what}, which does not fit one example of {tuple(shape)}") from error


def Linf(
    eps: Epsilon,
    low: Bound = 0.0,
    high: Bound = 1.0,
    frozen: Frozen = None,
    monotone: Features = None,
    one_hot: Features = None,
) -> ThreatModel:
    """L∞ threat model: every feature may move by at most ε.

    Args:
        eps: ε in the units of the input: a float, a fraction string such as ``"8/255"``, or one value per feature, in a shape
            that broadcasts to one example (without the batch).
        low: lower bound of valid inputs, a number or one per feature; ``-inf`` for none.
        high: upper bound, likewise.
        frozen: features that nobody can change: a boolean mask (of such a shape), indices into the flattened example, or a
            function of clean inputs (B, ...) that returns a mask (B, ...), where it depends on the example.
        monotone: for each feature +1 if it can only rise, -1 if it can only fall, 0 if it can do both.
        one_hot: for each feature the number, from 1, of the group it belongs to of which exactly one is 1; 0 for none.

    Returns:
        The threat model; it serves inputs of any shape that ε, bounds and masks fit.

    Raises:
        UserError: if ε is negative or not finite, wider than the box, or the bounds are crossed.

    Example:
        >>> Linf("8/255")
        Linf(8/255)
    """
    return make_threat("Linf", eps, low, high, frozen, monotone, one_hot)


def L2(
    eps: Epsilon,
    low: Bound = 0.0,
    high: Bound = 1.0,
    frozen: Frozen = None,
    monotone: Features = None,
    one_hot: Features = None,
) -> ThreatModel:
    """L2 threat model: the Euclidean length of the change is at most ε. Arguments as in :func:`Linf`."""
    return make_threat("L2", eps, low, high, frozen, monotone, one_hot)


def L1(
    eps: Epsilon,
    low: Bound = 0.0,
    high: Bound = 1.0,
    frozen: Frozen = None,
    monotone: Features = None,
    one_hot: Features = None,
) -> ThreatModel:
    """L1 threat model: the absolute changes add up to at most ε. Arguments as in :func:`Linf`."""
    return make_threat("L1", eps, low, high, frozen, monotone, one_hot)


def L0(k: int | str, low: Bound = 0.0, high: Bound = 1.0, frozen: Frozen = None, monotone: Features = None) -> ThreatModel:
    """L0 threat model: at most k features differ, each by as much as the box allows.

    Features are counted, as sigma-zero and FMN do: a pixel of three channels is three of them.

    Args:
        k: how many, a whole number or its text.
        low: as in :func:`Linf`; so are ``high``, ``frozen`` and ``monotone``.
        high: upper bound of valid inputs.
        frozen: features that nobody can change.
        monotone: features that can only rise or fall.

    Raises:
        UserError: if k is no whole number of at least 0, and as :func:`Linf`.

    Example:
        >>> L0(8)
        L0(8)
    """
    return make_threat(L0_NORM, k, low, high, frozen, monotone)


def make_threat(
    norm: str | Norm,
    eps: Epsilon,
    low: Bound = 0.0,
    high: Bound = 1.0,
    frozen: Frozen = None,
    monotone: Features = None,
    one_hot: Features = None,
) -> ThreatModel:
    """Make a threat model from a norm or its name. Other arguments as in :func:`Linf`.

    Raises:
        UserError: as :func:`Linf`, if the norm is unknown, and for one-hot groups in L0, which counts features and not groups.
    """
    if not isinstance(norm, Norm):
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        norm = NORMS[norm]
    radius, text = parse_eps(eps)
    if norm is L0_NORM and not (isinstance(radius, float) and radius.is_integer()):
        raise UserError(f"in L0 eps is how many features may change, one whole number, got {text}")
    lower, upper = number_or_tensor(low, "low"), number_or_tensor(high, "high")
    try:
        width = torch.as_tensor(upper) - torch.as_tensor(lower)
        wide = norm.is_box and bool((torch.as_tensor(radius) > width).any())
    except RuntimeError as error:
        raise UserError(f"eps, low and high are for different numbers of features: {in_one_line(error)}") from error
    if not bool((width > 0).all()):  # also catches NaN
        raise UserError(f"the box is empty: low = {shown(low)} is not below high = {shown(high)}")
    if wide:
        hint = f"; did you mean '{text}/255'?" if isinstance(radius, float) and 1 < radius < 255 else ""
        raise UserError(f"eps = {text} is wider than the box [{shown(low)}, {shown(high)}]{hint}")
    mask: Any = frozen
    if frozen is not None and not callable(frozen):
        mask = as_tensor(frozen, "frozen", "no mask or list of numbers")
    ways = None if monotone is None else as_tensor(monotone, "monotone", "no mask or list of numbers")
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        if mask.is_floating_point() or mask.numel() == 0:
            raise UserError("frozen takes a boolean mask or a non-empty list of indices")
        mask = mask.long()
    if ways is not None and (
        ways.dtype == torch.bool or not bool(torch.isin(ways.float(), torch.tensor([-1.0, 0.0, 1.0])).all())
    ):
        raise UserError("monotone takes +1, -1 or 0 for each feature")
    groups = None if one_hot is None else _read_groups(one_hot)
    if groups is not None and norm is L0_NORM:
        raise UserError("L0 counts features, not one-hot groups: a category that changes is two of them; leave one_hot out")
    return ThreatModel(norm, radius, lower, upper, mask, text, ways, groups)


def _read_groups(one_hot: Any) -> Tensor:
    groups = as_tensor(one_hot, "one_hot", "no list of group numbers")
    whole = not groups.is_floating_point() and groups.dtype != torch.bool and groups.numel() > 0
    if not whole or not 0 <= int(groups.min()) <= int(groups.max()) <= groups.numel():
        raise UserError("one_hot takes for each feature the number of its group, 1 to at most the number of features, or 0")
    return groups.long()


def threat_from_dict(card: dict[str, Any]) -> ThreatModel:
    """Read a threat model from a JSON card written by :meth:`ThreatModel.to_dict`.

    Raises:
        UserError: if a field is missing or makes no sense.
    """
    try:
        if isinstance(card["frozen"], str):
            raise UserError("this card's threat model freezes features by a function of a program; give threat= again")
        low, high = (from_plain(card[side]) for side in ("low", "high"))
        ways, groups = card.get("monotone"), card.get("one_hot")
        return make_threat(card["norm"], from_plain(card["eps"]), low, high, card["frozen"], ways, groups)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"this card has no readable threat model ({in_one_line(error)})") from error
