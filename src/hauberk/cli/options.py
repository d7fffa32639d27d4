"""Turning arguments into frozen dataclasses. Groups of options that commands share are in ``hauberk.experiments.options``."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import tyro

from hauberk.core.errors import UserError, printable, shell_quoted

T = TypeVar("T")
_HELP = ("-h", "--help")


def parse(
    kind: type[T],
    name: str,
    arguments: Sequence[str],
    resolved: Callable[[T], T] | None = None,
    text: str | None = None,
    default: T | None = None,
) -> T:
    """Parse arguments into a dataclass; prints help or a mistake and exits (0 or 2) where tyro does.

    Args:
        kind: the dataclass.
        name: of the command.
        arguments: without program and command.
        resolved: completes options by what would be used for those that are not given; help shows that.
        text: what the command does, where the dataclass does not say it.
        default: what holds where arguments say nothing, where that is not the dataclass's.
    """
    program_name, config = f"hauberk {name}", (tyro.conf.OmitArgPrefixes,)
    asked = list(arguments)
    if resolved and asks_for_help(arguments):
        others = [argument for argument in arguments if argument not in _HELP]
        default, asked = resolved(parse(kind, name, others, text=text, default=default)), ["--help"]
    usual: Any = default
    parsed = tyro.cli(kind, prog=program_name, description=text, args=asked, default=usual, config=config)
    assert isinstance(parsed, kind)  # tyro types it by its default
    return parsed


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command is only to explain itself."""
    return not set(_HELP).isdisjoint(arguments)


def say(text: object, file: TextIO | None = None) -> None:
    """Print lines; whatever else than text is in names, from files of others or not, is written out."""
    print(printable(str(text), keep="\n"), file=file, flush=True)


def command(*words: object) -> str:
    """Return a command of this program as it can be typed."""
    return f"{program()} {shell_quoted(*words)}"


def program() -> str:
    """Return what to type to run this program again: its name where the shell finds it, otherwise its path, or torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
        return f"torchrun {'--nproc_per_node ' + os.environ['LOCAL_WORLD_SIZE'] if alone else '...'} -m hauberk"
    python = Path(sys.executable)
    if Path(sys.argv[0]).name == "__main__.py":  # python -m hauberk
        return f"{python.name if shutil.which(python.name) == str(python) else os.path.relpath(python)} -m hauberk"
    ours = python.parent / "hauberk"
    found = shutil.which("hauberk")
    if found and Path(found).parent == ours.parent:
        return "hauberk"
    return shell_quoted(os.path.relpath(ours)) if ours.exists() else f"{shell_quoted(sys.executable)} -m hauberk"


def common_parts(options: Any) -> dict[str, Any]:
    """Return those groups of a command's options that are parts of an experiment, too."""
    names = ("data", "subset", "threat", "model", "presets", "sources", "evaluation")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def key_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read an option's KEY=VALUE pairs, values as :func:`read_value`."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{option} takes KEY=VALUE, not {pair!r}")
        found[key] = read_value(value)
    return found


def read_value(text: str) -> Any:
    """Return a number, true, false or a list where a text reads as one in JSON, otherwise the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def as_text(value: Any) -> str:
    """Return the text that :func:`read_value` reads as this value."""
    return value if isinstance(value, str) else json.dumps(value)


def usual_folder(*names: str) -> Path:
    """Return the folder below ``runs`` that bears the names of data set, network or method."""
    from hauberk.core.io import plain_name

    return Path("runs") / "-".join(plain_name(Path(name).stem if name.endswith(".toml") else name) for name in names)


def free_folder(folder: Path) -> Path:
    """Return the folder, or with a number behind it the first one that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def print_rows(rows: dict[str, Any], in_json: bool, then: str) -> int:
    """Print names and what they are as a table, with what to do next below it, or as JSON."""
    from hauberk.core.io import as_json

    if in_json:
        print(as_json(rows))
        return 0
    width = max(map(len, rows))
    for name, what in rows.items():
        say(f"{name:<{width}}  {what}")
    say(then)
    return 0
