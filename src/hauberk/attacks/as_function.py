"""Attacks as functions: ``pgd(model, x, y, threat, steps=10)``."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from hauberk.attacks.base import Attack, run_attack
from hauberk.attacks.state import AttackResult
from hauberk.core.errors import unknown_name
from hauberk.core.random import ExampleRng
from hauberk.threat import ThreatModel


def as_function(attack: type[Attack[Any]], name: str, summary: str, **defaults: Any) -> Callable[..., AttackResult]:
    """Return the function that makes an attack of its settings and calls it, with their names, defaults and description.

    Args:
        attack: its class, a dataclass.
        name: of the function.
        summary: what its description begins with.
        **defaults: settings that have other defaults than in the class.
    """
    settings = {f.name: defaults.get(f.name, f.default) for f in fields(attack) if not f.kw_only}  # type: ignore[arg-type]

    def function(
        model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int | ExampleRng = 0, **more: Any
    ) -> AttackResult:
        given = {key: more.pop(key) for key in settings if key in more}
        for key in more:
            if key not in _FURTHER:
                raise unknown_name(f"setting of {name}", key, (*settings, *_FURTHER))
        return attack(**defaults | given)(model, x, y, threat, seed=seed, **more)

    *batch, seed, more = inspect.signature(function).parameters.values()
    keywords = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in settings.items()]
    function.__signature__ = inspect.Signature([*batch, *keywords, seed, more])  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    function.__module__ = attack.__module__
    described = inspect.cleandoc(attack.__doc__ or "").partition("Attributes:\n")[2]
    function.__doc__ = _DOC.format(summary=inspect.cleandoc(summary), attack=attack.__name__, settings=described.rstrip())
    return function


_FURTHER = tuple(
    key for key, one in inspect.signature(run_attack).parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY
)

_DOC = """{summary}

A call of :class:`{attack}` with these settings.

Args:
    model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
    x: clean inputs, (B, ...), inside the box.
    y: labels, (B,), integers.
    threat: ball and box.
{settings}
    seed: of all random draws: an integer, or an ``ExampleRng`` keyed by example.
    **more: further arguments of :func:`hauberk.attacks.run_attack`.

Returns:
    AttackResult with ``x_adv`` (B, ...) inside the threat model.

Raises:
    UserError: if the settings make no sense or do not fit the inputs.
"""
