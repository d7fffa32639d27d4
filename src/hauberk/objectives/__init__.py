"""Objectives: pure functions of logits and labels that return per-example terms, and the objects that methods are made of."""

from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.arow import ARoW, arow
from hauberk.objectives.cross_entropy import AT, AdversarialClass, Standard, adversarial_class, at, standard
from hauberk.objectives.functional import kl_divergence
from hauberk.objectives.ikl import GKL, IKL, gkl, ikl
from hauberk.objectives.logit_pairing import ALP, CLP, alp, clp
from hauberk.objectives.mart import Mart, mart
from hauberk.objectives.mma import MMA, mma
from hauberk.objectives.score import Score, score
from hauberk.objectives.smoothing import NoisyAT, NoisyStandard
from hauberk.objectives.sovr import SOVR, TSOVR, sovr, tsovr
from hauberk.objectives.trades import Trades, trades

__all__ = [
    "ALP",
    "AT",
    "CLP",
    "GKL",
    "IKL",
    "MMA",
    "SOVR",
    "TSOVR",
    "ARoW",
    "AdversarialClass",
    "LossTerms",
    "Mart",
    "NoisyAT",
    "NoisyStandard",
    "Objective",
    "PresetName",
    "Score",
    "Standard",
    "Trades",
    "adversarial_class",
    "alp",
    "arow",
    "at",
    "clp",
    "gkl",
    "ikl",
    "kl_divergence",
    "mart",
    "mma",
    "score",
    "sovr",
    "standard",
    "trades",
    "tsovr",
]
