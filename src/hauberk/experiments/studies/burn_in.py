"""burn-in: when MAIL begins to weigh (MAIL paper, Section 3.2)."""

from typing import TYPE_CHECKING

from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, said, standing
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Weights computed before the network has learnt enough may mislead the training; so they are 1 at first, until the "
    "learning rate drops (Wang et al. 2021, Section 3.2)."
)
SHARES = (0.0, 0.25, 0.5, 0.75)


def run(setting: Setting) -> Finding:
    """Train MAIL-AT with burn-ins of several lengths, and attack the networks."""
    x, y = setting.examples()
    epochs = setting.schedule.epochs
    lengths = dict.fromkeys(round(share * epochs) for share in SHARES)
    found = {
        length: standing(setting.trained("mail-at", burn_in=length), x, y, setting.threat, setting.seed) for length in lengths
    }
    none, longest = found[0], found[max(found)]
    text = (
        f"a burn-in of {max(found)} of {epochs} epochs against none, in points: clean {said(longest.clean, none.clean)}, "
        f"PGD-20 {said(longest.pgd, none.pgd)}, stronger attacks {said(longest.strong, none.strong)}"
    )
    rows = [one.row(**{"burn-in, epochs": length}) for length, one in found.items()]
    verdict = outputs_match([(longest.strong, none.strong)])
    return Finding("burn-in", f"{setting}, {len(y):,} test examples", CLAIM, text, verdict, rows, {})


def draw(finding: Finding) -> "Figure":
    """Accuracies over the length of the burn-in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for column in ("clean, %", "PGD-20, %", "strong, %"):
        axes.plot(
            [row["burn-in, epochs"] for row in finding.rows], [row[column] for row in finding.rows], marker="o", label=column
        )
    axes.set(xlabel="burn-in, epochs")
    axes.legend()
    return figure
