"""The studies by name: each an experiment of the sources, in a module of its own with ``run`` and ``draw``."""

from importlib import import_module
from types import ModuleType

from hauberk.errors import unknown_name

STUDIES = {
    "path-dependence": "PGD against LM-PGD: loss curves, and the least steps each needs (MAIL, Figure 1a)",
    "lps-vs-pm": "how many examples have each LPS, which are critical; margins by LPS (MAIL, Figures 1b and 4)",
    "restarts": "final losses of PGD over random starts, standard against robust network (Madry et al. 2018)",
}


def find_study(name: str) -> ModuleType:
    """Return the module of a study.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return import_module(f"hauberk.studies.{name.replace('-', '_')}")
