"""What several tests share: small networks and data, what a model looks like from outside, and processes that are killed."""

import ctypes
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

import hauberk as hb
from hauberk.core.io import read_state
from hauberk.core.random import ExampleRng
from hauberk.data import TensorDataset, as_dataset
from hauberk.methods import METHODS

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # data and networks that are not in the repository; tests that need them are skipped without
CHECKPOINTS, MNIST = SHARED / "checkpoints", SHARED / "data"
THREAT = hb.Linf("8/255")
SHAPE = (3, 8, 8)
LONG = False  # whether the option --long was given; conftest.py sets it before any test module is imported
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def require_success(returncode, said):
    """Check that processes did their work: gloo sometimes aborts while the interpreter ends, though all of it is done."""
    aborted = "terminate called without an active exception" in said and "[rank" not in said
    assert returncode == 0 or aborted, said[-3000:]


def long_or(short, long):
    """A size for the usual form of a test, and one for its long form (pytest --long)."""
    return long if LONG else short


def made_once(tmp_path_factory, name, make):
    """Return a folder that the first process of a test run fills with make(folder), and all others only read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (done := folder.with_name(f"{name}.done")).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


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


def further(name, shape=(3, 8, 8), classes=5, sure=50):
    """Settings of a method by name for a test that is about all of them: a small teacher, where it needs one."""
    base = name.split("+")[0]
    if base not in METHODS or not METHODS[base].needs_teacher:
        return {}
    teacher = tiny_net(shape, classes, seed=9)
    with torch.no_grad():
        teacher[-1].weight.mul_(sure)  # by which it is sure of its answers
    return {"teacher": teacher}


def tiny_batch(n=6, shape=(3, 8, 8), classes=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator, dtype=dtype), torch.randint(classes, (n,), generator=generator)


def sound(n=60, dtype=torch.float32, shape=(3, 8, 8), classes=5):
    """A network and inputs that it classifies right."""
    model = tiny_net(shape, classes=classes, seed=2).to(dtype).eval()
    x, _ = tiny_batch(n, shape, dtype=dtype)
    return model, x, model(x).argmax(1)


def few_images(name):
    """A few random images under the name of a data set."""
    return TensorDataset(torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8), 10, name)


def easy_data(n=60, classes=5, seed=0):
    """Images whose class is plain to see."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.rand(n, *SHAPE, generator=generator) * 0.3 + 0.12 * y.view(-1, 1, 1, 1)
    return x, y


class Signalling:
    """A data set that asks the run to stop when it fetches its k-th batch."""

    def __init__(self, whole, at):
        self.whole, self.at, self.fetched = as_dataset(whole), at, 0

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        self.fetched += 1
        if self.fetched == self.at:
            signal.raise_signal(signal.SIGINT)
        x, y = self.whole.fetch(torch.tensor([i]))
        return x[0].numpy(), int(y[0])


def settings(**changes):
    return {
        "epochs": 3,
        "batch_size": 16,
        "val_size": 12,
        "val_steps": 2,
        "lr": 0.05,
        "quiet": True,
        "threads": 1,
        "device": "cpu",
        **changes,
    }


def linear(weights, dtype=torch.float64):
    """Two classes with logits ±w·x/2: the margin is linear, so its worst case over a convex set is known."""
    model = nn.Linear(len(weights), 2, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-weights / 2, weights / 2]).to(dtype))
    return model


def small_mnist_net(features=1568):
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


class Forgetful(nn.Module):
    """A network whose author has forgotten a line."""

    def __init__(self):
        self.inner = nn.Linear(4, 3)


class Defended(nn.Module):
    def __init__(self, net=None):
        super().__init__()
        self.net = net if net is not None else tiny_net(seed=2)

    def forward(self, x):
        return self.net(x)


class Noisy(Defended):
    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))


def fingerprint(model):
    return (
        [(name, value.clone()) for name, value in model.state_dict().items()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [module.training for module in model.modules()],
        [id(b) for b in model.buffers()],
        torch.get_rng_state(),
    )


def same(one, other):
    for (name, a), (other_name, b) in zip(one[0], other[0], strict=True):
        assert name == other_name
        assert torch.equal(a, b), name
    for (flag, grad), (other_flag, other_grad) in zip(one[1], other[1], strict=True):
        assert flag == other_flag
        assert (grad is None) == (other_grad is None)
        assert grad is None or torch.equal(grad, other_grad)
    assert one[2:4] == other[2:4]
    assert torch.equal(one[4], other[4])
    return True


def count_passes(model):
    seen = {"forwards": 0, "backwards": 0}

    def forward(module, inputs, output):
        seen["forwards"] += 1
        if output.requires_grad:
            output.register_hook(lambda grad: seen.__setitem__("backwards", seen["backwards"] + 1))

    model.register_forward_hook(forward)
    return seen


def steps_by_hand(method, model, x, y, steps, steps_per_epoch):
    """Take these steps, numbered from 0, of plain gradient descent; returns what the method returned in each."""
    found = []
    for step in steps:
        rng = ExampleRng(0, torch.arange(len(x)), stage=step)
        found.append(method(model, x, y, epoch=step // steps_per_epoch, rng=rng))
        found[-1].loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.05 * p.grad)
                p.grad = None
    return found


def losses_by_hand(*args):
    """The losses of :func:`steps_by_hand`."""
    return torch.stack([out.loss.detach() for out in steps_by_hand(*args)])


def stopped_and_resumed(train, data, folder, places, **given):
    """Train whole, and as often as there are places, each time stopped there and resumed to the end.

    ``train(data, out, resume, **given)`` trains. Asserts that all end with the same files and the same model.

    Returns the whole run, those that were resumed, and how many of them were interrupted at all.
    """
    whole, runs, stopped = train(Signalling(data, 0), folder / "whole", **given), [], 0
    for at in places:
        out = folder / f"at{at}"
        run = train(Signalling(data, at), out, **given)
        stopped += run.interrupted
        while run.interrupted:
            run = train(Signalling(data, 0), out, resume=True, **given)
        assert weights(out) == weights(folder / "whole")
        states = [read_state(where / "state.ckpt")[0]["model"] for where in (out, folder / "whole")]
        assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
        runs.append(run)
    return whole, runs, stopped


def weights(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


def saved_at(folder):
    """When the checkpoint was written; 0 where there is none."""
    path = folder / "state.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def end_with_parent(signal_number=signal.SIGTERM):
    """Let the system end this process when the one that started it is killed: for ``preexec_fn``, and after a fork."""
    ctypes.CDLL(None).prctl(1, int(signal_number))  # PR_SET_PDEATHSIG of Linux


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


class TurnsNaN(nn.Module):
    """Its logits are NaN after so many training passes."""

    def __init__(self, after):
        super().__init__()
        self.net, self.after, self.calls = tiny_net(), after, 0

    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (math.nan if self.calls > self.after else 1.0)


class OnceNaN(TurnsNaN):
    """Its logits are NaN at one training pass."""

    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (math.nan if self.calls == self.after else 1.0)
