"""Real processes, killed and interrupted."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from itertools import count

import pytest

import hauberk as hb
from hauberk.cli import main
from hauberk.core.io import read_json
from hauberk.core.lock import exclusive_lock
from helpers import kill_again_and_again, long_or, saved_at, tiny_batch, tiny_net, weights

KILLS = long_or(2, 20)
KILLS_OF_EACH = long_or(2, 34)  # of six commands

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


TINY = ["--epochs", "2", "--threads", "1", "--device", "cpu"]
FEW = ["--train-size", "60", "--test-size", "20", "--val-size", "10", "--val-steps", "1", "--model", "mlp"]
# What each command is called with, given a trained run and the folder that it writes to; and what its work comes to.
COMMANDS = {
    "train": (
        lambda run, out: ["train", "--model", "mlp", "--val-size", "1400", "--val-steps", "1", *TINY, "--out", out],
        lambda out: weights(out),
    ),
    "evaluate": (
        lambda run, out: [
            *("evaluate", run, "--attacks", "fgsm", "pgd-20", "--diagnostics", "cheap", "--n", "100", "--threads", "1"),
            *("--save-adversarials", "--out", out),
        ],
        lambda out: (read_json(out / "evaluation.json")["examples"], (out / "adversarials.npy").read_bytes()),
    ),
    "compare": (
        lambda run, out: ["compare", "--methods", "at", "--trials", "1", "--attacks", "fgsm", *FEW, *TINY, "--out", out],
        lambda out: read_json(out / "comparison.json"),
    ),
    "study": (
        lambda run, out: ["study", "lps-vs-pm", *FEW, *TINY, "--out", out],
        lambda out: read_json(out / "lps-vs-pm.json"),
    ),
    "report": (
        lambda run, out: ["report", run, "--out", out / "report.html", "--figures", out / "figures"],
        lambda out: (
            (out / "report.html").read_text().endswith("</html>\n"),
            {path.name: path.stat().st_size > 0 for path in (out / "figures").iterdir()},
        ),
    ),
    "export": (
        lambda run, out: ["export", run, out / "model.safetensors"],
        lambda out: (out / "model.safetensors").read_bytes(),
    ),
}


def fork(words, folder, log, at=0):
    """Start a command in a copy of this process, which is quick; it kills itself at its at-th file operation in the folder."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        left, forked = count(at or 10**9, -1), multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda kind: forked  # as spawned processes would have to import torch

        def watch(event, values):
            writes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate") or (event == "open" and values[2] & 3)
            if writes and str(values[0]).startswith(str(folder)) and next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        os._exit(main(list(map(str, words))))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def ended(process, seconds):
    """The exit status of a process, killed if it does not end within so many seconds; nothing that it has started stays."""
    deadline, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < deadline:
        done, found = os.waitpid(process, os.WNOHANG)
        status = found if done else time.sleep(0.005)
    if status is None:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:  # workers end by themselves
            os.killpg(process, 0)
            time.sleep(0.01)
        os.killpg(process, signal.SIGKILL)
        raise AssertionError("a worker has outlived the process that started it")
    return status


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    assert main(["train", "--model", "mlp", "--val-size", "1000", *TINY, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_survives_kill_minus_nine_at_any_moment(name, run, tmp_path):
    words, result = COMMANDS[name]
    out, log, chance = tmp_path / "out", tmp_path / "log", random.Random(name)

    def begin(at=0):
        goes_on = name == "train" and (out / "run.json").exists()
        return fork(["train", "--resume", out] if goes_on else words(run, out), out, log, at)

    begun = time.monotonic()
    assert ended(begin(), 300) == 0, log.read_text()
    longest, whole = time.monotonic() - begun, result(out)
    shutil.rmtree(out)
    kills = 0
    while kills < KILLS_OF_EACH:
        at = chance.choice([0, chance.randrange(1, 20)])  # at a random moment, or before one of the first file operations
        status = ended(begin(at), 300 if at else chance.uniform(0, longest))
        if os.WIFSIGNALED(status) or (name == "compare" and at and status):  # whose worker may be the one that is killed
            kills += 1
        else:
            assert status == 0, log.read_text()
            assert result(out) == whole
            shutil.rmtree(out)
    assert ended(begin(), 300) == 0, log.read_text()
    assert result(out) == whole
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.rglob("*.part"))


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
