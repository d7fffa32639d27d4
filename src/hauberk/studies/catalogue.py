"""The studies by name: each an experiment of the sources, in a module of its own with ``run`` and ``draw``."""

from dataclasses import replace
from importlib import import_module
from types import ModuleType

from hauberk.errors import unknown_name
from hauberk.evaluation.signs import hardly_beats_chance
from hauberk.studies.finding import Finding
from hauberk.studies.setting import Setting

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


def find_study(name: str) -> ModuleType:
    """Return the module of a study.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return import_module(f"hauberk.studies.{_MODULES.get(name, name.replace('-', '_'))}")


def run_study(name: str, setting: Setting) -> Finding:
    """Run a study, and withhold its verdict where one of its networks has learnt nothing.

    Args:
        name: of the study.
        setting: what it is run on.

    Returns:
        The finding. Its ``agrees`` is None, and ``found`` says why, if a network is right on less than twice as many of the
        test examples as guessing would be (with two classes: on no more).

    Raises:
        UserError: if there is no such study, and as :func:`hauberk.train`.
    """
    setting.learnt.clear()
    found: Finding = find_study(name).run(setting)
    ignorant = {network: seen for network, seen in setting.learnt.items() if hardly_beats_chance(*seen)}
    if not ignorant:
        return found
    worst, classes = min(ignorant.values())
    most, others = list(ignorant)[:3], len(ignorant) - 3
    names = ", ".join(most) + (f" and {others} more" if others > 0 else "")
    why = f"{names} hardly better than chance on clean examples ({worst:.0%} right at least, {classes} classes): train longer"
    return replace(found, agrees=None, found=f"{why}. What was measured all the same: {found.found}")
