#!/usr/bin/env python3
"""Sets everything up by itself, then runs the demo or the tests. Needs Python 3.11 or newer and nothing else.

    python3 start.py demo    train robust classifiers on real data, attack and certify them, compare them, write a report
    python3 start.py test    everything that checks the project: lint, format, types, imports, docs, tests
    python3 start.py test --long    the same with each test in its long form

What it installs goes into .venv beside this file, once, and again when the requirements change.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
TORCH = HERE / "requirements" / "torch.txt"
FROZEN = HERE / "requirements" / "frozen.txt"

CHECKS = {
    "lint": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "types": ["-m", "mypy"],
    "imports": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
    "docs": ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "build/docs"],
}
TESTS = ["-m", "pytest", "-n", "auto"]


def install(extra: str, constraints: Path) -> None:
    """Make .venv with the package in it, unless it is there already."""
    inputs = [HERE / "pyproject.toml", constraints]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in inputs) + sys.version.encode()).hexdigest()
    mark = VENV / f"installed-{extra or 'core'}"
    if mark.exists() and mark.read_text() == wanted:
        return
    print(f"Setting up {VENV} (once; about a minute, 1.5 GB)", flush=True)
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit("start.py: cannot make a virtual environment; on Debian and Ubuntu install python3-venv first")
    target = f"{HERE}[{extra}]" if extra else str(HERE)
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-c", constraints, "-e", target]
    if not run_silently(command, "pip is at work"):
        sys.exit("start.py: the installation failed; see pip's message above")
    mark.write_text(wanted)


def run_silently(command: list, what: str) -> bool:
    """Run a command whose output is shown if it fails, and only then; say now and then for how long it has been at work."""
    on_terminal, begun = sys.stdout.isatty(), time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                process.wait(timeout=1 if on_terminal else 15)
            except subprocess.TimeoutExpired:
                took = f"{what}: {time.monotonic() - begun:.0f} s"
                print(f"\r{took}" if on_terminal else took, end="" if on_terminal else "\n", flush=True)
        if on_terminal:
            print("\r" + " " * (len(what) + 12), end="\r", flush=True)
        if process.returncode:
            said.seek(0)
            print(said.read().decode(errors="replace"), file=sys.stderr)
    return not process.returncode


def demo() -> int:
    """Install and run ``hauberk demo``."""
    install("", TORCH)
    return subprocess.run([PYTHON, "-m", "hauberk", "demo", *sys.argv[2:]], check=False).returncode


def test(*options: str) -> int:
    """Install and run every check; the last line says how it went."""
    install("test", FROZEN)
    failed = []
    # Side by side, since each takes one core only; the tests then take all cores.
    started = {
        name: subprocess.Popen([PYTHON, *command], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in CHECKS.items()
    }
    for name, process in started.items():
        said, _ = process.communicate()
        print(f"== {name}", said, sep="\n", end="", flush=True)
        if process.returncode:
            failed.append(name)
    print("== tests", flush=True)
    if subprocess.run([PYTHON, *TESTS, *options], cwd=HERE, check=False).returncode:
        failed.append("tests")
    done = f"all checks passed ({', '.join([*CHECKS, 'tests'])})"
    print(f"start.py: {', '.join(failed)} failed" if failed else f"start.py: {done}")
    return 1 if failed else 0


def main() -> int:
    """Run what was asked for."""
    if sys.version_info < (3, 11):  # noqa: UP036 (pip has not checked it yet)
        sys.exit(f"start.py: Hauberk needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    wanted = sys.argv[1:]
    if wanted[:1] == ["demo"]:
        return demo()
    if wanted in (["test"], ["test", "--long"]):
        return test(*wanted[1:])
    print(__doc__)
    return 0 if wanted in ([], ["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main())
