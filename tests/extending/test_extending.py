"""What a stranger's package can bring along: in Python, on the command line, killed, on two processes, and afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mine
import pytest
import torch

import hauberk as hb
from helpers import long_or

HERE = Path(__file__).resolve().parent
THREAT = hb.Linf("8/255")
CONFIG = {"epochs": 3, "batch_size": 16, "val_size": 12, "val_steps": 2, "quiet": True, "threads": 1, "device": "cpu"}
PASSED = {"optimizer": mine.adam, "scheduler": mine.halved, "augmentation": mine.shifted}
METHODS = {
    "weighting": lambda: hb.method("trades", THREAT, weighting=mine.entropy, steps=2),
    "attack": lambda: hb.method("at", THREAT, attack=mine.sign_of_noise),
    "loss": lambda: hb.method("at", THREAT, loss=mine.hinge, steps=2),
    "objective with a teacher": lambda: hb.method("at", THREAT, objective=mine.Distilled(), steps=2),
    "moving average": lambda: mine.averaged(THREAT),
    "all": lambda: mine.distilled(THREAT),
}


def batch(n=16):
    x, y = mine.pairs("train", "")
    return x[:n], y[:n]


def weights_of(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


def test_a_weighting_is_used_as_it_is():
    model, (x, y) = mine.network().train(), batch()
    out = METHODS["weighting"]()(model, x, y)
    p = out.logits_adv.softmax(1)
    raw = -(p * p.log()).sum(1)
    assert torch.allclose(out.weights, raw / raw.mean(), atol=1e-5)
    assert float(out.weights.std()) > 0
    twice = hb.method("trades", THREAT, weighting=lambda context: torch.full((len(context.y),), 2.0))(model, x, y)
    assert torch.equal(twice.weights, torch.full((16,), 2.0))


def test_what_a_weighting_may_see():
    model, (x, y) = mine.network().train(), batch()
    seen = {}

    def look(context):
        seen.update({name: getattr(context, name) for name in ("x", "y", "x_adv", "logits", "logits_adv", "index", "epoch")})
        return torch.ones(len(context.y))

    hb.method("trades", THREAT, weighting=look)(model, x, y, epoch=3, index=torch.arange(16))
    assert seen["epoch"] == 3
    assert torch.equal(seen["index"], torch.arange(16))
    assert seen["logits"].shape == seen["logits_adv"].shape == (16, 5)
    assert THREAT.contains(seen["x_adv"], seen["x"]).all()
    look.needs = frozenset({"clean"})  # which cross-entropy at the adversarial input does not compute
    hb.method("at", THREAT, weighting=look)(model, x, y)
    assert seen["logits"] is not None


def test_an_attack_and_its_loss_are_used():
    model, (x, y) = mine.network().eval(), batch()
    out = hb.method("at", THREAT, attack=lambda context: context.threat.project(context.x + 1, context.x))(model, x, y)
    assert torch.allclose(out.x_adv, THREAT.project(x + 1, x))
    hinge, ce = (hb.method("at", THREAT, seed=1, **how)(model, x, y).x_adv for how in ({"loss": mine.hinge}, {}))
    assert not torch.equal(hinge, ce)
    aimed = hb.attacks.pgd(model, x, y, THREAT, loss=mine.hinge, seed=1)
    assert float(mine.hinge(aimed.logits, y).mean()) > float(mine.hinge(model(x), y).mean())
    with pytest.raises(hb.UserError, match="left the threat model"):
        hb.method("at", THREAT, attack=lambda context: context.x + 1)(model, x, y)
    with pytest.raises(hb.UserError, match=r"must return inputs of shape \(16, 3, 8, 8\)"):
        hb.method("at", THREAT, attack=lambda context: context.x[:4])(model, x, y)
    with pytest.raises(hb.UserError, match="must return weights of shape"):
        hb.method("at", THREAT, weighting=lambda context: torch.ones(3))(model, x, y)


def test_a_teacher_is_a_part_of_the_method():
    method = METHODS["objective with a teacher"]()
    assert any("teacher" in name for name in method.state_dict())
    method.train()
    assert not method.objective.teacher.training  # its mode is its maker's
    assert method.to(torch.float64).objective.teacher[0].weight.dtype == torch.float64


def test_a_name_of_ones_own_is_a_name_everywhere(tmp_path):
    hb.register_method("distilled", mine.distilled)
    assert hb.list_methods()["distilled"].startswith("A method: distillation")
    run = hb.train(mine.network(), batch(40), method="distilled", threat=THREAT, out=tmp_path / "run", **CONFIG | {"epochs": 1})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["method"]["name"] == "distilled"
    assert run.best["epoch"] == 1
    with pytest.raises(hb.UserError, match="no free name"):
        hb.register_method("distilled", mine.distilled)


@pytest.mark.parametrize("part", METHODS)
def test_every_part_goes_on_bit_for_bit_and_is_evaluated_afterwards(tmp_path, part):
    class Stops:
        def __init__(self, after):
            self.steps, self.after = 0, after

        def on_step_end(self, trainer, output):
            self.steps += 1
            if self.steps == self.after:
                signal.raise_signal(signal.SIGINT)

    def start(name, callbacks=(), **more):
        torch.manual_seed(0)
        kept = mine.Best()
        run = hb.train(
            mine.network(), mine.pairs("train", ""), method=METHODS[part](), out=tmp_path / name,
            callbacks=[kept, *callbacks], **PASSED, **CONFIG, **more,
        )  # fmt: skip
        return run, kept

    whole, kept = start("whole", [Stops(10**6)])
    stopped, _ = start("again", [Stops(4)])
    assert stopped.interrupted
    resumed, restored = start("again", [Stops(10**6)], resume=True)
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "again")
    assert restored.state_dict() == kept.state_dict()
    assert kept.epochs == [1, 2, 3]
    loaded = hb.load(tmp_path / "again", model=mine.network())
    found = hb.evaluate(loaded, mine.pairs("test", ""), threat=THREAT, attacks=["fgsm", mine.straight], quiet=True)
    assert found.by_attack["fgsm"] == found.by_attack["mine:straight"]  # the same attack, written twice
    assert resumed.metrics[-1]["epoch"] == whole.metrics[-1]["epoch"] == 3


def test_attacks_of_ones_own_are_verified_never_trusted():
    model, (x, y) = mine.network().eval(), batch()
    y = model(x).argmax(1)
    threat = hb.Linf(0.02)
    found = hb.evaluate(model, (x, y), threat=threat, attacks=[hb.attacks.PGD(steps=50), mine.straight, mine.cheat], quiet=True)
    assert set(found.by_attack) == {"PGD(steps=50)", "mine:straight", "mine:cheat"}
    assert found.by_attack["mine:cheat"] == 1.0  # nothing that it claims holds
    assert any("mine:cheat" in example["unverified"] for example in found.examples)
    assert found.by_attack["PGD(steps=50)"] < 1.0
    assert "unverified" in {d.name for d in found.warnings}

    def spoils(model, x, y, threat):
        next(model.parameters()).data.add_(1)
        return x

    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(hb.UserError, match="changes the model that it attacks"):
        hb.evaluate(model, (x, y), threat=threat, attacks=[spoils], quiet=True)
    assert all(map(torch.equal, before, model.state_dict().values()))


def command(*words, **more):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "hauberk", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finished(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return out


PARTS = [
    "--data", "mine:pairs", "--model", "mine:network", "--optimizer", "mine:adam",
    "--scheduler", "mine:halved", "--augment", "mine:shifted", "--callbacks", "mine:Best",
]  # fmt: skip
NUMBERS = ["--eps", "8/255", "--epochs", "12", "--batch-size", "16", "--val-size", "12", "--val-steps", "2", "--threads", "1"]


@pytest.mark.parametrize("method", long_or(["averaged"], ["averaged", "distilled"]))
def test_on_the_command_line_killed_resumed_and_evaluated(tmp_path, method):
    parts = ["--method", f"mine:{method}", *PARTS]
    finished(command("train", *parts, *NUMBERS, "--out", "whole", cwd=tmp_path))
    process = command("train", *parts, *NUMBERS, "--out", "killed", cwd=tmp_path)
    begun = time.monotonic()
    while not (tmp_path / "killed" / "state.ckpt").exists() and time.monotonic() - begun < 200:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for left_out in ("--method", "--optimizer"):  # what the run would import has to be named again
        place = parts.index(left_out)
        process = command("train", "--resume", "killed", *parts[:place], *parts[place + 2 :], cwd=tmp_path)
        assert parts[place + 1] in process.communicate()[1]
        assert process.returncode == 2
    finished(command("train", "--resume", "killed", *parts, cwd=tmp_path))
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "killed")
    named = ["--model", "mine:network", "--data", "mine:pairs", "--attacks", "fgsm", "mine:straight", "mine:cheat"]
    said = json.loads(finished(command("evaluate", "killed", *named, "--json", "--threads", "1", cwd=tmp_path)))
    assert said["by_attack"]["fgsm"] == said["by_attack"]["mine:straight"] <= said["by_attack"]["mine:cheat"]
    finished(command("report", "killed", cwd=tmp_path))


TOGETHER = """
import torch, hauberk as hb, mine
torch.set_num_threads(1)
with hb.init_distributed() as world:
    torch.manual_seed(0)
    net = mine.network()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    x, y = mine.pairs("train", "")
    passed = dict(optimizer=mine.adam, scheduler=mine.halved, augmentation=mine.shifted, callbacks=[mine.Best()])
    config = dict(epochs=2, batch_size=16, val_size=12, val_steps=2, quiet=True, threads=1, device="cpu")
    method = mine.{method}(hb.Linf("8/255"))
    run = hb.train(net, (x, y), method=method, out={out!r}, **passed, **config)
    same = world.all_gather_object([value.tolist() for value in run.model.state_dict().values()])
    assert all(one == same[0] for one in same)
"""


@pytest.mark.parametrize("method", ["distilled", "averaged"])
def test_two_processes_train_together(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(TOGETHER.format(method=method, out=str(tmp_path / "run")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_the_package_imports_nothing_of_hauberk_but_hauberk():
    assert re.findall(r"(?m)^(?:from|import) (hauberk\S*)", (HERE / "mine.py").read_text()) == ["hauberk"]
