"""A method by name on named data and a named network: with what is published for it there."""

from typing import Any

from hauberk.methods.method import Method
from hauberk.methods.registry import method
from hauberk.threat import ThreatModel
from hauberk.training.published import find_published


def published_method(
    name: str, threat: ThreatModel, data: str, model: str, *, preset: Any = "paper", recipe: str = "published", **given: Any
) -> Method:
    """Make a method with the settings that :func:`hauberk.training.published.find_published` has for it.

    Everything that trains by the name of a method makes it here, so that what is announced as published is what is used.

    Args:
        name: of the method.
        threat: what the adversary may do.
        data: name of the data set.
        model: name of the network.
        preset: "paper" or "official".
        recipe: "published" or "express".
        **given: further arguments of :func:`hauberk.method`; they win over what is published.

    Raises:
        UserError: as :func:`hauberk.method`.
    """
    found = find_published(data, model, name, preset, recipe)
    return method(name, threat, preset=preset, **{**found.method, **given})
