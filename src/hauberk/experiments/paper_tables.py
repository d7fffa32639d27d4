"""The papers' tables as comparisons: methods, settings, attacks. Data, and how a budget shrinks them; free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig
from hauberk.training.published import OFFICIAL, Published

SURROGATE = "standard"  # what black-box attacks of the MART paper are crafted on, trained with another seed
_LEAST_TEST = 100


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        summary: what it shows, in one line.
        methods: as ``hauberk compare --methods`` takes them.
        data: the paper's data set.
        model: the paper's network.
        attacks: that it has columns for; empty for the suite "papers".
        as_mart: whether settings are the MART paper's, for every method; otherwise the MAIL paper's.
        black_box: whether some attacks are crafted on another network.
        baselines: by label of a method, the one that its difference is to; without one it is to the first method.
    """

    summary: str
    methods: str
    data: str = "cifar10"
    model: str = "resnet18"
    attacks: tuple[str, ...] = ()
    as_mart: bool = False
    black_box: bool = False
    baselines: Mapping[str, str] = field(default_factory=dict)


_LPS = {"mail-at": "gairat", "mail-mart": "gair-mart", "mail-trades": "gair-trades"}  # the same objective, weighted by LPS
_TABLE1 = ",".join(f"{lps},{mail}:measure=pm-nat,{mail}" for mail, lps in _LPS.items())
_TABLE2 = "at,trades,mart,fat,at+awp,gairat,mail-at,mail-trades"
_MART = "at,alp,clp,trades,mma,mart"

PAPER_TABLES: dict[str, PaperTable] = {
    "table1": PaperTable(
        "MAIL, Table 1: LPS against PM nat and PM adv, in AT, MART and TRADES",
        _TABLE1,
        baselines=_LPS | {f"{mail} measure=pm-nat": lps for mail, lps in _LPS.items()},
    ),
    "table2": PaperTable("MAIL, Table 2: eight methods, ResNet-18", _TABLE2),
    "table3": PaperTable("MAIL, Table 3: eight methods, WRN-32-10", _TABLE2, model="wrn-32-10"),
    "mart-white-box": PaperTable(
        "MART, white box: FGSM, PGD-20, CW, and AutoAttack beside them",
        _MART,
        attacks=("fgsm", "pgd-20", "cw-20", "apgd-ce", "apgd-t", "fab-t", "square"),
        as_mart=True,
    ),
    "mart-black-box": PaperTable(
        "MART, black box: attacks crafted on a standard network of another seed, beside PGD-20 on the network itself",
        _MART,
        attacks=("transfer-fgsm", "transfer-pgd-20", "transfer-cw-20", "pgd-20"),
        as_mart=True,
        black_box=True,
    ),
}


def table_settings(table: PaperTable, data: str, model: str) -> dict[str, Any]:
    """Return the training settings of a table that are not those published for the data set and network.

    The MART paper trains all methods alike; its public code has them for CIFAR-10, with ResNet-18 and WRN-34-10.
    """
    found = _mart_code(table, data, model)
    return dict(found.settings) if found else {}


def table_choices(table: PaperTable, data: str, model: str, method: str) -> dict[str, Any]:
    """Return the settings of a method that come from the same source as the table's training settings, and are no default."""
    found = _mart_code(table, data, model)
    return dict(found.hyperparameters) if found and method == "mart" else {}


def _mart_code(table: PaperTable, data: str, model: str) -> Published | None:
    family = "wrn" if model.startswith("wrn-") else model
    return OFFICIAL.get(("mart", family)) if table.as_mart and data in ("cifar10", "cifar100", "svhn") else None


def shrunk(settings: TrainConfig, budget: float, train: int, test: int) -> tuple[TrainConfig, int, int]:
    """Shrink a training to a share of its passes: the same share of epochs and of examples, each the root of the budget.

    Milestones keep their place in the training, and with them burn-ins. Attacks stay as they are.

    Args:
        settings: of the whole training.
        budget: share of its passes, in (0, 1].
        train: training examples there are.
        test: test examples there are.

    Returns:
        Settings, training examples and test examples; 0 for all.

    Raises:
        UserError: if the budget is no such share.
    """
    if not 0 < budget <= 1:
        raise UserError(f"a budget is a share of the whole, above 0 and at most 1, got {budget}")
    if budget == 1:
        return settings, 0, 0
    share = sqrt(budget)
    places = tuple(m if m < 1 else (m - 1) / settings.epochs for m in settings.milestones)
    small = replace(settings, epochs=max(2, round(share * settings.epochs)), milestones=places)
    return small, max(settings.batch_size, round(share * train)), min(test, max(_LEAST_TEST, round(share * test)))


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
        found.append((" ".join([name, *(f"{key}={value}" for key, value in pairs.items())]), name, pairs))
    if not found:
        raise UserError("--methods needs a name at least")
    return list({label: (label, name, pairs) for label, name, pairs in found}.values())
