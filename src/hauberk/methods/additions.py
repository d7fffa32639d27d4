"""What goes with any method: additions behind its name, such as ``+awp``, and weight perturbations by their own names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hauberk.core.errors import UserError
from hauberk.methods.adr import ADR
from hauberk.methods.table import MethodSpec
from hauberk.methods.weight_perturbation.awp import AWP
from hauberk.methods.weight_perturbation.rwp import RWP
from hauberk.methods.weight_perturbation.sam import SAM
from hauberk.objectives import (
    ELLE,
    FRL,
    HAT,
    IKL,
    TSOVR,
    ARoW,
    CFATrades,
    DAFATrades,
    Distillation,
    GradAlign,
    Score,
    Trades,
    UIATTrades,
)

WEIGHT_PERTURBATIONS: dict[str, Any] = {  # by name, for hb.method(weight_perturbation=)
    "awp": AWP(),
    "sam": SAM(),
    "asam": SAM(rho=0.5, adaptive=True),
    "rwp": RWP(),
    "mlcat-wp": RWP(c_min=1.5),
}


# Public codes of such losses perturb the weights by half as much.
_LIKE_TRADES = (
    Trades,
    ARoW,
    IKL,
    Score,
    TSOVR,
    CFATrades,
    DAFATrades,
    FRL,
    HAT,
    UIATTrades,
)


def _with_awp(base: str, spec: MethodSpec) -> MethodSpec:
    """Add adversarial weight perturbation (Wu et al. 2020)."""
    summary = spec.summary + ", at adversarially perturbed weights (Wu et al. 2020)"
    if not isinstance(spec.objective, _LIKE_TRADES):
        return replace(spec, awp=AWP(0.01), summary=summary)
    official = spec.official | {"awp_warmup": 9}  # --awp-warmup 10, counted from 1
    if base == "trades":  # TRADES-AWP's own code steps by 2/255 at ε 8/255, and sees x' first
        official |= {"step_size": "eps/4", "passes": ("attack", "adversarial", "clean", "clean")}
    return replace(spec, awp=AWP(0.005), official=official, summary=summary)


def _with_adr(base: str, spec: MethodSpec) -> MethodSpec:
    """Add labels softened by the moving average of the network (Wu et al. 2024, ADR)."""
    summary = spec.summary + ", labels softened by the network's moving average (ADR, Wu et al. 2024)"
    # ADR's own code of these two has the steps of the paper, attacks in training mode, and no warm-up of AWP.
    spec = replace(spec, summary=summary, official={"mode": "train"} if base in ("at", "trades") else spec.official)
    if not isinstance(spec.awp, AWP):
        return replace(spec, targets=ADR())
    return replace(spec, awp=replace(spec.awp, gamma=0.005), targets=ADR(lambda_end=0.85, temperature_end=1.5))


def _with_igdm(base: str, spec: MethodSpec) -> MethodSpec:
    """Add gradient matching to a distillation (Lee et al. 2025, IGDM)."""
    if not isinstance(spec.objective, Distillation):
        raise UserError(f"'+igdm' matches a network's gradients with a teacher's, which {base!r} has not; add it to rslad, say")
    summary = spec.summary + ", matching the teacher's gradients by differences (IGDM, Lee et al. 2025)"
    return replace(spec, objective=replace(spec.objective, igdm_alpha=1.0), summary=summary)


def _with_term(term: GradAlign | ELLE, what: str) -> Callable[[str, MethodSpec], MethodSpec]:
    """Add a term against catastrophic overfitting."""

    def add(base: str, spec: MethodSpec) -> MethodSpec:
        attack = spec.attack
        if base == "fgsm-at" and attack is not None:  # both papers' code takes one step of ε from x itself
            attack = replace(attack, step_size="eps", start="clean")
        return replace(spec, attack=attack, terms=(term, *spec.terms), summary=f"{spec.summary}, {what}")

    return add


# By what stands behind the "+", in the order of the name.
ADDITIONS: dict[str, Callable[[str, MethodSpec], MethodSpec]] = {
    "igdm": _with_igdm,
    "adr": _with_adr,
    "gradalign": _with_term(GradAlign(), "and gradients aligned nearby (Andriushchenko and Flammarion 2020, GradAlign)"),
    "elle": _with_term(ELLE(), "and a loss that is linear nearby (Abad Rocamora et al. 2024, ELLE)"),
    "elle-a": _with_term(
        ELLE(4000.0, True), "and, when it is less so, a loss linear nearby (Abad Rocamora et al. 2024, ELLE-A)"
    ),
    "awp": _with_awp,
}
