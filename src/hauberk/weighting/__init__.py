"""Instance weights, one file for each paper: pure functions without a gradient, and the objects that methods are made of."""

from hauberk.core.step_context import MeasuredWeighting, effective_size, mean_one, summary
from hauberk.weighting.dom import Dom, dom
from hauberk.weighting.ewat import Ewat, ewat
from hauberk.weighting.frl import Frl, frl
from hauberk.weighting.gairat import Gairat, gairat
from hauberk.weighting.kl_dro import KLDRO, kl_dro
from hauberk.weighting.mail import Mail, mail, margin_difference, probabilistic_margin
from hauberk.weighting.mlcat import Mlcat, mlcat
from hauberk.weighting.saad import Saad, saad
from hauberk.weighting.vir import Vir, vir
from hauberk.weighting.wmmr import Wmmr, wmmr

WEIGHTINGS: dict[str, MeasuredWeighting] = {  # by name, for hb.method(weighting=)
    "mail": Mail(),
    "gairat": Gairat(),
    "ewat": Ewat(),
    "wmmr": Wmmr(),
    "mlcat": Mlcat(),
    "dom": Dom(),
    "vir": Vir(),
    "kl-dro": KLDRO(),
    "frl": Frl(),
    "saad": Saad(),
}

__all__ = [
    "KLDRO",
    "WEIGHTINGS",
    "Dom",
    "Ewat",
    "Frl",
    "Gairat",
    "Mail",
    "MeasuredWeighting",
    "Mlcat",
    "Saad",
    "Vir",
    "Wmmr",
    "dom",
    "effective_size",
    "ewat",
    "frl",
    "gairat",
    "kl_dro",
    "mail",
    "margin_difference",
    "mean_one",
    "mlcat",
    "probabilistic_margin",
    "saad",
    "summary",
    "vir",
    "wmmr",
]
