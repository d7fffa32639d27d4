"""Objectives: pure functions of logits and labels that return per-example terms, and the objects that methods are made of."""

from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.cross_entropy import (
    AT,
    AdversarialClass,
    Mixed,
    Standard,
    UniformNoise,
    adversarial_class,
    at,
    mixed,
    standard,
)
from hauberk.objectives.functional import kl_divergence
from hauberk.objectives.local_linearity import ELLE, GradAlign, Regularized
from hauberk.objectives.logit_pairing import ALP, CLP, alp, clp
from hauberk.objectives.mart import Mart, mart
from hauberk.objectives.mma import MMA, mma
from hauberk.objectives.ramp import Ramp
from hauberk.objectives.smoothing import NoisyAT, NoisyStandard
from hauberk.objectives.trades import Trades, trades

__all__ = [
    "ALP",
    "AT",
    "CLP",
    "ELLE",
    "MMA",
    "AdversarialClass",
    "GradAlign",
    "LossTerms",
    "Mart",
    "Mixed",
    "NoisyAT",
    "NoisyStandard",
    "Objective",
    "PresetName",
    "Ramp",
    "Regularized",
    "Standard",
    "Trades",
    "UniformNoise",
    "adversarial_class",
    "alp",
    "at",
    "clp",
    "kl_divergence",
    "mart",
    "mixed",
    "mma",
    "standard",
    "trades",
]
