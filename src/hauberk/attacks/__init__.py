"""x': the attacks, all on one ascent engine."""

from hauberk.attacks.ascent import ascend
from hauberk.attacks.autoattack import autoattack
from hauberk.attacks.frozen_model import frozen_model
from hauberk.attacks.pgd import cw, fgsm, pgd
from hauberk.attacks.presets import PRESETS, Preset, get_preset
from hauberk.attacks.result import AttackResult
from hauberk.attacks.steps import Ascent
from hauberk.attacks.strong import apgd, fab, random_search, square
from hauberk.attacks.training import friendly_pgd, lm_pgd, margin_pgd
from hauberk.attacks.transfer import transfer
from hauberk.objectives.functional import cw_loss, dlr_loss, logit_margin

__all__ = [
    "PRESETS",
    "Ascent",
    "AttackResult",
    "Preset",
    "apgd",
    "ascend",
    "autoattack",
    "cw",
    "cw_loss",
    "dlr_loss",
    "fab",
    "fgsm",
    "friendly_pgd",
    "frozen_model",
    "get_preset",
    "lm_pgd",
    "logit_margin",
    "margin_pgd",
    "pgd",
    "random_search",
    "square",
    "transfer",
]
