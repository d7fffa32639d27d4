"""The settings that a method takes: read off its parts, so that no list of them has to be kept."""

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from importlib import import_module
from typing import Any, Literal, get_args

from hauberk.attacks import PGD
from hauberk.core.errors import UserError, find_name, unknown_name
from hauberk.core.step_context import BurnIn
from hauberk.methods.additions import WEIGHT_PERTURBATIONS
from hauberk.methods.table import MethodSpec
from hauberk.methods.weight_perturbation.awp import AWP
from hauberk.weighting import WEIGHTINGS
from hauberk.weighting.gairat import COUNTS, Gairat
from hauberk.weighting.mail import MARGINS, Mail

_NOT_OF_TRAINING = ("tau", "return_last", "evaluate_last", "targets")  # of PGD: training sets them itself
_NOT_SET = ("attack", "taus", "most")  # of how the attack is used: the row's
_SEES_LAST = "look at the last point of the attack, at one forward, too"
_PASSES = 'order of the passes of a step, such as ["attack", "clean", "adversarial"]'


@dataclass(frozen=True)
class Setting:
    """A setting of a method.

    Attributes:
        name: as :func:`hauberk.method` takes it.
        default: what the method has where nobody says otherwise; None where it has no such part, or nothing there.
        kind: the type of its values, as the code has it.
        about: what it is; empty where nothing but the code says so.
        part: what has it, such as "weighting".
    """

    name: str
    default: Any
    kind: Any
    about: str
    part: str


def list_settings(spec: MethodSpec, given: Collection[str] = ()) -> dict[str, Setting]:
    """Return every setting of a method by its name.

    Args:
        spec: row of the method.
        given: those parts that are passed whole ("attack", "objective", ...), and take no settings.
    """
    found = dict[str, Setting]()
    whole = "attack" not in given
    if spec.attack and whole:
        found |= _of_part(spec.attack, "attack", _NOT_OF_TRAINING)
    if "objective" not in given:
        found |= _of_part(spec.objective, "objective")
    if "weighting" in given:
        about = "number of epochs with weights 1, below 1 a part of the training, or first-drop"
        found["burn_in"] = Setting("burn_in", None, BurnIn, about, "weighting")
    elif isinstance(spec.weighting, Mail | Gairat | None):  # they can be exchanged, or put where there is none, by the measure
        mail, gairat = (
            {name: replace(one, default=None) for name, one in _of_part(kind, "weighting").items()}
            for kind in (Mail(), Gairat())
        )
        about = f"{mail['measure'].about}; {gairat['measure'].about}"
        either = replace(mail["measure"], kind=Literal[*MARGINS, *COUNTS], about=about)
        found |= gairat | mail | {"measure": either}
        found |= (
            {}
            if spec.weighting is None
            else _of_part(spec.weighting, "weighting") | {"measure": replace(either, default=spec.weighting.measure)}
        )
    else:
        found |= _of_part(spec.weighting, "weighting")
    if spec.targets and "targets" not in given:
        found |= _of_part(spec.targets, "targets")
    for term in spec.terms:
        found |= _of_part(term, "added term")
    if "weight_perturbation" not in given:
        own = _of_part(spec.awp or AWP(0.0), "weight perturbation")
        for key, field in names_of_perturbation(spec.awp).items():
            found[key] = replace(own[field], name=key, default=own[field].default if spec.awp else None)
    if whole:
        found |= {name: one for name, one in _of_inner(spec).items() if name not in found}
    return found | {"passes": Setting("passes", None, tuple[str, ...], _PASSES, "step")}


def named_parts(spec: MethodSpec, weighting: Any, weight_perturbation: Any) -> MethodSpec:
    """Return the row with the weighting and the weight perturbation that are given by a name, whose settings it then has.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    if isinstance(weighting, str):
        spec = replace(spec, weighting=WEIGHTINGS[find_name("weighting", weighting, WEIGHTINGS)])
    if isinstance(weight_perturbation, str):
        found = find_name("weight perturbation", weight_perturbation, WEIGHT_PERTURBATIONS)
        spec = replace(spec, awp=WEIGHT_PERTURBATIONS[found])
    return spec


def settings_of_builder(build: Any) -> dict[str, Setting]:
    """Return the settings of a method of the caller's own: the arguments of the function that builds it, but for the first.

    A function that does not say what it takes has none here.
    """
    try:
        arguments = list(inspect.signature(build).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}
    texts, empty = _texts(build), inspect.Parameter.empty
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        one.name: Setting(
            one.name, None if one.default is empty else one.default, one.annotation, texts.get(one.name, ""), "method"
        )
        for one in arguments
        if one.kind in kinds
    }


def check_names(name: str, spec: MethodSpec, given: Collection[str], settings: Collection[str]) -> None:
    """Refuse, by a UserError, settings of parts that the method does not have, or that were given whole."""
    known = list_settings(spec, given)
    parts = {"objective": spec.objective, "weighting": spec.weighting, "weight perturbation": spec.awp}
    for key in settings:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
        owners = [called for called, part in parts.items() if part is not None and key in names_of(part)]
        if len(owners) > 1:
            advice = f"pass the {owners[-1]} as an object"
            raise UserError(f"{key} is a setting of the {' and of the '.join(owners)} of {name}; {advice}")


def names_of_perturbation(part: Any) -> dict[str, str]:
    """Return the settings of a weight perturbation, with the field of each; AWP's where there is none yet."""
    return {"awp_warmup" if name == "warmup" else name: name for name in names_of(part or AWP)}


def names_of_inner(spec: MethodSpec) -> list[str]:
    """Return settings of how the attack is used; one that the objective has too is for both."""
    return [name for name in inspect.signature(spec.inner).parameters if name not in _NOT_SET]


def names_of_weighting(spec: MethodSpec) -> list[str]:
    """Return the settings of the weighting; MAIL's and GAIRAT's where it is one of these, or there is none."""
    if not isinstance(spec.weighting, Mail | Gairat | None):
        return names_of(spec.weighting)
    return list(dict.fromkeys([*names_of(Mail), *names_of(Gairat)]))


def names_of(part: Any) -> list[str]:
    """Return the settings of a part, which is a dataclass."""
    return [field.name for field in fields(part) if field.name != "preset"]


def _of_part(part: Any, called: str, without: Collection[str] = ()) -> dict[str, Setting]:
    texts = _texts(getattr(type(part), "function", None)) | _texts(type(part)) | (_texts(PGD) if called == "attack" else {})
    return {
        field.name: Setting(field.name, getattr(part, field.name), field.type, texts.get(field.name, ""), called)
        for field in fields(part)
        if field.name != "preset" and field.name not in without
    }


def _of_inner(spec: MethodSpec) -> dict[str, Setting]:
    """Settings of how the attack is used, with the defaults of what uses it; not of those that PGD has, too."""
    inner = spec.inner.func if isinstance(spec.inner, partial) else spec.inner
    texts, both = _texts(inner) | {"evaluate_last": _SEES_LAST}, names_of(PGD)
    found = dict[str, Setting]()
    for name in names_of_inner(spec):
        parameter = inspect.signature(spec.inner).parameters[name]
        default = None if parameter.default is inspect.Parameter.empty or name in both else parameter.default
        found[name] = Setting(name, default, parameter.annotation, texts.get(name, ""), "attack")
    found.pop("seed", None)  # the method's own
    return found


def _texts(thing: Any, deeper: int = 2) -> dict[str, str]:
    """What docstrings say of each attribute or argument of a class or function: its own, and those that it refers to."""
    said = inspect.getdoc(thing) or "" if thing is not None else ""
    found = dict[str, str]()
    in_one_line = " ".join(said.split())
    for room, path in re.findall(r"[Aa]s in :func:`(hauberk\.\w+)\.([\w.]+)`", in_one_line) if deeper else ():
        found |= _texts(reduce(getattr, path.split("."), import_module(room)), deeper - 1)
    sentences = re.findall(r"``(\w+)`` (?:of the \w+ )?is ((?:\([^)]*\)|[^.;(])+)", in_one_line)
    found |= {name: _plain(re.split(r", ``(?=\w)|, and ", text)[0]) for name, text in sentences}
    own: dict[str, list[str]] = {}
    for name, text in _entries(said.splitlines()):
        own.setdefault(name, []).append(text)
    return found | {name: _plain(" ".join(texts)) for name, texts in own.items()}


def _plain(text: str) -> str:
    return re.sub(r":\w+:`~?|`", "", text).strip().rstrip(".")


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each line of the sections "Args" and "Attributes" of a docstring, with the name that it is about."""
    inside, name = False, ""
    for line in lines:
        if line and not line.startswith(" "):
            inside, name = line.rstrip() in ("Args:", "Attributes:"), ""
        elif inside and line.strip():
            if begin := re.match(r"    \**(\w+): (.*)", line):
                name, line = begin[1], begin[2]
            if name:
                yield name, line.strip()


def words_of(kind: Any) -> str:
    """Return, in a word or a list of choices, what values of a type are; for command lines."""
    choices = [str(one) for one in get_args(kind) if isinstance(one, str)]
    if choices and len(choices) == len(get_args(kind)):
        return "|".join(choices)
    plain = {int: "INT", float: "FLOAT", bool: "true|false"}
    return plain.get(kind, "VALUE")
