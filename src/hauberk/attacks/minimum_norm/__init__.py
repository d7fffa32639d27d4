"""Attacks that look for the nearest adversarial example, and what they share."""

from hauberk.attacks.minimum_norm.base import MinimumNormAttack, distance, proportions
from hauberk.attacks.minimum_norm.cw_l2 import CWL2, cw_l2
from hauberk.attacks.minimum_norm.ddn import DDN, ddn
from hauberk.attacks.minimum_norm.deepfool import DeepFool, deepfool
from hauberk.attacks.minimum_norm.fab import FAB, fab
from hauberk.attacks.minimum_norm.fmn import FMN, fmn
from hauberk.attacks.minimum_norm.sigma_zero import SigmaZero, sigma_zero

__all__ = [
    "CWL2",
    "DDN",
    "FAB",
    "FMN",
    "DeepFool",
    "MinimumNormAttack",
    "SigmaZero",
    "cw_l2",
    "ddn",
    "deepfool",
    "distance",
    "fab",
    "fmn",
    "proportions",
    "sigma_zero",
]
