"""Suites: which attacks an evaluation runs, on which examples, and what it reports of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hauberk.attacks.presets import AUTOATTACK, get_preset
from hauberk.core.errors import unknown_name

_PLUS = ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t")
_RAND = ("apgd-ce", "apgd-dlr")
_QUICK = ("fgsm", "pgd-20", "cw-30", "pgd-100")
_SINGLE = ("fgsm", "pgd-20", "cw-30", "pgd-100", "apgd-ce")

RAND_DRAWS = 20  # AutoAttack's eot_iter for randomised defences


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs.

    Attributes:
        stages: attacks in order, each with those whose victims it leaves alone.
        columns: what is reported, each the attacks whose victims it counts.
        draws: passes to average over for each look at the model.
        about: one line.
    """

    stages: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    draws: int
    about: str

    @property
    def sequential(self) -> bool:
        """Whether each attack runs only on what stands, so that columns count the victims of all so far."""
        names = list(self.stages)
        return len(names) > 1 and all(self.stages[name] == tuple(names[:k]) for k, name in enumerate(names))


def _apart(names: Sequence[str], about: str) -> Suite:
    """Every attack on every example that is classified right."""
    return Suite(dict.fromkeys(names, ()), {name: (name,) for name in names}, 1, about)


def _in_turn(names: Sequence[str], about: str, draws: int = 1) -> Suite:
    """Every attack on those that still stand; each column counts the victims of all so far."""
    before = {name: tuple(names[:k]) for k, name in enumerate(names)}
    return Suite(before, {name: (*earlier, name) for name, earlier in before.items()}, draws, about)


SUITES: dict[str, Suite] = {
    "quick": _apart(_QUICK, "FGSM, PGD-20, CW-30, PGD-100: a cheap upper bound"),
    "papers": Suite(
        {**dict.fromkeys(_SINGLE, ()), **{name: AUTOATTACK[:k] for k, name in enumerate(AUTOATTACK) if k}},
        {**{name: (name,) for name in _SINGLE}, "autoattack": AUTOATTACK},
        1,
        "the columns of the MAIL and MART tables: FGSM, PGD-20, CW-30, PGD-100, APGD-CE, AutoAttack",
    ),
    "standard": _in_turn(AUTOATTACK, "AutoAttack (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T, Square"),
    "plus": _in_turn(_PLUS, "AutoAttack plus: APGD-CE and -DLR and FAB with 5 restarts, Square, APGD-T, FAB-T"),
    "rand": _in_turn(_RAND, "AutoAttack for randomised defences: APGD-CE and -DLR, means over 20 passes", RAND_DRAWS),
}


def find_suite(suite: str, attacks: Sequence[str] = (), sequential: bool = False, also: Sequence[str] = ()) -> Suite:
    """Return what to run.

    Args:
        suite: name of a suite, used where ``attacks`` is empty.
        attacks: names of attacks instead; they run in order of cost.
        sequential: each of them only on the examples that still stand.
        also: attacks besides, on every example that is classified right.

    Raises:
        UserError: for unknown names.
    """
    if attacks:
        names = sorted(dict.fromkeys(attacks), key=lambda name: get_preset(name).cost)
        chosen = (_in_turn if sequential else _apart)(names, ", ".join(names))
    elif suite in SUITES:
        chosen = SUITES[suite]
    else:
        raise unknown_name("suite", suite, SUITES)
    more = {name: () for name in also if name not in chosen.stages}
    return (
        replace(chosen, stages={**chosen.stages, **more}, columns={**chosen.columns, **{name: (name,) for name in more}})
        if more
        else chosen
    )
