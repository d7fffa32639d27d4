"""Real processes, killed and interrupted."""

import contextlib
import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

import hauberk as hb
from hauberk.core.lock import exclusive_lock
from helpers import kill_again_and_again, long_or, saved_at, tiny_batch, tiny_net, weights

KILLS = long_or(2, 20)

PROGRAM = """
import sys
from pathlib import Path
import torch
import hauberk as hb

y = torch.arange(200) % 5
x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.12 * y.view(-1, 1, 1, 1)
out, epochs = Path(sys.argv[1]), int(sys.argv[2])
how = {"epochs": epochs, "batch_size": 16, "val_size": 40, "val_steps": 2, "ema": 0.9, "save_minutes": 1e-4, "threads": 1}
resume = (out / "run.json").exists()
hb.train("small-cnn", (x, y), method="trades", threat=hb.Linf("8/255"), out=out, resume=resume, quiet=True, **how)
"""


def start(folder, epochs):
    words = [sys.executable, "-c", PROGRAM, str(folder), str(epochs)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def test_training_survives_kill_minus_nine(tmp_path):
    epochs = 2 + 2 * KILLS
    finish(start(tmp_path / "whole", epochs))
    killed = tmp_path / "killed"
    kill_again_and_again(lambda: start(killed, epochs), lambda: saved_at(killed), KILLS, 0.3)
    finish(start(killed, epochs))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_two_trainings_in_one_folder_are_refused_and_a_dead_one_holds_nothing(tmp_path):
    process = start(tmp_path / "run", 1000)
    while not saved_at(tmp_path / "run"):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
    said, _ = start(tmp_path / "run", 1000).communicate(timeout=100)
    assert "another process is at work" in said
    process.send_signal(signal.SIGKILL)
    process.wait()
    again, before = start(tmp_path / "run", 1000), saved_at(tmp_path / "run")
    while saved_at(tmp_path / "run") == before:
        time.sleep(0.01)
        assert again.poll() is None, again.communicate()[0]
    again.send_signal(signal.SIGTERM)
    finish(again)


@pytest.mark.parametrize(
    ("holder", "age", "free"),
    [
        (f"{2**22} 0 {platform.node()}", 0, True),  # no process has this number
        (f"{os.getpid()} 0 {platform.node()}", 0, False),
        ("1 0 elsewhere", 0, False),
        ("1 0 elsewhere", 1000, True),
    ],
)
def test_where_there_are_no_locks_a_dead_holder_is_noticed(holder, age, free, tmp_path, monkeypatch):
    def missing(*words):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with exclusive_lock(tmp_path), pytest.raises(hb.UserError, match="another process is at work"), exclusive_lock(tmp_path):
        pass
    marker = tmp_path / ".lock.held"
    assert not marker.exists()
    marker.write_text(holder)
    os.utime(marker, (time.time() - age,) * 2)
    with contextlib.nullcontext() if free else pytest.raises(hb.UserError, match="at work"), exclusive_lock(tmp_path):
        assert free
        assert marker.read_text() != holder
    assert marker.exists() != free
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", ".lock.held"}


def test_two_evaluations_in_one_folder_are_refused(tmp_path):
    how = {"threat": hb.Linf(0.01), "attacks": ["fgsm"], "diagnostics": "cheap", "quiet": True, "out": tmp_path}
    with exclusive_lock(tmp_path, ".lock-0"), pytest.raises(hb.UserError, match="another process is at work"):
        hb.evaluate(tiny_net(), tiny_batch(20), **how)
    assert hb.evaluate(tiny_net(), tiny_batch(20), **how).n == 20
