"""Training on several real processes under torchrun, against one process."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import hauberk as hb
from conftest import tiny_net
from hauberk.crew import ALONE, Crew

METHODS = [*hb.list_methods(), "at+awp", "mart+awp", "mail-trades+awp"]


class Frozen(nn.Module):
    """A network in float64 whose BatchNorm never looks at the batch."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net(classes=6).double()
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.net[1].eval()
        return self

    def forward(self, x):
        return self.net(x)


def data(n=120):
    y = torch.arange(n) % 5
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.12 * y.view(-1, 1, 1, 1)
    return x, y


def twenty_steps(name):
    """21 steps on batches of 15, so that the parts differ in size. Returns weights and metrics."""
    settings = {"burn_in": 0} if hb.method(name, hb.Linf("8/255")).choices.weighting.measure != "none" else {}
    method = hb.method(name, hb.Linf("8/255"), **settings)
    how = {"epochs": 3, "batch_size": 15, "val_size": 20, "val_steps": 2, "lr": 0.05, "ema": 0.9, "weight_decay": 0.01}
    run = hb.train(Frozen(), data(), method=method, quiet=True, threads=1, **how)
    clock = ("seconds", "examples_per_second")
    return run.model.state_dict(), [{k: v for k, v in row.items() if k not in clock} for row in run.metrics]


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
import hauberk as hb
import test_parallel
torch.set_num_threads(1)
with hb.joined_crew() as crew:
    {work}
"""


def start(folder, work, processes=2):
    """Run lines of Python on several processes."""
    script = folder / "work.py"
    script.write_text(PROGRAM.format(tests=str(Path(__file__).parent), work=work))
    return launch([str(script)], processes)


def launch(words, processes=2):
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")} | {"OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *torchrun, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said[-3000:]
    return said


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_weights_of_one(tmp_path, processes):
    names = METHODS if processes == 2 else ["mail-trades+awp", "gairat", "mma"]
    work = f"found = {{name: test_parallel.twenty_steps(name) for name in {names}}}\n"
    work += f"    crew.first and torch.save(found, {str(tmp_path / 'found.pt')!r})"
    finish(start(tmp_path, work, processes))
    found = torch.load(tmp_path / "found.pt")
    for name in names:
        weights, rows = twenty_steps(name)
        for key, value in weights.items():
            assert (value - found[name][0][key]).abs().max() < 1e-5, (name, key)
        for one, many in zip(rows, found[name][1], strict=True):
            assert many == pytest.approx(one, abs=1e-6), name
