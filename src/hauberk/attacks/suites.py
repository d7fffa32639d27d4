"""Suites: which attacks an evaluation runs, on which examples, and what it reports of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hauberk.attacks.presets import AUTOATTACK, PRESETS, AttackLike, AttackPreset, find_attack
from hauberk.core.errors import unknown_name

_PLUS = ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t")
_RAND = ("apgd-ce", "apgd-dlr")
_QUICK = ("fgsm", "pgd-20", "cw-30", "pgd-100")
_SINGLE = ("fgsm", "pgd-20", "cw-30", "pgd-100", "apgd-ce")

RAND_EOT_ITER = 20  # AutoAttack's eot_iter for randomised defences


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs.

    Attributes:
        stages: attacks in order, each with those whose victims it leaves alone.
        columns: what is reported, each the attacks whose victims it counts.
        eot_iter: passes to average over for each look at the model.
        description: one line.
        attacks: what runs, by name.
    """

    stages: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    eot_iter: int
    description: str
    attacks: dict[str, AttackPreset] = field(default_factory=dict)

    @property
    def sequential(self) -> bool:
        """Whether each attack runs only on what stands, so that columns count the victims of all so far."""
        names = list(self.stages)
        return len(names) > 1 and all(self.stages[name] == tuple(names[:k]) for k, name in enumerate(names))


def _apart(names: Sequence[str], description: str) -> Suite:
    """Every attack on every example that is classified right."""
    return Suite(dict.fromkeys(names, ()), {name: (name,) for name in names}, 1, description)


def _sequential(names: Sequence[str], description: str, eot_iter: int = 1) -> Suite:
    """Every attack on those that still stand; each column counts the victims of all so far."""
    before = {name: tuple(names[:k]) for k, name in enumerate(names)}
    return Suite(before, {name: (*earlier, name) for name, earlier in before.items()}, eot_iter, description)


SUITES: dict[str, Suite] = {
    "quick": _apart(_QUICK, "FGSM, PGD-20, CW-30, PGD-100: a cheap upper bound"),
    "papers": Suite(
        {**dict.fromkeys(_SINGLE, ()), **{name: AUTOATTACK[:k] for k, name in enumerate(AUTOATTACK) if k}},
        {**{name: (name,) for name in _SINGLE}, "autoattack": AUTOATTACK},
        1,
        "the columns of the MAIL and MART tables: FGSM, PGD-20, CW-30, PGD-100, APGD-CE, AutoAttack",
    ),
    "standard": _sequential(AUTOATTACK, "AutoAttack (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T, Square"),
    "plus": _sequential(_PLUS, "AutoAttack plus: APGD-CE and -DLR and FAB with 5 restarts, Square, APGD-T, FAB-T"),
    "rand": _sequential(_RAND, "AutoAttack for randomised defences: APGD-CE and -DLR, means over 20 passes", RAND_EOT_ITER),
}


def find_suite(suite: str, attacks: Sequence[AttackLike] = (), sequential: bool = False, also: Sequence[str] = ()) -> Suite:
    """Return what to run.

    Args:
        suite: name of a suite, used where ``attacks`` is empty.
        attacks: attacks instead, by name, as objects or as functions that return inputs (B, ...); they run in order of cost.
        sequential: each of them only on the examples that still stand.
        also: attacks besides, on every example that is classified right.

    Raises:
        UserError: for unknown names.
    """
    if attacks:
        found = dict(find_attack(attack) for attack in attacks)
        names = sorted(found, key=lambda name: found[name].attack.cost())
        chosen = (_sequential if sequential else _apart)(names, ", ".join(names))
    elif suite in SUITES:
        chosen, found = SUITES[suite], {}
    else:
        raise unknown_name("suite", suite, SUITES)
    more = {name: () for name in also if name not in chosen.stages}
    stages = {**chosen.stages, **more}
    columns = {**chosen.columns, **{name: (name,) for name in more}}
    return replace(chosen, stages=stages, columns=columns, attacks={name: found.get(name) or PRESETS[name] for name in stages})
