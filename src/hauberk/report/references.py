"""What others have reached on the same data within the same threat model: published numbers to set beside one's own."""

from collections.abc import Mapping
from typing import Any

from hauberk.experiments.paper_tables import MAIL
from hauberk.report.html import Table

_DATA, _THREAT = "cifar10", "Linf(8/255)"
_NAMED = ("at", "trades", "mail-trades")  # the plain ones, and the best under AutoAttack in both of the paper's tables
_LINES = ("at", "mail-trades")  # drawn in pictures, where more would hide each other
_NETWORK = "resnet18"  # of those
_NOTE = {"at": (85, 48), "trades": (87, 46), "mart": (86, 49)}
_BEST = ["the best of its day, with more data and a larger network", "", "64.25", "lecture notes on adversarial training"]


def published_beside(found: Mapping[str, Any], method: str = "") -> Table | None:
    """Return published numbers for the data and threat model of an evaluation; None where we know of none.

    Args:
        found: the JSON of an evaluation.
        method: whose published numbers are shown besides those of the usual methods.
    """
    if (found["provenance"]["data"], found["threat"]) != (_DATA, _THREAT):
        return None
    rows: list[list[str]] = []
    for (data, model), table in MAIL.items():
        for name in dict.fromkeys((*_NAMED, method)):
            if data == _DATA and name in table:
                clean, *_, autoattack = (f"{cell[0]:.2f} ± {cell[1]:.2f}" if cell else "" for cell in table[name])
                rows.append([f"{name}, {model}", clean, autoattack, "MAIL paper, Tables 2 and 3"])
    caption = (
        f"CIFAR-10 within {_THREAT}, all test images, under AutoAttack (suite standard). A number from another suite, or from "
        "fewer images, can stand beside these only roughly"
    )
    about = "a note on MART: approximate, network and attack not named"
    rows += [[name, f"{clean}", f"{robust}", about] for name, (clean, robust) in _NOTE.items()]
    return Table("evaluation-published", caption, ["", "clean, %", "robust, %", "source"], [*rows, _BEST])


def published_lines(data: str, threat: str, method: str = "") -> dict[str, float]:
    """Return a few published robust accuracies, in percent under AutoAttack, to draw as lines; none where we know of none.

    Args:
        data: name of the data set.
        threat: the threat model, as it is written.
        method: whose published number is among them, if there is one.
    """
    if (data, threat) != (_DATA, _THREAT):
        return {}
    table = MAIL[_DATA, _NETWORK]
    autoattack = {name: table[name][-1] for name in dict.fromkeys((*_LINES, method)) if name in table}
    return {f"{name}, {_NETWORK}": cell[0] for name, cell in autoattack.items() if cell} | {"best of its day": float(_BEST[2])}
