import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.attacks.presets import AUTOATTACK, PRESETS
from hauberk.data import TensorDataset

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
collect_ignore = ["fuzz_readers.py"]  # a program, which needs atheris


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def tiny_net(shape=(3, 8, 8), classes=5, seed=0, dropout=0.0):
    """A network with BatchNorm and, if asked, dropout: everything that an attack could disturb."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(shape[0], 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6 * shape[1] * shape[2], classes),
        )
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net


def tiny_batch(n=6, shape=(3, 8, 8), classes=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator, dtype=dtype), torch.randint(classes, (n,), generator=generator)


def few_images(name):
    """ExampleRng under the name of a data set."""
    return TensorDataset(torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8), 10, name)


def weights(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


def saved_at(folder):
    """When the checkpoint was written; 0 where there is none."""
    path = folder / "state.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_again_and_again(start, mark, kills, longest, victim=lambda process: process.pid):
    """Start a process, wait until it has written something, and kill -9 it at a random moment; so many times.

    start() returns the process, mark() what changes when it writes; longest is how many seconds it may go on after that;
    victim(process) is the process to kill. Returns what each one said, and how long it took to end.
    """
    ends = []
    chance = random.Random(0)
    for _ in range(kills):
        process, before = start(), mark()
        while process.poll() is None and mark() == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, longest))
        assert process.poll() is None, "the work ended before it could be killed"
        os.kill(victim(process), signal.SIGKILL)
        begun = time.monotonic()
        said, _ = process.communicate()
        ends.append((said, time.monotonic() - begun))
    return ends


def ranks_of(torchrun):
    """Process numbers of what torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it is gone, or not ours
            continue
        if parent == torchrun.pid:
            found |= {int(word[5:]): int(folder.name) for word in words if word.startswith(b"RANK=")}
    return found


@pytest.fixture
def short_autoattack(monkeypatch):
    """AutoAttack with a tenth of its steps, so that tests are quick."""
    for name in AUTOATTACK:
        preset = PRESETS[name]
        shorter = replace(preset.settings, steps=preset.settings.steps // 10)
        monkeypatch.setitem(PRESETS, name, replace(preset, settings=shorter))


@pytest.fixture(scope="session")
def digits():
    return {split: hb.data.load_data("digits", split) for split in ("train", "test")}
