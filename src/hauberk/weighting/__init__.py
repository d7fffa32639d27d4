"""Instance weights (MAIL, GAIRAT, SAAD): pure functions without a gradient, and the objects that methods are made of."""

from hauberk.core.step_context import MeasuredWeighting, effective_size, mean_one, summary
from hauberk.weighting.gairat import Gairat, gairat
from hauberk.weighting.mail import Mail, mail, margin_difference, probabilistic_margin
from hauberk.weighting.saad import Saad, saad

WEIGHTINGS: dict[str, MeasuredWeighting] = {
    "mail": Mail(),
    "gairat": Gairat(),
    "saad": Saad(),
}  # by name, for hb.method(weighting=)

__all__ = [
    "WEIGHTINGS",
    "Gairat",
    "Mail",
    "MeasuredWeighting",
    "Saad",
    "effective_size",
    "gairat",
    "mail",
    "margin_difference",
    "mean_one",
    "probabilistic_margin",
    "saad",
    "summary",
]
