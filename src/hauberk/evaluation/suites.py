"""Suites: which attacks an evaluation runs, cheapest first."""

from collections.abc import Sequence

from hauberk.attacks.presets import get_preset
from hauberk.errors import UserError, unknown_name

SUITES: dict[str, tuple[str, ...]] = {"quick": ("fgsm", "pgd-20", "cw-30", "pgd-100")}

# Names that stand for whole protocols of the literature; they are refused, never shortened, until they are all there.
_NOT_YET = {
    "papers": "APGD and AutoAttack",
    "standard": "AutoAttack",
    "rand": "AutoAttack's version for randomised defences",
}


def suite_attacks(suite: str, attacks: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the attacks to run, in order of cost.

    Args:
        suite: name of a suite, used where ``attacks`` is empty.
        attacks: names of attacks instead.

    Raises:
        UserError: for unknown names, and for suites that this version cannot run in full.
    """
    if not attacks:
        if suite in _NOT_YET:
            raise UserError(f"suite {suite!r} needs {_NOT_YET[suite]}, which this version does not have yet; use 'quick'")
        if suite not in SUITES:
            raise unknown_name("suite", suite, [*SUITES, *_NOT_YET])
        return SUITES[suite]
    names = dict.fromkeys(attacks)  # each once
    return tuple(sorted(names, key=lambda name: get_preset(name).cost))
