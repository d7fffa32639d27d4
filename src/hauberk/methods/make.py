"""hb.method: from a name and overrides to a method."""

from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

from hauberk.attacks.steps import Ascent, parse_step
from hauberk.core.errors import UserError, unknown_name
from hauberk.fastpath.precision import Precision, PrecisionPolicy
from hauberk.methods.choices import Choices
from hauberk.methods.method import Method
from hauberk.methods.registry import get_method_spec
from hauberk.methods.weights import Weighting
from hauberk.objectives import OBJECTIVES, PresetName
from hauberk.threat import ThreatModel

T = TypeVar("T", Ascent, Weighting)

_ATTACK = tuple(f.name for f in fields(Ascent) if f.name != "tau")
_WEIGHTING = tuple(f.name for f in fields(Weighting))
_AWP = {"gamma": "gamma", "awp_warmup": "warmup"}


def method(
    name: str,
    threat: ThreatModel,
    *,
    preset: PresetName = "paper",
    seed: int = 0,
    precision: Precision = "model",
    compiled: bool = False,
    **overrides: Any,
) -> Method:
    """Make a method by name.

    Args:
        name: see :func:`hauberk.list_methods`; with ``+awp`` behind it for adversarially perturbed weights.
        threat: what the adversary may do.
        preset: ``"paper"``, or ``"official"`` for the authors' public code where it differs.
        seed: of the random starts.
        precision: what the passes run on: "model", the model as it is; "fp32", for attacks in evaluation mode, a copy of it
            with BatchNorm folded, the same up to rounding; "bf16", such a copy in bfloat16, and autocast for the loss.
        compiled: run that copy by ``torch.compile``; costs seconds to minutes at the first step.
        **overrides: any setting of the attack (``steps``, ``step_size``, ``start``, ``loss``, ``mode``, ...), of the
            objective (``beta``, ...), of the weighting (``measure``, ``assign``, ``slope``, ``bias``, ``lam``, ``burn_in``,
            ...) or of the weight perturbation (``gamma``, ``awp_warmup``).

    Returns:
        The method; call it on each batch.

    Raises:
        UserError: for an unknown name or setting, with the nearest right one, and for a setting that makes no sense.

    Example:
        >>> from hauberk import Linf
        >>> method("mail-trades+awp", Linf("8/255"), measure="pm-nat")
        method('mail-trades+awp', Linf(8/255), burn_in=74)
    """
    recipe = get_method_spec(name)
    if preset not in ("paper", "official"):
        raise UserError(f"preset is 'paper' or 'official', not {preset!r}")
    objective = OBJECTIVES[recipe.objective]
    attack_settings = _ATTACK if recipe.attack else ()
    known = [*attack_settings, *objective.settings, *_WEIGHTING, *_AWP]
    for key in overrides:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
    chosen = (recipe.official if preset == "official" else {}) | overrides
    attack = None if recipe.attack is None else _changed(recipe.attack, chosen, _ATTACK)
    if attack is not None:
        parse_step(attack.step_size, threat)
    weighting = _changed(recipe.weighting, _with_partner(chosen, recipe.weighting), _WEIGHTING)
    if weighting.measure != "none" and attack is None:
        raise UserError(f"{name} does not attack, so there is nothing to weigh by")
    hyper = {**objective.settings, **recipe.settings, **{k: v for k, v in chosen.items() if k in objective.settings}}
    for key, value in hyper.items():
        if not isinstance(value, str):
            hyper[key] = _number(key, value)
    awp = replace(recipe.awp, **{field: chosen[key] for key, field in _AWP.items() if key in chosen})
    if awp.gamma and recipe.replays > 1:
        raise UserError(f"{name}: free training takes its input gradient from the backward pass that '+awp' makes its own")
    terms = partial(objective.terms, preset=preset, **hyper)
    choices = Choices(recipe, preset, attack, terms, weighting, awp)
    return Method(
        name, threat, choices, {"preset": preset, "seed": seed, **overrides}, sight=PrecisionPolicy(precision, compiled)
    )


def _changed(settings: T, chosen: dict[str, Any], names: tuple[str, ...]) -> T:
    return replace(settings, **{key: value for key, value in chosen.items() if key in names})


def _with_partner(chosen: dict[str, Any], weighting: Weighting) -> dict[str, Any]:
    """Where only the measure changes from margins to counts or back, change the function with it."""
    if "measure" not in chosen or "assign" in chosen:
        return chosen
    counts = chosen["measure"] in ("kappa", "lps")
    if counts == (weighting.assign != "sigmoid-of-margin"):
        return chosen
    return {**chosen, "assign": "tanh" if counts else "sigmoid-of-margin"}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{name} must be a number that is not negative, got {value!r}")
    return float(value)
