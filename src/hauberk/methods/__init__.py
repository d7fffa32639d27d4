"""Named combinations of attack, objective, weighting and weight perturbation, and what runs them in a loop."""

from hauberk.core.step_context import StepContext
from hauberk.methods.additions import ADDITIONS, WEIGHT_PERTURBATIONS
from hauberk.methods.adr import ADR
from hauberk.methods.distillation import FromTangentOfTeacher, FromTeacher, FromTeacherAtPoint
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, InnerAttack, SmallBall
from hauberk.methods.inner_attacks.free_replay import FreeReplay
from hauberk.methods.inner_attacks.minimum_margin import MinimumMargin
from hauberk.methods.inner_attacks.mm_at import TargetsInTurn
from hauberk.methods.inner_attacks.n_fgsm import NFGSM
from hauberk.methods.inner_attacks.several_threats import AlternatingThreats, WorstThreat
from hauberk.methods.method import Method, Step
from hauberk.methods.networks import MovingAverage, Teacher
from hauberk.methods.output import Output
from hauberk.methods.registry import (
    default_settings,
    get_method_spec,
    list_methods,
    method,
    method_settings,
    register_method,
)
from hauberk.methods.settings import Setting
from hauberk.methods.table import METHODS, MethodSpec
from hauberk.methods.weight_perturbation.awp import AWP
from hauberk.methods.weight_perturbation.rwp import RWP
from hauberk.methods.weight_perturbation.sam import SAM

__all__ = [
    "ADDITIONS",
    "ADR",
    "AWP",
    "METHODS",
    "NFGSM",
    "RWP",
    "SAM",
    "WEIGHT_PERTURBATIONS",
    "AlternatingThreats",
    "BatchAttack",
    "FreeReplay",
    "FromTangentOfTeacher",
    "FromTeacher",
    "FromTeacherAtPoint",
    "InnerAttack",
    "Method",
    "MethodSpec",
    "MinimumMargin",
    "MovingAverage",
    "Output",
    "Setting",
    "SmallBall",
    "Step",
    "StepContext",
    "TargetsInTurn",
    "Teacher",
    "WorstThreat",
    "default_settings",
    "get_method_spec",
    "list_methods",
    "method",
    "method_settings",
    "register_method",
]
