"""Adversarial attacks."""

from hauberk.attacks.apgd import APGD, apgd
from hauberk.attacks.autoattack import autoattack
from hauberk.attacks.base import Attack, run_attack
from hauberk.attacks.minimum_norm import (
    CWL2,
    DDN,
    FAB,
    FMN,
    DeepFool,
    SigmaZero,
    cw_l2,
    ddn,
    deepfool,
    fab,
    fmn,
    sigma_zero,
)
from hauberk.attacks.model.bpda import BPDA
from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.pgd import PGD, cw, fgsm, friendly_pgd, lm_pgd, pgd
from hauberk.attacks.presets import PRESETS, AttackPreset, find_attack
from hauberk.attacks.score_based.random_search import RandomSearch, random_search
from hauberk.attacks.score_based.square import Square, square
from hauberk.attacks.smoothadv import SmoothAdv
from hauberk.attacks.state import AttackInputs, AttackResult, AttackState, initial_state
from hauberk.attacks.step_size import RelativeStep
from hauberk.attacks.suites import SUITES, Suite, find_suite
from hauberk.attacks.transfer import CallableAttack, Transfer, transfer
from hauberk.objectives.functional import AttackLoss, cw_loss, dlr_loss, evades, fooled, logit_margin

__all__ = [
    "APGD",
    "BPDA",
    "CWL2",
    "DDN",
    "FAB",
    "FMN",
    "PGD",
    "PRESETS",
    "SUITES",
    "Attack",
    "AttackInputs",
    "AttackLoss",
    "AttackPreset",
    "AttackResult",
    "AttackState",
    "CallableAttack",
    "DeepFool",
    "ModelQueries",
    "RandomSearch",
    "RelativeStep",
    "SigmaZero",
    "SmoothAdv",
    "Square",
    "Suite",
    "Transfer",
    "apgd",
    "autoattack",
    "cw",
    "cw_l2",
    "cw_loss",
    "ddn",
    "deepfool",
    "dlr_loss",
    "evades",
    "fab",
    "fgsm",
    "find_attack",
    "find_suite",
    "fmn",
    "fooled",
    "friendly_pgd",
    "frozen_model",
    "initial_state",
    "lm_pgd",
    "logit_margin",
    "pgd",
    "random_search",
    "run_attack",
    "sigma_zero",
    "square",
    "transfer",
]
