"""Objectives: pure functions of logits and labels that return per-example terms, and the objects that methods are made of."""

from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.arow import ARoW, arow
from hauberk.objectives.cfa import CFAAT, CFATrades, cfa
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
from hauberk.objectives.dafa import DAFAAT, DAFATrades, dafa
from hauberk.objectives.distillation import ARD, RSLAD, SAAD, AdaAD, Distillation, adaad, ard, gradient_matching, rslad, saad
from hauberk.objectives.expected_cost import ExpectedCost
from hauberk.objectives.frl import FRL, frl, frl_radii
from hauberk.objectives.functional import kl_divergence
from hauberk.objectives.hat import HAT, hat
from hauberk.objectives.ikl import GKL, IKL, gkl, ikl
from hauberk.objectives.local_linearity import ELLE, GradAlign, Regularized
from hauberk.objectives.logit_pairing import ALP, CLP, alp, clp
from hauberk.objectives.lrat import LRAT, lrat
from hauberk.objectives.mart import Mart, mart
from hauberk.objectives.mma import MMA, mma
from hauberk.objectives.ramp import Ramp
from hauberk.objectives.rebat import ReBAT, rebat
from hauberk.objectives.score import Score, score
from hauberk.objectives.smoothing import NoisyAT, NoisyStandard
from hauberk.objectives.sovr import SOVR, TSOVR, sovr, tsovr
from hauberk.objectives.trades import Trades, trades
from hauberk.objectives.uiat import UIAT, UIATTrades, uiat, uiat_trades

__all__ = [
    "ALP",
    "ARD",
    "AT",
    "CFAAT",
    "CLP",
    "DAFAAT",
    "ELLE",
    "FRL",
    "GKL",
    "HAT",
    "IKL",
    "LRAT",
    "MMA",
    "RSLAD",
    "SAAD",
    "SOVR",
    "TSOVR",
    "UIAT",
    "ARoW",
    "AdaAD",
    "AdversarialClass",
    "CFATrades",
    "DAFATrades",
    "Distillation",
    "ExpectedCost",
    "GradAlign",
    "LossTerms",
    "Mart",
    "Mixed",
    "NoisyAT",
    "NoisyStandard",
    "Objective",
    "PresetName",
    "Ramp",
    "ReBAT",
    "Regularized",
    "Score",
    "Standard",
    "Trades",
    "UIATTrades",
    "UniformNoise",
    "adaad",
    "adversarial_class",
    "alp",
    "ard",
    "arow",
    "at",
    "cfa",
    "clp",
    "dafa",
    "frl",
    "frl_radii",
    "gkl",
    "gradient_matching",
    "hat",
    "ikl",
    "kl_divergence",
    "lrat",
    "mart",
    "mixed",
    "mma",
    "rebat",
    "rslad",
    "saad",
    "score",
    "sovr",
    "standard",
    "trades",
    "tsovr",
    "uiat",
    "uiat_trades",
]
