"""``hb.method``, which makes a method by its name: a row of the table, and what is added to it behind a "+"."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError, find_name, in_one_line
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.numerics import Precision
from hauberk.core.step_context import MeasuredWeighting
from hauberk.methods.additions import ADDITIONS
from hauberk.methods.method import Method
from hauberk.methods.networks import find_teacher
from hauberk.methods.settings import (
    Setting,
    check_names,
    list_settings,
    named_parts,
    names_of,
    names_of_inner,
    names_of_perturbation,
    names_of_weighting,
    settings_of_builder,
)
from hauberk.methods.table import METHODS, MethodSpec
from hauberk.methods.weight_perturbation.awp import AWP
from hauberk.objectives import Regularized
from hauberk.threat import Threat, ThreatModel, as_threat
from hauberk.weighting.gairat import COUNTS, Gairat
from hauberk.weighting.mail import MARGINS, Mail

_NAMED = ("weighting", "weight_perturbation")  # parts that have names of their own
_BUILDERS: dict[str, Callable[..., Method]] = {}  # methods of the caller's own


@checked
def get_method_spec(name: str) -> MethodSpec:
    """Return the row of a method, with what the name has behind a "+", such as ``+awp``.

    Raises:
        UserError: if there is none of that name, with the nearest one.
    """
    base, *additions = find_method(name).split("+")
    if base not in METHODS:
        raise UserError(f"{base!r} is no row of the table of methods, but built by a function")
    spec = METHODS[base]
    for addition in reversed(additions):  # the weight perturbation first: ADR has other constants with it
        spec = ADDITIONS[addition](base, spec)
    return spec


def find_method(name: str) -> str:
    """Return the name of a method as the table has it, whatever its case; an import path is left as it is.

    Raises:
        UserError: if there is none of that name, with the nearest one.
    """
    if is_import_path(name):
        return name
    base, *additions = name.split("+")
    added = [addition.lower() for addition in additions]
    for addition in added:
        if addition not in ADDITIONS or added.count(addition) > 1:
            known = " and ".join(f"'+{one}'" for one in ADDITIONS)
            raise UserError(f"what can be added to a method, once, is {known}, not {'+' + addition!r:.60}")
    return "+".join([find_name("method", base, [*METHODS, *_BUILDERS]), *sorted(added, key=list(ADDITIONS).index)])


@checked
def register_method(name: str, build: Callable[..., Method]) -> None:
    """Give a method of your own a name, for :func:`hauberk.method` and everything that takes one.

    Args:
        name: that no method has yet, without "+" and ":".
        build: ``build(threat, **settings) -> Method``; the first line of its description is what lists show.

    Raises:
        UserError: if the name is taken, or no name.
    """
    if name in METHODS or name in _BUILDERS or not name or "+" in name or ":" in name:
        raise UserError(f"{name!r} is no free name for a method")
    _BUILDERS[name] = build


def list_methods() -> dict[str, str]:
    """Return every method's name with one line on what it is and where it comes from; rows take ``ADDITIONS``, too."""
    rows = {name: f"{spec.summary} ({spec.source})" for name, spec in METHODS.items()}
    own = {name: (build.__doc__ or "registered by the caller").strip().splitlines()[0] for name, build in _BUILDERS.items()}
    return rows | own


@checked
def default_settings(name: str, preset: str = "paper", **parts: Any) -> dict[str, Any]:
    """Return what a method has where nobody says otherwise, by the names that :func:`method` takes.

    Args:
        name: of the method.
        preset: as :func:`method` takes it.
        **parts: those that are given in place of the row's, as :func:`method` takes them; their own settings are then left out,
            unless they are given by one of Hauberk's names.

    Raises:
        UserError: as :func:`get_method_spec`.
    """
    known = method_settings(name, **parts)
    own = {key: setting.default for key, setting in known.items() if setting.default is not None}
    return own | {key: value for key, value in get_method_spec(name).changes(preset).items() if key in known}


@checked
def method_settings(name: str, **parts: Any) -> dict[str, Setting]:
    """Return every setting that a method takes, by name; arguments as in :func:`default_settings`.

    Of a method of your own, given by its import path or registered, these are the arguments of the function that builds it.

    Raises:
        UserError: as :func:`get_method_spec`.
    """
    name = find_method(name)
    if is_import_path(name) or name in _BUILDERS:
        build = import_object(name, "method") if is_import_path(name) else _BUILDERS[name]
        return settings_of_builder(build)
    named = {key: parts[key] for key in _NAMED if isinstance(parts.get(key), str) and not is_import_path(parts[key])}
    spec = named_parts(get_method_spec(name), named.get("weighting"), named.get("weight_perturbation"))
    return list_settings(spec, parts.keys() - named.keys())


@checked
def method(
    name: str,
    threat: "ThreatModel | Sequence[ThreatModel]",  # as_threat checks it
    *,
    preset: str = "paper",
    seed: int = 0,
    precision: Precision = "model",
    compiled: bool = False,
    attack: Any = None,
    objective: Any = None,
    weighting: Any = None,
    weight_perturbation: Any = None,
    targets: Any = None,
    label_smoothing: float = 0.0,
    teacher: Any = None,
    helper: Any = None,
    **overrides: Any,
) -> Method:
    """Make a method by name.

    Args:
        name: see :func:`hauberk.list_methods`; with ``+awp`` behind it for adversarially perturbed weights, ``+adr`` for labels
            softened by the network's moving average, ``+gradalign``, ``+elle`` or ``+elle-a`` against catastrophic overfitting;
            or the import path of a function of your own, ``package.module:build``, called as ``build(threat, **settings)``.
        threat: what the adversary may do; several threat models for methods that train under several.
        preset: ``"paper"``, or ``"official"`` for the authors' public code where it differs; some methods have a further one:
            ``mart`` has ``"note"``, ``score`` has ``"clipped"``, ``rebat`` has ``"++"``.
        seed: of the random starts.
        precision: what the passes run on: "model", the model as it is, under torch's switches as they are; "fp32", for attacks
            in evaluation mode, a copy of it with BatchNorm fused, the same up to rounding, and true float32 in all passes;
            "tf32", the same with TF32 allowed on CUDA; "bf16", a copy in bfloat16, and autocast for the loss.
            ``loss.backward()`` is yours: put it, or the whole step, into ``hb.float32_mode(precision)`` for the same there.
        compiled: run that copy by ``torch.compile``, which costs 20 to 60 s at the first step, and as much again where the
            method needs passes without gradients (a second graph). A copy of another model begins with an empty compiler
            (``torch.compiler.reset``), so that no CUDA graphs pile up.
        attack: in place of the row's; this and the next three as :class:`hauberk.Method` takes them, or their import paths.
        objective: in place of the row's.
        weighting: in place of the row's; one of ``hauberk.weighting.WEIGHTINGS`` by its name, too.
        weight_perturbation: in place of the row's; one of ``hauberk.methods.WEIGHT_PERTURBATIONS`` by its name, too.
        targets: in place of the row's.
        label_smoothing: α of the loss, as :class:`hauberk.Method` takes it.
        teacher: the trained network that a distillation, or any part that asks it, learns from: a module; the folder of a run
            or an exported file, as :func:`hauberk.load` reads it; or the import path of a module or of what makes one.
        helper: the same, by the name that it has in HAT.
        **overrides: any setting of the attack (``steps``, ``step_size``, ``start``, ``loss``, ``mode``, ...), of the
            objective (``beta``, ...), of the weighting (``measure``, ``kind``, ``slope``, ``bias``, ``lam``, ``burn_in``,
            ...), of the weight perturbation (``gamma``, ``rho``, ``awp_warmup``, ...) or of ADR (``ema_decay``,
            ``lambda_end``, ...); ``passes`` as :class:`hauberk.Method` takes them; and ``evaluate_last``, whether the attack
            looks at its last point.

    Returns:
        The method; call it on each batch.

    Raises:
        UserError: for an unknown name or setting, with the nearest right one, and for a setting that makes no sense.

    Example:
        >>> from hauberk import Linf
        >>> method("mail-trades+awp", Linf("8/255"), measure="pm-nat")
        method('mail-trades+awp', Linf(8/255), burn_in=74)
    """
    name, threat = find_method(name), as_threat(threat)
    given = {"attack": attack, "objective": objective, "weighting": weighting, "weight_perturbation": weight_perturbation}
    if teacher is not None and helper is not None:
        raise UserError("teacher and helper are two names of one thing; give one of them")
    given |= {"targets": targets, "label_smoothing": label_smoothing or None, "teacher": helper if teacher is None else teacher}
    given = {key: value for key, value in given.items() if value is not None}
    settings = {"preset": preset, "seed": seed, **given, **overrides}
    parts, overrides = ({key: _imported(key, value) for key, value in some.items()} for some in (given, overrides))
    if is_import_path(name):
        return _built(import_object(name, "method"), name, threat, {k: v for k, v in settings.items() if k != "preset"})
    if name in _BUILDERS:
        return _built(_BUILDERS[name], name, threat, {k: v for k, v in settings.items() if k != "preset" or v != "paper"})
    spec = named_parts(get_method_spec(name), parts.get("weighting"), parts.get("weight_perturbation"))
    parts = {key: part for key, part in parts.items() if key not in _NAMED or not isinstance(part, str)}
    check_names(name, spec, parts, overrides)
    chosen: dict[str, Any] = {"preset": preset, "seed": seed} | spec.changes(preset) | overrides
    used = {key: chosen[key] for key in names_of_inner(spec) if key in chosen}
    goal = parts.get("objective", _changed(spec.objective, chosen))
    made = Method(
        threat,
        parts.get("attack", spec.attack and spec.inner(_changed(spec.attack, chosen), **used)),
        Regularized(goal, *(_changed(term, chosen) for term in spec.terms)) if spec.terms else goal,
        parts["weighting"] if "weighting" in parts else _weighting(name, spec, chosen),
        parts.get("weight_perturbation", _perturbation(spec, chosen)),
        targets=parts.get("targets", spec.targets and _changed(spec.targets, chosen)),
        label_smoothing=parts.get("label_smoothing", 0.0),
        teacher=find_teacher(parts["teacher"]) if "teacher" in parts else None,
        name=name,
        settings=settings,
        seed=seed,
        precision=precision,
        compiled=compiled,
        burn_in=chosen.get("burn_in"),
        passes=chosen.get("passes", ("attack",)),
    )
    made.burn_in_is_chosen = "burn_in" in overrides or ("weighting" in parts and isinstance(made.burn_in, int))
    return made


def _imported(key: str, value: Any) -> Any:
    """Import a part, or the loss of the attack, that is given by its import path."""
    return import_object(value, key) if isinstance(value, str) and is_import_path(value) else value


def _built(build: Callable[..., Method], name: str, threat: Threat, settings: dict[str, Any]) -> Method:
    """Build a method of the caller's own, or raise UserError if it is none."""
    seed = settings.pop("seed")
    try:
        inspect.signature(build).bind(threat, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be built as build(threat, {', '.join(settings)}): {in_one_line(error)}") from error
    made = build(threat, **settings)
    if not isinstance(made, Method):
        raise UserError(f"{name} must build an hb.Method, it returned {type(made).__name__}")
    made.name, made.seed, made.settings = name, seed, {"seed": seed, **settings}
    return made


def _changed(part: Any, chosen: dict[str, Any]) -> Any:
    """Replace the fields of a dataclass that are among the settings."""
    return replace(part, **{f.name: chosen[f.name] for f in fields(part) if f.name in chosen})


def _weighting(name: str, spec: MethodSpec, chosen: dict[str, Any]) -> MeasuredWeighting | None:
    """The weighting, of the kind that its measure asks for: MAIL's of margins, GAIRAT's of counts."""
    preset = {"preset": "official" if chosen["preset"] == "official" else "paper"}
    if not isinstance(spec.weighting, Mail | Gairat | None):
        other: MeasuredWeighting = _changed(spec.weighting, chosen | preset)
        return other
    own = [key for key in chosen if key in names_of_weighting(spec)]
    measure = chosen.get("measure", getattr(spec.weighting, "measure", None))
    if measure is None:
        if own:
            raise UserError(f"{name} has no weighting for {own[0]!r} to set; give measure=, too")
        return None
    if not callable(measure) and measure not in (*MARGINS, *COUNTS):
        raise UserError(f"measure is one of {', '.join((*MARGINS, *COUNTS))}, or a function, not {shown(measure)}")
    kind: type[Mail] | type[Gairat] = Gairat if measure in COUNTS else Mail
    for key in own:
        if key not in names_of(kind):
            raise UserError(f"a weighting by {shown(measure)} has no {key!r}; it has {', '.join(sorted(names_of(kind)))}")
    made: MeasuredWeighting = _changed(spec.weighting if isinstance(spec.weighting, kind) else kind(), chosen | preset)
    return made


def _perturbation(spec: MethodSpec, chosen: dict[str, Any]) -> Any:
    """The weight perturbation, or None."""
    part = spec.awp or AWP(0.0)
    own = {field: chosen[key] for key, field in names_of_perturbation(part).items() if key in chosen}
    made = replace(part, **own)
    return None if isinstance(made, AWP) and not made.gamma else made
