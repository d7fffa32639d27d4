"""Real processes, killed and interrupted.

With ``--long`` some 200 kills: ``pytest --long tests/system/test_kill_resume.py``.
"""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict
from itertools import count

import pytest

import hauberk as hb
from hauberk.cli import main
from hauberk.core.io import read_json, write_json
from hauberk.core.lock import exclusive_lock
from hauberk.experiments.studies import StudyResult
from helpers import end_with_parent, long_or, saved_at, tiny_batch, tiny_net, weights

KILLS_OF_EACH = long_or(2, 34)  # of six commands

TINY = ["--epochs", "2", "--threads", "1", "--device", "cpu"]
FEW = ["--train-size", "60", "--test-size", "20", "--val-size", "10", "--val-steps", "1", "--model", "mlp"]
TRAIN = ["train", "--method", "trades", "--model", "mlp", "--val-size", "1400", "--val-steps", "1", "--batch-size", "8"]
TRAIN += ["--steps", "2", "--ema", "0.9", "--save-minutes", "1e-5", "--quiet"]  # saved at every step
# What each command is called with, given a trained run and the folder that it writes to; and what its work comes to.
COMMANDS = {
    "train": (
        lambda run, out: [*TRAIN, *TINY, "--out", out],
        weights,
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
        lambda run, out: ["report", run.with_name("mine.json"), "--out", out / "report.html", "--figures", out / "figures"],
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
        end_with_parent(signal.SIGKILL)
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
    found = StudyResult("some", None, [{"a": k, "b": k / 3} for k in range(9)], study="mine", claim="more")
    write_json(folder.with_name("mine.json"), asdict(found))  # which has no pictures: drawing takes seconds
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
        if os.WIFSIGNALED(status) or (name in ("compare", "study") and at and status):  # whose worker may be killed
            kills += 1
        else:
            assert status == 0, log.read_text()
            assert result(out) == whole
            shutil.rmtree(out)
    assert ended(begin(), 300) == 0, log.read_text()
    assert result(out) == whole
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.rglob("*.part"))


def test_two_trainings_in_one_folder_are_refused_and_a_dead_one_holds_nothing(tmp_path, capsys):
    out, log = tmp_path / "run", tmp_path / "log"
    resume = ["train", "--resume", str(out), "--quiet"]

    def saved_by(process):
        before = saved_at(out)
        while saved_at(out) == before:
            time.sleep(0.01)
            assert not os.waitpid(process, os.WNOHANG)[0], log.read_text()
        return process

    process = saved_by(fork([*TRAIN, "--epochs", "100000", "--threads", "1", "--out", out], out, log))
    assert main(resume) == 2
    assert "another process is at work" in capsys.readouterr().err
    ended(process, 0)
    process = saved_by(fork(resume, out, log))
    os.kill(process, signal.SIGTERM)
    assert os.WEXITSTATUS(ended(process, 60)) == 1
    assert "Stopped and saved" in log.read_text()


@pytest.mark.parametrize(
    ("holder", "age", "free"),
    [
        (f"{2**22} 0 {platform.node()}", 0, True),  # no process has this number
        (f"{os.getpid()} 0 {platform.node()}", 0, False),
        ("1 0 elsewhere", 0, False),
        ("1 0 elsewhere", 1000, True),
    ],
    ids=["dead", "alive", "alive elsewhere", "silent elsewhere"],
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
