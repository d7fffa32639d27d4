"""The papers' tables: as comparisons, with methods, settings and attacks, and the numbers that they print. Free of torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import PurePath

from hauberk.core.errors import UserError, unknown_name
from hauberk.experiments.options import DataOptions, ModelOptions
from hauberk.training.config import TrainConfig
from hauberk.training.published import OFFICIAL, Published

SURROGATE = "standard"  # what black-box attacks of the MART paper are crafted on, trained with another seed
_LEAST_TEST_EXAMPLES = 100
_LONGEST = 24  # characters of a setting in the label of a method

Number = tuple[float, float]  # mean and standard deviation over 5 trials, in %
Printed = tuple[Number | None, ...]  # None for a column that the paper does not print
PrintedTable = dict[tuple[str, str], dict[str, Printed]]  # by data set and network, then by method


# NAT, PGD (100 steps) and AA: MAIL paper, Table 1. LPS is GAIRAT's measure, "measure=pm-nat" is PM nat, the plain name PM adv.
_TABLE1_PRINTED = {
    "gairat": ((82.26, 0.6), (54.14, 0.15), (36.32, 0.57)),
    "mail-at measure=pm-nat": ((82.5, 0.2), (55.0, 0.32), (44.25, 0.45)),
    "mail-at": ((83.15, 0.46), (55.25, 0.23), (44.1, 0.21)),
    "gair-mart": ((84.45, 0.17), (53.16, 0.26), (46.0, 0.26)),
    "mail-mart measure=pm-nat": ((83.75, 0.09), (53.63, 0.21), (46.7, 0.1)),
    "mail-mart": ((84.12, 0.46), (53.65, 0.23), (47.2, 0.21)),
    "gair-trades": ((78.52, 0.2), (51.67, 0.54), (44.4, 0.2)),
    "mail-trades measure=pm-nat": ((82.71, 0.52), (52.37, 0.65), (49.52, 0.11)),
    "mail-trades": ((80.49, 0.18), (53.67, 0.14), (50.6, 0.22)),
}
MAIL_TABLE_1: PrintedTable = {
    ("cifar10", "resnet18"): {name: (nat, pgd, None, None, aa) for name, (nat, pgd, aa) in _TABLE1_PRINTED.items()}
}

# NAT, PGD (100 steps), APGD, CW and AA: MAIL paper, Tables 2 and 3. The NAT of AWP with WRN-32-10 is as printed there.
MAIL: PrintedTable = {
    ("cifar10", "resnet18"): {
        "at": ((84.86, 0.17), (48.91, 0.14), (47.7, 0.06), (51.61, 0.15), (44.9, 0.53)),
        "trades": ((84.0, 0.23), (52.66, 0.16), (52.37, 0.24), (52.3, 0.06), (48.1, 0.26)),
        "mart": ((82.28, 0.14), (53.5, 0.46), (52.73, 0.57), (51.59, 0.16), (48.4, 0.14)),
        "fat": ((87.97, 0.15), (46.78, 0.12), (46.68, 0.16), (49.92, 0.26), (43.9, 0.82)),
        "at+awp": ((85.17, 0.4), (52.63, 0.17), (50.4, 0.26), (51.39, 0.18), (47.0, 0.25)),
        "gairat": ((83.22, 0.06), (54.81, 0.15), (50.95, 0.49), (39.86, 0.08), (33.35, 0.57)),
        "mail-at": ((84.52, 0.46), (55.25, 0.23), (53.2, 0.38), (48.88, 0.11), (44.22, 0.21)),
        "mail-trades": ((81.84, 0.18), (53.68, 0.14), (52.92, 0.62), (52.89, 0.31), (50.6, 0.22)),
    },
    ("cifar10", "wrn-32-10"): {
        "at": ((87.8, 0.13), (49.43, 0.29), (49.12, 0.26), (53.38, 0.05), (48.46, 0.46)),
        "trades": ((86.36, 0.52), (54.88, 0.39), (55.02, 0.27), (56.18, 0.16), (53.4, 0.37)),
        "mart": ((84.76, 0.34), (55.61, 0.51), (55.4, 0.37), (54.72, 0.2), (51.4, 0.05)),
        "fat": ((89.7, 0.17), (48.79, 0.18), (48.72, 0.36), (52.39, 0.89), (47.48, 0.3)),
        "at+awp": ((57.55, 0.23), (54.17, 0.1), (54.2, 0.16), (55.18, 0.3), (53.08, 0.17)),
        "gairat": ((86.3, 0.61), (58.74, 0.46), (55.64, 0.36), (45.57, 0.18), (40.3, 0.16)),
        "mail-at": ((84.83, 0.39), (58.86, 0.25), (55.82, 0.31), (51.26, 0.2), (47.1, 0.22)),
        "mail-trades": ((84.0, 0.15), (57.4, 0.96), (56.96, 0.19), (56.2, 0.3), (53.9, 0.22)),
    },
}


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        methods: its methods, as ``hauberk compare --methods`` takes them.
        data: the paper's data set.
        model: the paper's network.
        attacks: the attacks that it has columns for; empty for the suite "papers".
        as_mart: whether every method is trained as in the MART paper; otherwise as in the MAIL paper.
        black_box: whether some attacks are crafted on another network.
        baselines: by label of a method, the one that its difference is to; without one it is to the first method.
        printed: the numbers that the paper prints, to set beside ours.
    """

    methods: str
    data: str = "cifar10"
    model: str = "resnet18"
    attacks: tuple[str, ...] = ()
    as_mart: bool = False
    black_box: bool = False
    baselines: Mapping[str, str] = field(default_factory=dict)
    printed: PrintedTable = field(default_factory=dict)

    def published(self, data: str, model: str) -> Published:
        """Return the settings of training and of MART in the table that are not those published for data set and network.

        The MART paper trains all methods alike; its public code has them for CIFAR-10, with ResNet-18 and WRN-34-10.
        """
        family = "wrn" if model.startswith("wrn-") else model
        found = OFFICIAL.get(("mart", family)) if self.as_mart and data in ("cifar10", "cifar100", "svhn") else None
        return found or Published({}, "")


_LPS = {"mail-at": "gairat", "mail-mart": "gair-mart", "mail-trades": "gair-trades"}  # the same objective, weighted by LPS
_TABLE1 = ",".join(f"{lps},{mail}:measure=pm-nat,{mail}" for mail, lps in _LPS.items())
_TABLE2 = "at,trades,mart,fat,at+awp,gairat,mail-at,mail-trades"
_MART = "at,alp,clp,trades,mma,mart"

PAPER_TABLES: dict[str, PaperTable] = {
    # MAIL, Table 1: LPS against PM nat and PM adv, in AT, MART and TRADES.
    "table1": PaperTable(
        _TABLE1,
        baselines=_LPS | {f"{mail} measure=pm-nat": lps for mail, lps in _LPS.items()},
        printed=MAIL_TABLE_1,
    ),
    # MAIL, Tables 2 and 3: eight methods, ResNet-18 and WRN-32-10.
    "table2": PaperTable(_TABLE2, printed=MAIL),
    "table3": PaperTable(_TABLE2, model="wrn-32-10", printed=MAIL),
    # MART, white box: FGSM, PGD-20, CW, and AutoAttack beside them.
    "mart-white-box": PaperTable(
        _MART,
        attacks=("fgsm", "pgd-20-last", "cw-20-last", "apgd-ce", "apgd-t", "fab-t", "square"),
        as_mart=True,
    ),
    # MART, black box: attacks crafted on a standard network of another seed, beside PGD-20 on the network itself.
    "mart-black-box": PaperTable(
        _MART,
        attacks=("transfer-fgsm", "transfer-pgd-20", "transfer-cw-20", "pgd-20-last"),
        as_mart=True,
        black_box=True,
    ),
}
_USUAL = PaperTable(_TABLE2, DataOptions.name, ModelOptions.name, printed=MAIL)


def find_table(name: str) -> PaperTable:
    """Return a table; without a name, Table 2 of the MAIL paper for any data.

    Raises:
        UserError: if there is none of that name.
    """
    if name and name not in PAPER_TABLES:
        raise unknown_name("table", name, PAPER_TABLES)
    return PAPER_TABLES.get(name, _USUAL)


def scale_budget(settings: TrainConfig, budget: float, train: int, test: int) -> tuple[TrainConfig, int, int]:
    """Shorten a training to a fraction of its passes: epochs and examples are each scaled by the root of the budget.

    Milestones keep their place in the training, and with them burn-ins. Attacks stay as they are.

    Args:
        settings: those of the whole training.
        budget: fraction of its passes, in (0, 1].
        train: number of training examples.
        test: number of test examples.

    Returns:
        Settings, number of training examples and number of test examples; 0 for all.

    Raises:
        UserError: if the budget is not in (0, 1].
    """
    if not 0 < budget <= 1:
        raise UserError(f"a budget is a fraction of the whole, above 0 and at most 1, got {budget}")
    if budget == 1:
        return settings, 0, 0
    scale = sqrt(budget)
    places = tuple(m if m < 1 else (m - 1) / settings.epochs for m in settings.milestones)
    small = replace(settings, epochs=max(2, round(scale * settings.epochs)), milestones=places)
    return small, max(settings.batch_size, round(scale * train)), min(test, max(_LEAST_TEST_EXAMPLES, round(scale * test)))


def parse_methods(text: str) -> list[tuple[str, str, Mapping[str, str]]]:
    """Read ``at,trades:beta=1;steps=5``: label, name and settings of each method.

    Raises:
        UserError: if there is none.
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        parts = entry.split(":")
        settings = parts.pop() if len(parts) > 1 and "=" in parts[-1] else ""
        name = ":".join(parts)  # package.module:attribute has one of its own
        pairs = dict(pair.partition("=")[::2] for pair in filter(None, settings.split(";")))
        found.append((_label(name, pairs), name, pairs))
    if not found:
        raise UserError("--methods needs a name at least")
    different = {(name, *pairs.items()): (label, name, pairs) for label, name, pairs in found}
    shared = Counter(label for label, _, _ in different.values())
    return [
        (label if shared[label] == 1 else _label(name, pairs, shorten=False), name, pairs)
        for label, name, pairs in different.values()
    ]


def _label(name: str, pairs: Mapping[str, str], shorten: bool = True) -> str:
    """Return a method's name and settings, of long paths only the last part: a table has no room for more."""
    values = {key: PurePath(value).name if shorten and len(value) > _LONGEST else value for key, value in pairs.items()}
    return " ".join([name, *(f"{key}={value}" for key, value in values.items())])
