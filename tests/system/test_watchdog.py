"""A test that hangs so that Python cannot end it does not hang the whole run, and is named."""

import subprocess
import sys

from helpers import ROOT

PYPROJECT = ROOT / "pyproject.toml"
HANGS = """
import ctypes

def test_that_hangs():
    lock, of_c = ctypes.create_string_buffer(64), ctypes.PyDLL(None)  # calls that hold Python's lock
    of_c.pthread_mutex_lock(lock)
    of_c.pthread_mutex_lock(lock)

def test_behind_it():
    pass
"""


def test_a_test_that_holds_the_lock_is_ended_from_outside_by_name(tmp_path):
    (tmp_path / "test_hanging.py").write_text(HANGS)
    words = ["-c", PYPROJECT, "--rootdir", tmp_path, "-n", "1", "-o", "faulthandler_timeout=3", "-o", "timeout=2"]
    command = [sys.executable, "-m", "pytest", *map(str, words), str(tmp_path / "test_hanging.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "crashed while running 'test_hanging.py::test_that_hangs'" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
