"""Training on several real processes under torchrun, against one process."""

import gc
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from functools import partial
from itertools import count

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import hauberk as hb
import helpers
from hauberk.core.distributed import World, data_parallel
from hauberk.core.random import ExampleRng
from hauberk.methods import get_method_spec
from hauberk.models import Normalize
from helpers import (
    ROOT,
    TESTS,
    TORCHRUN,
    end_with_parent,
    further,
    kill_again_and_again,
    long_or,
    made_once,
    ranks_of,
    require_success,
    saved_at,
    tiny_net,
    weights,
)

KILLS = long_or(1, 20)
METHODS = [*hb.list_methods(), "at+awp", "mart+awp", "mail-trades+awp", "trades by asam", "at by rwp"]
METHODS += ["at+adr", "trades+adr+awp", "rslad+igdm", "n-fgsm+elle-a", "fgsm-at+gradalign"]
METHODS += ["trades with wmmr", "at with kl-dro", "at+awp with frl"]  # whose weights are of the whole batch, or of all classes
SEVERAL = [hb.Linf("8/255"), hb.L2(0.5), hb.L1(4.0)]


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


# Under which a few steps already show what the method does.
OWN_SETTINGS = {
    "rebat": {"ema_start": 0},
    "ard": {"temperature": 3.0},
    "saad": {"beta": 0.5},
    "uiat": {"class_share": 0.3},
}


def some_steps(name, net=None, **more):
    """Some epochs on batches of 15, so that the parts differ in size. Returns weights and metrics."""
    name, _, perturbation = name.partition(" by ")
    name, _, weighting = name.partition(" with ")
    settings = {"weighting": weighting} if weighting else {}
    settings |= {"burn_in": 0} if weighting or get_method_spec(name).weighting is not None else {}
    settings |= {"rate": 0.5, "bound": 0.0} if weighting == "frl" else {}  # so that its weights differ after an epoch
    threat = SEVERAL if name in ("e-at", "max-at", "ramp") else hb.Linf("8/255")
    settings |= OWN_SETTINGS.get(name, {})
    settings |= {"weight_perturbation": perturbation} if perturbation else {}
    method = hb.method(name, threat, **settings, **further(name, classes=6, sure=5))
    how = {"batch_size": 15, "val_size": 20, "val_steps": 2, "lr": 0.05, "ema": 0.9, "weight_decay": 0.01}
    run = hb.train(net or Frozen(), data(), method=method, epochs=long_or(2, 3), quiet=True, threads=1, **{**how, **more})
    clock = ("seconds", "examples_per_second")
    return run.model.state_dict(), [{k: v for k, v in row.items() if k not in clock} for row in run.metrics]


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = {tests}
import torch
import hauberk as hb
import helpers, test_distributed
helpers.LONG = {long}
torch.set_num_threads(1)
out = Path({out!r})
with hb.init_distributed() as world:
    for work in {works}:
        getattr(test_distributed, work)(world, out)
        world.is_main and (out / f"{{work}}.done").touch()
"""


def together(folder, works, processes=2):
    """Let several processes do pieces of work, which are functions of this module, one after the other."""
    script = folder / "work.py"
    paths = [str(TESTS), str(TESTS / "system")]
    script.write_text(PROGRAM.format(tests=paths, long=helpers.LONG, out=str(folder), works=works))
    return launch([str(script)], processes)


def launch(words, processes=2):
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, str(processes), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=end_with_parent,
    )


def finish(process):
    said, _ = process.communicate(timeout=500)
    require_success(process.returncode, said)
    return said


TOGETHER = [
    "steps_of_a_recipe",
    "steps_of_every_method",
    "resumed_free_at",
    "resumed_mail_at",
    "own_loop_ddp",
    "own_loop_accelerate",
    "refused",
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes left, which did all the work that needs no processes of its own: each start takes seconds."""

    def work(folder):
        said, _ = together(folder, TOGETHER).communicate(timeout=500)
        (folder / "said").write_text(said)

    return made_once(tmp_path_factory, "two-processes", work)


def done(folder, work):
    assert (folder / f"{work}.done").exists(), (folder / "said").read_text()[-3000:]


OUTLIVES = """
import sys
sys.path[:0] = {tests}
import test_distributed
test_distributed.a_wrapper_outlives_its_group()
"""


def a_wrapper_outlives_its_group():
    for _ in range(2):  # torch itself keeps the first group of a process
        with hb.init_distributed():
            step = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            step(torch.rand(4, 2)).sum().backward()
            group = weakref.ref(dist.group.WORLD)
        assert not dist.is_initialized()
        del step
        gc.collect()
        assert group() is not None


def test_a_wrapper_may_outlive_its_group(tmp_path):
    # Where the wrapper has the last reference to the group, freeing it hangs in about 1 of 50 cases; so Python has one, too.
    # In one process of its own: of several, a second group would find the addresses of the first.
    (tmp_path / "work.py").write_text(OUTLIVES.format(tests=[str(TESTS), str(TESTS / "system")]))
    finish(launch([str(tmp_path / "work.py")], processes=1))


def test_what_processes_tell_each_other_holds_nothing_of_a_gpu(monkeypatch):
    """Unpickled, a tensor of a GPU would open a context on it in every other process."""
    sent = []
    monkeypatch.setattr(dist, "all_gather_object", lambda all, mine: sent.append(mine))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda said, rank: sent.append(said[0]))
    with FakeTensorMode():
        state = {"method": {"point": torch.ones(2, device="cuda")}, "rng": [torch.ones(2, device="cuda")], "n": 1}
        World(0, 2).all_gather_object(state)
        World(0, 2).on_main_process(lambda: state)
        for there in sent:
            assert there["n"] == 1
            assert there["method"]["point"].device == there["rng"][0].device == torch.device("cpu")
    assert len(sent) == 2


def test_statistics_that_are_averaged_are_not_sent_besides():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = nn.Sequential(Normalize([0.5], [0.2]), tiny_net())
        step = data_parallel(hb.Step(net, hb.method("at", hb.Linf("8/255"))), World(0, 2))
        assert set(step.named_module_buffers) == {"model.0.mean", "model.0.std"}
    finally:
        dist.destroy_process_group()


def steps_of_every_method(world, out, names=METHODS):
    found = {name: some_steps(name) for name in names}
    world.is_main and torch.save(found, out / "found.pt")


RECIPE = {
    "optimizer": "adamw", "lr": 2e-3, "filter_bias_and_bn": True, "clip_grad": 0.5, "warmup_epochs": 1, "schedule": "linear",
    "mixup": 0.5, "augment": "crop-flip+cutout+randaugment", "ema": 0.0, "swa_start": 2, "epochs": 3,
}  # fmt: skip


BY_CLASSES = {"swa_start": 0.0, "fawa": 0.7, "fawa_threshold": 0.0}


def recipe_of_training(**more):
    """An average of mixed and augmented batches with extra data, by another optimizer."""
    x, y = data(60)
    extra = x.flip(0) * 0.9, 0.76 * torch.nn.functional.one_hot(y.flip(0), 6) + 0.04
    method = hb.method("trades", hb.Linf("8/255"))
    how = {"batch_size": 15, "val_size": 20, "val_steps": 2, "extra": extra, "extra_share": 0.4, "quiet": True, "threads": 1}
    run = hb.train(Frozen(), data(), method=method, **how, **RECIPE | more)
    return run.model.state_dict()


def steps_of_a_recipe(world, out):
    found = {"swa": recipe_of_training(), "fawa": recipe_of_training(**BY_CLASSES)}
    world.is_main and torch.save(found, out / "recipe.pt")


def steps_of_three_methods(world, out):
    steps_of_every_method(world, out, ["mail-trades+awp", "gairat", "mma"])


def are_those_of_one(found):
    for name, (there, rows_there) in found.items():
        weights, rows = some_steps(name)
        for key, value in weights.items():
            assert (value - there[key]).abs().max() < 1e-5, (name, key)
        for one, many in zip(rows, rows_there, strict=True):
            assert many == pytest.approx(one, abs=1e-6), name


def test_two_processes_give_the_weights_of_one(two):
    done(two, "steps_of_every_method")
    found = torch.load(two / "found.pt")
    assert list(found) == METHODS
    are_those_of_one(found)


def test_two_processes_augment_mix_and_average_as_one(two):
    done(two, "steps_of_a_recipe")
    found = torch.load(two / "recipe.pt")
    for name, alone in (("swa", recipe_of_training()), ("fawa", recipe_of_training(**BY_CLASSES))):
        for key, value in found[name].items():
            assert (value - alone[key]).abs().max() < 1e-6, key


def test_three_processes_give_the_weights_of_one(tmp_path):
    finish(together(tmp_path, ["steps_of_three_methods"], 3))
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == 3
    are_those_of_one(found)


def synchronised(world, out):
    how = {"batch_size": 20, "device": "cuda", "sync_batchnorm": True}
    found = {name: some_steps(name, tiny_net(classes=6).double(), **how) for name in ("at", "trades", "mart+awp")}
    world.is_main and torch.save(found, out / "found.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: torch has no synchronised BatchNorm for CPUs")
def test_synchronised_batchnorm_on_two_gpus_gives_the_weights_of_one(tmp_path):
    # Equal parts: with parts of different size the running variances differ by their small-sample corrections.
    finish(together(tmp_path, ["synchronised"]))
    for name, (there, _) in torch.load(tmp_path / "found.pt").items():
        weights, _ = some_steps(name, tiny_net(classes=6).double(), batch_size=20, device="cuda")
        for key, value in there.items():
            assert torch.allclose(value.double(), weights[key].double(), atol=1e-5), (name, key)


def digits(*more, processes=2):
    words = ["train", "--data", "digits", "--method", "trades", "--steps", "2", "--save-minutes", "0.0001", *more]
    return launch(["-m", "hauberk", *words], processes)


def resume(folder, processes=2):
    return launch(["-m", "hauberk", "train", "--resume", str(folder)], processes)


def wait_for(folder):
    while not saved_at(folder):
        time.sleep(0.01)


def test_one_of_two_processes_killed_stops_the_other_and_nothing_is_lost(tmp_path):
    epochs = str(2 + 2 * KILLS)
    finish(digits("--epochs", epochs, "--out", str(tmp_path / "whole")))
    killed = tmp_path / "killed"
    chance = random.Random(0)

    def start():
        return resume(killed) if killed.exists() else digits("--epochs", epochs, "--out", str(killed))

    ends = kill_again_and_again(
        start, lambda: saved_at(killed), KILLS, 0.3, lambda torchrun: ranks_of(torchrun)[chance.randrange(2)]
    )
    for said, seconds in ends:
        assert seconds < 60
        assert f"another process of this group was lost; what was saved before is intact, --resume {killed}" in said
    finish(resume(killed))
    assert weights(killed) == weights(tmp_path / "whole")


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    torchrun = digits("--epochs", "3", "--out", str(tmp_path / "run"))
    wait_for(tmp_path / "run")
    torchrun.send_signal(signal.SIGTERM)
    said, _ = torchrun.communicate(timeout=100)
    assert f"Go on with: torchrun --nproc_per_node 2 -m hauberk train --resume {tmp_path / 'run'}" in said
    said = finish(resume(tmp_path / "run", processes=1))
    assert "saved by 2 processes, going on with 1" in said
    assert said.count("Done: best epoch") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def resumed(method, world, out):
    """A whole training, and one that is stopped in the middle of an epoch and goes on."""
    from hauberk.core import distributed
    from hauberk.training.trainer import Trainer

    every, distributed._SYNC_EVERY = distributed._SYNC_EVERY, 0  # seconds
    train_step, steps = Trainer._train_step, count()
    method = hb.method(method, hb.Linf("8/255"))
    how = {"method": method, "epochs": 4, "batch_size": 20, "val_size": 20, "lr": 0.05, "ema": 0.9, "quiet": True, "threads": 1}
    where = {name: out / f"{method.name}-{name}" for name in ("whole", "resumed")}

    def counted(self, *inputs):
        train_step(self, *inputs)
        self._stop.asked = world.rank == 1 and next(steps) >= 6  # one process alone is asked to stop

    def net(seed):
        return tiny_net(dropout=0.3, seed=seed + world.rank)  # the ranks begin apart

    whole = hb.train(net(0), data(), out=where["whole"], **how)
    Trainer._train_step = counted
    assert hb.train(net(0), data(), out=where["resumed"], **how).interrupted
    Trainer._train_step = train_step
    again = hb.train(net(5), data(), out=where["resumed"], resume=True, **how)
    for run in (whole, again):
        same = world.all_gather_object({name: value.tolist() for name, value in run.model.state_dict().items()})
        assert same[0] == same[1], "the processes have different networks"
    distributed._SYNC_EVERY = every


resumed_free_at = partial(resumed, "free-at")
resumed_mail_at = partial(resumed, "mail-at")


@pytest.mark.parametrize("method", ["free-at", "mail-at"])
def test_resuming_on_two_processes_is_bit_identical_with_dropout_batchnorm_and_carried_perturbations(two, method):
    done(two, f"resumed_{method.replace('-', '_')}")
    assert weights(two / f"{method}-whole") == weights(two / f"{method}-resumed")


def rng(rank, size):
    return ExampleRng(0, torch.arange(20)[rank::size])


def own_method():
    return hb.method("mail-trades+awp", hb.Linf("8/255"), burn_in=0)


def own_loop(engine, world, out):
    x, y = data(20)
    net = Frozen()
    step = hb.Step(net, own_method())
    if engine == "ddp":
        step = DistributedDataParallel(step)
    else:
        from accelerate import Accelerator

        step = Accelerator(cpu=True).prepare(step)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    forwards = []
    step.register_forward_hook(lambda *_: forwards.append(1))
    for epoch in range(5):
        optimizer.zero_grad()
        step(x[world.rank :: 2].double(), y[world.rank :: 2], epoch, rng=rng(world.rank, 2)).loss.backward()
        optimizer.step()
    assert len(forwards) == 5  # through the wrapper, whatever the attack did
    world.is_main and torch.save(net.state_dict(), out / f"{engine}.pt")


own_loop_ddp = partial(own_loop, "ddp")
own_loop_accelerate = partial(own_loop, "accelerate")


@pytest.mark.parametrize("engine", ["ddp", "accelerate"])
def test_a_callers_own_loop_on_two_processes(two, engine):
    done(two, f"own_loop_{engine}")
    x, y = data(20)
    net, method = Frozen(), own_method()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for epoch in range(5):
        optimizer.zero_grad()
        method(net, x.double(), y, epoch, rng=rng(0, 1)).loss.backward()
        optimizer.step()
    for key, value in torch.load(two / f"{engine}.pt").items():
        assert torch.allclose(value, net.state_dict()[key], atol=1e-9), key


def refused(world, out):
    x, y = data(20)
    net = Frozen()
    with pytest.raises(hb.UserError, match=r"wrap hb\.Step"):
        hb.method("at", hb.Linf("8/255"))(DistributedDataParallel(net), x.double(), y)
    threat = hb.Linf("8/255")
    with pytest.raises(hb.UserError, match="too small for 2 processes"):
        hb.train(net, (x, y), threat=threat, batch_size=3, quiet=True)
    with pytest.raises(hb.UserError, match="needs GPUs"):
        hb.train(net, (x, y), threat=threat, sync_batchnorm=True, device="cpu", quiet=True)
    with pytest.raises(hb.UserError, match="process 1 is not like the first one"):
        hb.train(net, (x, y), threat=threat, lr=0.1 + world.rank, quiet=True)
    others = torch.cat([y[:-1], (y[-1:] + world.rank) % 5])
    with pytest.raises(hb.UserError, match="other training data"):
        hb.train(net, (x, others), threat=threat, quiet=True)
    with pytest.raises(hb.UserError, match="process 1 is not like the first one: other data"):
        hb.evaluate(net, (x, others), threat=threat, attacks=["fgsm"], quiet=True)
    with pytest.raises(hb.UserError, match="process 1 is not like the first one: other data"):  # seen beyond the first ones
        hb.evaluate(net, list(zip(x, others, strict=True)), threat=threat, attacks=["fgsm"], quiet=True)
    how = {"threat": threat, "attacks": ["fgsm"], "diagnostics": "cheap", "quiet": True, "out": out / "evaluation"}
    hb.evaluate(net, (x, y), **how)
    with pytest.raises(hb.UserError, match="holds another evaluation"):  # on each, and nobody waits for the other
        hb.evaluate(net, (x, y), seed=1, **how)


SILENT = """
import os, signal, sys
import torch.distributed as dist
import hauberk as hb
from hauberk.core import distributed

distributed._BEAT, distributed._SILENT = 0.3, 3.0
with hb.init_distributed() as world:
    dist.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()
"""


def test_a_process_that_is_stopped_is_named_and_not_waited_for(tmp_path):
    (tmp_path / "work.py").write_text(SILENT)
    process, said = launch([str(tmp_path / "work.py")]), ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "Sending process" in line or "no sign of life" in line:  # torchrun gives the one that is stopped half a minute
            for pid in ranks_of(process).values():
                os.kill(pid, signal.SIGKILL)
    process.wait(timeout=100)
    assert said.count("process 1 of this group gives no sign of life: it is stopped, or its machine hangs") == 1


def test_what_is_refused(two, tmp_path):
    done(two, "refused")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    said, _ = digits("--out", str(tmp_path / "there")).communicate(timeout=100)
    assert said.count("exists; go on with it by --resume") == 1


def test_the_script_for_slurm_trains_and_goes_on(tmp_path):
    """As docs/scaling.md has it, but for data and network; Slurm's programs are stand-ins on one machine."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    script = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1]
    script = script.replace(
        "--data cifar10 --data-dir $HOME/data --model resnet18", "--data digits --epochs 2 --batch-size 256 --steps 1"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        script = script.replace("29500", str(free.getsockname()[1]))
    programs = {
        "scontrol": 'echo "localhost"',
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, does in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for _ in range(2):  # the second finds a checkpoint
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Done: best epoch" in done.stdout
        assert len((tmp_path / "runs" / "cifar10" / "metrics.jsonl").read_text().splitlines()) == 2
