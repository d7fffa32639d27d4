"""start.py: what an installation prints is shown if it fails, and only then."""

import importlib.util
import sys

import pytest

from helpers import ROOT


@pytest.fixture(scope="module")
def start():
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_noise_is_hidden(start, capfd):
    noise = "import sys; print('noise'); print('more', file=sys.stderr)"
    assert start.run_silently([sys.executable, "-c", noise], "pip is at work")
    assert capfd.readouterr() == ("", "")


def test_a_failure_shows_everything(start, capfd):
    fails = "import sys; print('noise'); sys.exit('no matching distribution')"
    assert not start.run_silently([sys.executable, "-c", fails], "pip is at work")
    assert "noise" in (said := capfd.readouterr().err)
    assert "no matching distribution" in said


def test_on_a_terminal_it_says_that_it_is_at_work(start, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    waits = iter([start.subprocess.TimeoutExpired("pip", 1), None])

    class Process:
        returncode = None

        def __init__(self, *words, **options):
            pass

        def poll(self):
            return self.returncode

        def wait(self, timeout):
            if problem := next(waits):
                raise problem
            self.returncode = 0

    monkeypatch.setattr(start.subprocess, "Popen", Process)
    assert start.run_silently(["pip"], "pip is at work")
    shown = capsys.readouterr().out
    assert "\rpip is at work: 0 s" in shown
    assert shown.endswith(" \r")
