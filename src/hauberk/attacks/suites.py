"""Suites of attacks, which an evaluation runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from hauberk.attacks.model.check_model import has_gradient
from hauberk.attacks.presets import AUTOATTACK, PRESETS, AttackLike, AttackPreset, find_attack, find_attacks
from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, unknown_name
from hauberk.threat import ThreatModel

_JUMPS = "square-1000"  # of one-hot groups
_QUICK_SCORES = ("random-100", "square-1000")  # where there are no gradients
_FIRST_RUNS = {"apgd-ce": 1, "apgd-t": 3}  # of these, which the suite "fast" gives every example
_FIRST_RUNS_BESIDES = {"fab-t": 1}  # where the ball is no box, as FAB-T is the stronger there when gradients are masked
_QUICK = ("fgsm", "pgd-20", "cw-30", "pgd-100")
_PAPERS = ("fgsm", "pgd-20-last", "cw-20-last", "pgd-100-last", "apgd-ce")


@dataclass(frozen=True)
class Suite:
    """What an evaluation runs.

    Attributes:
        stages: attacks in order, each with those whose victims it leaves alone.
        columns: what is reported, each the attacks whose victims it counts.
        eot_iter: passes to average over for each look at the model.
        description: one line.
        attacks: what runs, by name.
        sampled: those of the stages that run on a random sample of what stands after the others.
    """

    stages: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    eot_iter: int
    description: str
    attacks: dict[str, AttackPreset] = field(default_factory=dict)
    sampled: tuple[str, ...] = ()

    @property
    def sequential(self) -> bool:
        """Whether each attack runs only on what stands, so that columns count the victims of all so far."""
        names = list(self.stages)
        return len(names) > 1 and all(self.stages[name] == tuple(names[:k]) for k, name in enumerate(names))

    def for_model(self, model: nn.Module, suite: str = "") -> "Suite":
        """The suite for a model that may have no gradients, on which no attack is run that goes by them.

        Args:
            model: with its stand-in (BPDA), if it has one.
            suite: name of the suite; empty for attacks that the caller has named.

        Raises:
            UserError: if the model has none, and attacks were asked for that go by them.
        """
        blind = [name for name, one in self.attacks.items() if one.attack.uses_gradients and not one.attack.sees_original]
        if not blind or has_gradient(model):
            return self
        if suite == "quick":
            return replace(find_suite("", _QUICK_SCORES), description=f"{', '.join(_QUICK_SCORES)}: a cheap upper bound")
        who = f"the suite {suite!r}" if suite else ", ".join(blind)
        raise UserError(
            f"{who} goes by gradients, which this model has not; take suite='scores', attacks=['square'], or give bpda="
        )

    def for_threat(self, threat: ThreatModel) -> "Suite":
        """The suite with FAB-T before APGD-T where attacks run in turn and the ball is no box, as FAB-T breaks more there.

        Only the passes depend on that, and which attack breaks an example first: draws are keyed by attack. Where there are
        one-hot groups, and nothing that does without gradients, it also runs Square: what a jump to another value does is
        nothing that a gradient knows for certain.
        """
        some = self.attacks or {name: PRESETS[name] for name in self.stages}
        if threat.one_hot is not None and self.eot_iter == 1 and all(one.attack.uses_gradients for one in some.values()):
            stages, columns = ({**have, _JUMPS: own} for have, own in ((self.stages, ()), (self.columns, (_JUMPS,))))
            return replace(self, stages=stages, columns=columns, attacks={**some, _JUMPS: PRESETS[_JUMPS]})
        if threat.norm.is_box or not self.sequential:
            return self
        if self.sampled:
            other = _two_phases(_FIRST_RUNS | _FIRST_RUNS_BESIDES)
            return replace(other, attacks={name: find_attack(name)[1] for name in other.stages})
        if not {"apgd-t", "fab-t"} <= self.stages.keys():
            return self
        names = ["apgd-t" if name == "fab-t" else "fab-t" if name == "apgd-t" else name for name in self.stages]
        other = _suite(names, self.description, sequential=True, eot_iter=self.eot_iter)
        return replace(other, attacks={name: self.attacks[name] for name in names if name in self.attacks})


def _suite(names: Sequence[str], description: str, *, sequential: bool, eot_iter: int = 1) -> Suite:
    """Every attack on all examples that are classified right; sequential, on those that still stand after the earlier ones."""
    stages = {name: tuple(names[:k]) if sequential else () for k, name in enumerate(names)}
    return Suite(stages, {name: (*earlier, name) for name, earlier in stages.items()}, eot_iter, description)


def _two_phases(first_runs: Mapping[str, int]) -> Suite:
    """AutoAttack, whose first runs all examples get, and whose others a sample of those that stand."""
    first = tuple(f"{name}[:{runs}]" for name, runs in first_runs.items())
    rest = tuple(f"{name}[{first_runs[name]}:]" if name in first_runs else name for name in AUTOATTACK)
    text = "AutoAttack's accuracy, estimated: its first runs on all examples, the others on a random sample of those that stand"
    suite = _suite((*first, *rest), text, sequential=True)
    return replace(suite, columns={name: suite.columns[name] for name in first} | {"autoattack": first + rest}, sampled=rest)


SUITES: dict[str, Suite] = {
    "quick": _suite(_QUICK, "FGSM, PGD-20, CW-30, PGD-100: a cheap upper bound", sequential=False),
    "papers": Suite(
        {**dict.fromkeys(_PAPERS, ()), **{name: AUTOATTACK[:k] for k, name in enumerate(AUTOATTACK) if k}},
        {**{name: (name,) for name in _PAPERS}, "autoattack": AUTOATTACK},
        1,
        "the columns of the MAIL and MART tables, as their codes judge: FGSM, the last points of PGD-20, CW-20 and "
        "PGD-100 (ε/10), APGD-CE, AutoAttack",
    ),
    "standard": _suite(AUTOATTACK, "AutoAttack (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T, Square", sequential=True),
    "fast": _two_phases(_FIRST_RUNS),
    "plus": _suite(
        ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
        "AutoAttack plus: APGD-CE and -DLR and FAB with 5 restarts, Square, APGD-T, FAB-T",
        sequential=True,
    ),
    "scores": _suite(
        ("random-1000", "square"),
        "for models without gradients: 1,000 random points, Square with AutoAttack's 5,000 queries",
        sequential=False,
    ),
    "rand": _suite(
        ("apgd-ce", "apgd-dlr"),
        "AutoAttack for randomised defences: APGD-CE and -DLR, means over 20 passes",
        sequential=True,
        eot_iter=20,
    ),
}


@checked
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
        found = find_attacks(attacks)
        names = sorted(found, key=lambda name: found[name].attack.cost())
        chosen = _suite(names, ", ".join(names), sequential=sequential)
    elif suite in SUITES:
        chosen, found = SUITES[suite], {}
    else:
        raise unknown_name("suite", suite, SUITES)
    more = {name: () for name in also if name not in chosen.stages}
    stages = {**chosen.stages, **more}
    columns = {**chosen.columns, **{name: (name,) for name in more}}
    presets = {name: found.get(name) or find_attack(name)[1] for name in stages}
    return replace(chosen, stages=stages, columns=columns, attacks=presets)
