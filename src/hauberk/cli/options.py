"""Turning arguments into frozen dataclasses."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig

T = TypeVar("T")

_OF_A_RUN = ("seed", "threads", "device")


def parse(kind: type[T], name: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Parse arguments into a dataclass; prints help or a mistake and exits (0 or 2) where tyro does.

    Args:
        kind: the dataclass.
        name: of the command.
        arguments: without program and command.
        default: values of what is not given.
    """
    parsed = tyro.cli(
        kind,
        prog=f"hauberk {name}",
        args=list(arguments),
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    assert isinstance(parsed, kind)  # tyro types it by its default
    return parsed


def program() -> str:
    """Return what to type to run this program again: its name where the shell finds it, otherwise its path, or torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
        return f"torchrun {'--nproc_per_node ' + os.environ['LOCAL_WORLD_SIZE'] if alone else '...'} -m hauberk"
    ours = Path(sys.executable).parent / "hauberk"
    found = shutil.which("hauberk")
    if found and Path(found).parent == ours.parent:
        return "hauberk"
    return os.path.relpath(ours) if ours.exists() else f"{sys.executable} -m hauberk"


def peek(arguments: Sequence[str], option: str, default: str) -> str:
    """Look ahead at the value of one option, whose choice sets the defaults of others."""
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(option + "="):
            return argument.split("=", 1)[1]
    return default


def given_settings(settings: TrainConfig, default: TrainConfig) -> dict[str, Any]:
    """Return the training settings that differ from what was offered, but for seed, threads and device."""
    given, offered = vars(settings), vars(default)
    return {name: value for name, value in given.items() if value != offered[name] and name not in _OF_A_RUN}


def key_values(option: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read an option's KEY=VALUE pairs; a value is a number where it reads as one, otherwise text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{option} takes KEY=VALUE, not {pair!r}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
