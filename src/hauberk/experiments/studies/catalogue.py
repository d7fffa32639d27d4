"""The studies by name: each an experiment of the sources, in a module of its own with ``run`` and ``draw``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING

from hauberk.core.errors import unknown_name
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDIES = {
    "path-dependence": "PGD against LM-PGD: loss curves, and the least steps each needs (MAIL, Figure 1a)",
    "lps-vs-pm": "how many examples have each LPS, which are critical; margins by LPS (MAIL, Figures 1b and 4)",
    "subsets": "leave misclassified or other examples unperturbed, attack them weakly, or regularise them (MART, Figure 1)",
    "ablation": "take parts of MART's loss away, replace them, or use them on a share of the data (MART, Section 3.1)",
    "lambda": "how much the trade-off parameter matters to MART and TRADES (MART, Section 3.1)",
    "weights": "slope and bias of MAIL's weights (MAIL, Equation 8)",
    "burn-in": "when MAIL begins to weigh (MAIL, Section 3.2)",
    "restarts": "final losses of PGD over random starts, standard against robust network (Madry et al. 2018)",
    "large-epsilon": "whether large perturbations of a robust network look like another class (lecture notes)",
    "saliency": "input gradients of a standard and a robust network (lecture notes)",
    "trade-off": "clean against robust accuracy over methods and trade-off parameters (TRADES, lecture notes)",
    "imbalance": "robust accuracy of rare classes (note on MART)",
    "transfer": "perturbations of one network tried on another: the black-box matrix (MART, MAIL)",
}
_MODULES = {"lambda": "sensitivity"}  # "lambda" is a word of Python's


@dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
        CLAIM: what its source says.
        measure: trains, attacks, and judges by what it sees.
        draw: makes the picture of a finding.
    """

    CLAIM: str
    measure: Callable[[Setting], Finding]
    draw: Callable[[Finding], "Figure"]

    def run(self, setting: Setting) -> Finding:
        """Run it; the verdict is left open where it would rest on a network that is no better than chance.

        Args:
            setting: data, network, sizes.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        watched = replace(setting, learnt={})
        return watched.sound(self.measure(watched))


def find_study(name: str) -> Study:
    """Return a study.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    module = import_module(f"hauberk.experiments.studies.{_MODULES.get(name, name.replace('-', '_'))}")
    return Study(module.CLAIM, module.run, module.draw)
