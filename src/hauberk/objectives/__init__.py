"""Objectives: pure functions of logits and labels that return per-example terms, and the objects that methods are made of."""

from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.cross_entropy import AT, AdversarialClass, Standard, adversarial_class, at, standard
from hauberk.objectives.distillation import ARD, RSLAD, SAAD, AdaAD, Distillation, adaad, ard, gradient_matching, rslad, saad
from hauberk.objectives.functional import kl_divergence
from hauberk.objectives.hat import HAT, hat
from hauberk.objectives.logit_pairing import ALP, CLP, alp, clp
from hauberk.objectives.mart import Mart, mart
from hauberk.objectives.mma import MMA, mma
from hauberk.objectives.rebat import ReBAT, rebat
from hauberk.objectives.smoothing import NoisyAT, NoisyStandard
from hauberk.objectives.trades import Trades, trades

__all__ = [
    "ALP",
    "ARD",
    "AT",
    "CLP",
    "HAT",
    "MMA",
    "RSLAD",
    "SAAD",
    "AdaAD",
    "AdversarialClass",
    "Distillation",
    "LossTerms",
    "Mart",
    "NoisyAT",
    "NoisyStandard",
    "Objective",
    "PresetName",
    "ReBAT",
    "Standard",
    "Trades",
    "adaad",
    "adversarial_class",
    "alp",
    "ard",
    "at",
    "clp",
    "gradient_matching",
    "hat",
    "kl_divergence",
    "mart",
    "mma",
    "rebat",
    "rslad",
    "saad",
    "standard",
    "trades",
]
