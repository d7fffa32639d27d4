"""Several threat models at once: the adversary may choose under which of them to attack each example."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

from torch import Tensor

from hauberk.core.arguments import check_argument
from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line
from hauberk.core.io import as_json
from hauberk.core.names import numbered
from hauberk.threat.model import ThreatModel, threat_from_dict

_UNION = "union"  # in place of a norm in cards


@dataclass(frozen=True, eq=False, repr=False)
class ThreatUnion(Sequence[ThreatModel]):
    """The union of several threat models, as a sequence of them: ``S(x) = S_1(x) ∪ S_2(x) ∪ ...``.

    What a list of threat models becomes in a method: ``hb.method("max-at", [hb.Linf("8/255"), hb.L1(12)])``.

    Attributes:
        threats: the threat models, at least two that differ.
    """

    threats: tuple[ThreatModel, ...]

    def __post_init__(self) -> None:
        cards = [check_argument("threat", threat, ThreatModel).to_dict() for threat in self.threats]
        if len(cards) < 2 or any(card in cards[:k] for k, card in enumerate(cards)):
            got = ", ".join(map(str, self.threats)) or "none"
            raise UserError(f"threat takes one threat model or several that differ, got {got}")

    def __len__(self) -> int:
        return len(self.threats)

    @overload
    def __getitem__(self, index: int) -> ThreatModel: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ThreatModel, ...]: ...
    def __getitem__(self, index: int | slice) -> ThreatModel | tuple[ThreatModel, ...]:
        return self.threats[index]

    def __iter__(self) -> Iterator[ThreatModel]:
        return iter(self.threats)

    def __repr__(self) -> str:
        return " and ".join(names_of(self))

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Say which points are inside one of the sets. (B, ...), (B, ...) -> (B,) bool."""
        inside = self.threats[0].contains(x_adv, x)
        for threat in self.threats[1:]:
            inside = inside | threat.contains(x_adv, x)
        return inside

    def scaled(self, factor: float) -> "ThreatUnion":
        """Return the same with each ε times ``factor``."""
        return ThreatUnion(tuple(threat.scaled(factor) for threat in self.threats))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a JSON card; :func:`read_threat` reads them back."""
        return {"norm": _UNION, "threats": [threat.to_dict() for threat in self.threats]}


Threat: TypeAlias = ThreatModel | ThreatUnion


def as_threat(threat: ThreatModel | Sequence[ThreatModel]) -> Threat:
    """Return a threat model as it is, also out of a list of one, and the union of several.

    Raises:
        UserError: if there is none, or the same twice.
    """
    if isinstance(threat, ThreatModel | ThreatUnion):
        return threat
    if not isinstance(threat, list | tuple):
        check_argument("threat", threat, ThreatModel)
    return ThreatUnion(tuple(threat)) if len(threat) != 1 else threats_of(threat[0])[0]


def threats_of(threat: Threat) -> tuple[ThreatModel, ...]:
    """Return the threat models of a union, or the one there is."""
    return threat.threats if isinstance(threat, ThreatUnion) else (check_argument("threat", threat, ThreatModel),)


def names_of(threat: Threat) -> list[str]:
    """Return what the threat models of a union are called: as they print, and a second one that prints alike "NAME #2"."""
    return numbered(map(str, threats_of(threat)))


def threat_digest(threat: Threat) -> str:
    """Return 16 hexadecimal digits that tell threat models apart, also those that print alike."""
    return hashlib.sha256(as_json(threat.to_dict()).encode()).hexdigest()[:16]


def only_threat(threat: Threat, what: str) -> ThreatModel:
    """Return the threat model for ``what`` knows of one at a time.

    Raises:
        UserError: if it is a union.
    """
    if isinstance(threat, ThreatUnion):
        raise UserError(f"{what} under one threat model at a time, and there are {threat}: choose one (--norm and --eps)")
    return threat


def read_threat(card: dict[str, Any]) -> Threat:
    """Read what :meth:`ThreatModel.to_dict` or :meth:`ThreatUnion.to_dict` has written.

    Raises:
        UserError: if a field is missing or makes no sense.
    """
    if card.get("norm") != _UNION:
        return threat_from_dict(card)
    try:
        return ThreatUnion(tuple(map(threat_from_dict, card["threats"])))
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"this card has no readable threat models ({in_one_line(error)})") from error
