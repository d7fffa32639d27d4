"""Optimizers, schedulers, augmentations and callbacks of somebody's own, through stops, kills and several processes."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import hauberk as hb
from hauberk.cli import main
from hauberk.core.io import read_state
from hauberk.methods import SmallBall
from hauberk.report import make_report
from hauberk.training import MetricsLog, resume
from hauberk.training.plan import foreign_code
from helpers import TESTS, THREAT, TORCHRUN, OnceNaN, Signalling, easy_data, require_success, settings, tiny_net, weights

PLAIN = {key: value for key, value in settings().items() if key != "lr"}  # which an own optimizer has itself


def adam(parameters):
    return torch.optim.Adam(parameters, lr=2e-3)


def every_epoch(optimizer):
    return StepLR(optimizer, 1, 0.5)


def every_step(optimizer):
    return OneCycleLR(optimizer, 0.02, total_steps=9)  # 48 examples in batches of 16, three epochs


def closed_form(optimizer):
    return LambdaLR(optimizer, lambda epoch: 0.5**epoch)


def in_sequence(optimizer):
    return SequentialLR(optimizer, [LambdaLR(optimizer, lambda step: (step + 1) / 3), StepLR(optimizer, 2)], [3])


def shifted(x, rng):
    """Draws keyed by example: the same on any number of processes."""
    return (x + 0.02 * rng.uniform(x, 7)).clamp(0, 1)


def dimmed(x):
    """A draw of torch's generator, whose state is in the checkpoint."""
    return x * (0.9 + 0.1 * torch.rand(()))


class Counts:
    """A callback whose state matters: a weight decay of its own that grows."""

    def __init__(self):
        self.steps, self.seen, self.began, self.ended = 0, [], 0, 0

    def on_train_begin(self, trainer):
        self.began += 1

    def on_step_end(self, trainer, output):
        self.steps += 1
        assert output.loss.isfinite()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1 - 1e-4 * self.steps)

    def on_epoch_end(self, trainer, metrics):
        self.seen.append((metrics["epoch"], self.steps, trainer.epoch))

    def on_train_end(self, trainer):
        self.ended += trainer.finished

    def state_dict(self):
        return {"steps": self.steps, "seen": self.seen}

    def load_state_dict(self, state):
        self.steps, self.seen = state["steps"], [tuple(one) for one in state["seen"]]


def train(data, out, resume=False, **passed):
    how = {**(PLAIN if "optimizer" in passed else settings()), **passed}
    method = hb.method("trades", THREAT, steps=2)
    return hb.train(tiny_net(dropout=0.2), data, method=method, out=out, resume=resume, **how)


PASSED = {
    "optimizer": {"optimizer": partial(torch.optim.Adam, lr=2e-3)},
    "optimizer-ema": {"optimizer": adam, "ema": 0.9, "scheduler": every_epoch},
    "epoch": {"scheduler": every_epoch},
    "step": {"scheduler": every_step, "scheduler_interval": "step", "optimizer": adam},
    "closed-form": {"scheduler": closed_form},
    "sequence": {"scheduler": in_sequence, "scheduler_interval": "step"},
    "rng": {"augmentation": shifted},
    "no-rng": {"augmentation": dimmed},
    "named": {"augmentation": "crop-flip"},
    "module": {"augmentation": nn.Dropout(0.1)},
}


@pytest.mark.parametrize("name", PASSED)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_identical(name, tmp_path):
    passed, data = PASSED[name], easy_data()
    counts = Counts()
    whole = train(Signalling(data, 0), tmp_path / "whole", callbacks=[counts], **passed)
    last = read_state(tmp_path / "whole" / "state.ckpt")[0]
    assert counts.seen == [(1, 3, 0), (2, 6, 1), (3, 9, 2)]
    assert (counts.began, counts.ended) == (1, 1)
    stopped = 0
    for at in (130, 201, 260):  # fetches: in the first epoch, the second and its validation, the third
        folder, mine = tmp_path / f"at{at}", Counts()
        run = train(Signalling(data, at), folder, callbacks=[mine], **passed)
        stopped += run.interrupted
        while run.interrupted:
            mine = Counts()
            run = train(Signalling(data, 0), folder, resume=True, callbacks=[mine], **passed)
        assert mine.seen == counts.seen
        assert weights(folder) == weights(tmp_path / "whole")
        state = read_state(folder / "state.ckpt")[0]
        kept, wanted = (one["optimizer"]["state"] for one in (state, last))
        assert kept.keys() == wanted.keys()
        for place, moments in wanted.items():
            assert all(torch.equal(torch.as_tensor(kept[place][key]), torch.as_tensor(moments[key])) for key in moments)
        rates = [[row["lr"] for row in one.metrics] for one in (run, whole)]
        assert rates[0] == rates[1]
    assert stopped == 3


def test_the_rate_that_is_recorded_is_that_of_the_last_step(tmp_path):
    kept = train(easy_data(), None, optimizer=adam).metrics
    assert [row["lr"] for row in kept] == [2e-3] * 3
    by_epoch = train(easy_data(), None, scheduler=every_epoch).metrics
    assert [row["lr"] for row in by_epoch] == [0.05, 0.025, 0.0125]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler, rates = every_step(optimizer), []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    by_step = train(easy_data(), None, scheduler=every_step, scheduler_interval="step").metrics
    assert [row["lr"] for row in by_step] == rates[2::3]


def test_what_is_passed_changes_the_weights_and_its_default_does_not():
    def after(**passed):
        return train(easy_data(), None, epochs=1, **passed).model.state_dict()["5.weight"]

    plain = after()
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    by_hand = after(optimizer=sgd, scheduler=one_cycle_by_hand, scheduler_interval="step")
    assert torch.allclose(plain, by_hand, atol=1e-7)
    assert torch.equal(plain, after(augmentation=lambda x: x))
    assert torch.equal(plain, after(callbacks=[print]))
    assert torch.equal(after(augment="crop-flip"), after(augmentation="crop-flip"))
    for passed in ({"optimizer": adam}, {"scheduler": every_epoch}, {"augmentation": shifted}, {"callbacks": [Counts()]}):
        assert not torch.equal(plain, after(**passed)), passed


def one_cycle_by_hand(optimizer):
    from hauberk.training.config import TrainConfig
    from hauberk.training.schedule import lr_factor

    config = TrainConfig(epochs=1)
    return LambdaLR(optimizer, lambda step: lr_factor(config, step, 3))


@pytest.mark.parametrize("name", ["optimizer", "step", "epoch", "closed-form", "sequence"])
def test_a_rollback_begins_the_epoch_again_with_half_the_rate(name, tmp_path):
    passed = {**PASSED[name], "on_divergence": "rollback"}
    how = {**(PLAIN if "optimizer" in passed else settings()), **passed}
    whole = hb.train(tiny_net(), easy_data(), threat=THREAT, **how).metrics
    again = hb.train(OnceNaN(after=5), easy_data(), threat=THREAT, out=tmp_path, **how).metrics
    assert [row["epoch"] for row in again] == [1, 2, 3]
    assert again[0]["lr"] == whole[0]["lr"]
    assert [row["lr"] for row in again[1:]] == pytest.approx([row["lr"] / 2 for row in whole[1:]], rel=1e-6)
    assert read_state(tmp_path / "state.ckpt")[0]["n_rollbacks"] == 1


def test_a_run_says_what_was_passed_and_goes_on_with_nothing_else(tmp_path):
    train(easy_data(), tmp_path, optimizer=partial(torch.optim.Adam, lr=2e-3), callbacks=[Counts()], epochs=1)
    record = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert record["optimizer"] == "python:torch.optim.adam.Adam(lr=0.002)"
    assert record["callbacks"] == [f"python:{__name__}.Counts"]
    assert not {"lr", "momentum", "schedule"} & record.keys()
    same = {"optimizer": partial(torch.optim.Adam, lr=2e-3), "callbacks": [Counts()], "epochs": 1}
    for changes, says in (
        ({"optimizer": adam}, "settings optimizer = 'python:torch.optim.adam.Adam.*pass the same optimizer= again"),
        ({"optimizer": ""}, "settings lr = None|settings optimizer"),
        ({"callbacks": []}, "pass the same callbacks= again"),
        ({"augmentation": shifted}, "settings augment = 'auto', not 'python:.*shifted'; pass the same augmentation= again"),
    ):
        with pytest.raises(hb.UserError, match=says) as caught:
            train(easy_data(), tmp_path, resume=True, **{**same, **changes})
        assert "\n" not in str(caught.value)
    assert len(train(easy_data(), tmp_path, resume=True, **same).metrics) == 1


def of_one_name(part, value):
    """Parts that have the same name and compute something else."""

    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=value)

    def augmentation(x):
        return x * value

    def objective(context):
        return value * nn.functional.cross_entropy(context.logits_adv, context.y, reduction="none"), 0.0

    return {"optimizer": optimizer, "augmentation": augmentation, "objective": objective}[part]


@pytest.mark.parametrize("part", ["optimizer", "augmentation", "objective"])
def test_a_run_does_not_go_on_with_other_code_of_the_same_name(part, tmp_path):
    def run(value, resume):
        passed = {part: of_one_name(part, value)}
        own = passed if part == "objective" else {}
        how = {} if own else passed
        method = hb.method("at", THREAT, steps=2, **own)
        plain = PLAIN if part == "optimizer" else settings()
        return hb.train(tiny_net(), easy_data(), method=method, out=tmp_path, resume=resume, **plain | how | {"epochs": 1})

    run(0.01, False)
    with pytest.raises(hb.UserError, match=f"started with other code of its {part}; use a new folder"):
        run(0.02, True)
    assert len(run(0.01, True).metrics) == 1


def hidden(where, value):
    """A method with code of somebody else's inside one of Hauberk's objects; the code has the same name for each value."""

    def loss(logits, y):
        return value * nn.functional.cross_entropy(logits, y, reduction="none")

    def scaled(by, logits, y):
        return by * nn.functional.cross_entropy(logits, y, reduction="none")

    def term(context):
        return value * context.logits_adv.square().mean(1)

    def targets(context):
        return nn.functional.one_hot(context.y, 5) * (1 - value) + value / 5

    pgd = {"attack": loss, "partial": partial(scaled, value), "bound": Scaled(value).loss}
    attack = hb.attacks.PGD(steps=1, step_size="eps", loss=pgd.get(where, "ce"))
    return {
        **dict.fromkeys(pgd, lambda: hb.Method(THREAT, attack)),
        "inner": lambda: hb.Method(THREAT, SmallBall(hb.attacks.PGD(steps=1, loss=loss))),
        "term": lambda: hb.Method(THREAT, attack, hb.objectives.Regularized(hb.objectives.AT(), term)),
        "targets": lambda: hb.Method(THREAT, attack, targets=partial(targets)),
    }[where]()


@dataclass
class Scaled:
    by: float

    def loss(self, logits, y):
        return self.by * nn.functional.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("where", ["attack", "partial", "bound", "inner", "term", "targets"])
def test_code_inside_an_object_of_ours_is_bound_to_the_run(where, tmp_path):
    found, again, other = (foreign_code(hidden(where, value)) for value in (0.1, 0.1, 0.2))
    assert len(found) == 1
    assert found == again
    assert found.keys() == other.keys()
    assert found != other
    how = {"out": tmp_path, **settings(epochs=1)}
    hb.train(tiny_net(), easy_data(), method=hidden(where, 0.1), **how)
    part = next(iter(found))
    with pytest.raises(hb.UserError, match=f"started with (other code of its {part}|method {part} = .*0.1.* not .*0.2)"):
        hb.train(tiny_net(), easy_data(), method=hidden(where, 0.2), resume=True, **how)
    assert len(hb.train(tiny_net(), easy_data(), method=hidden(where, 0.1), resume=True, **how).metrics) == 1


def test_methods_by_name_have_no_code_but_ours():
    for name in (*hb.list_methods(), "trades+adr+awp", "fgsm-at+elle-a", "rslad+igdm"):
        several = [THREAT, hb.L2(0.5)] if name in ("e-at", "max-at", "ramp") else THREAT
        taught = {"teacher": tiny_net()} if name.partition("+")[0] in ("ard", "rslad", "adaad", "saad", "hat") else {}
        assert foreign_code(hb.method(name, several, **taught)).keys() == taught.keys()


class NoHooks:
    pass


@pytest.mark.parametrize(
    ("passed", "says"),
    [
        ({"optimizer": adam, "lr": 0.1}, "lr does not apply to an own optimizer"),
        ({"optimizer": adam, "weight_decay": 0.0}, "weight_decay does not apply to an own optimizer"),
        ({"optimizer": adam, "schedule": "cosine"}, "schedule does not apply to an own optimizer"),
        ({"scheduler": every_epoch, "milestones": (2.0,)}, "milestones does not apply to an own scheduler"),
        ({"optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(1))])}, "a callable that makes one"),
        ({"optimizer": lambda parameters: None}, "optimizer must return a torch.optim.Optimizer, not NoneType"),
        ({"scheduler": lambda optimizer: optimizer}, "scheduler must return"),
        ({"scheduler": ReduceLROnPlateau}, "one that needs a metric is stepped by a callback"),
        ({"scheduler_interval": "batch"}, "scheduler_interval must be .epoch. or .step."),
        ({"optimizer": "torch.optim:Adem"}, "cannot load optimizer 'torch.optim:Adem'.*did you mean 'Adam'"),
        ({"scheduler": "no_such_module:f"}, "there is no module 'no_such_module'"),
        ({"augmentation": "crop-flop"}, "did you mean 'crop-flip'"),
        ({"augmentation": 3}, "augmentation must be a function or text"),
        ({"augmentation": shifted, "augment": "crop"}, "augment is given twice"),
        ({"augment": shifted}, "augment must be text"),
        ({"callbacks": [NoHooks()]}, "a callback is a function of metrics or has one of on_train_begin"),
        ({"callbacks": [MetricsLog]}, "pass an instance of the callback MetricsLog"),
    ],
)
def test_mistakes_get_one_clear_line(passed, says):
    how = {**PLAIN, "epochs": 1, **passed}
    with pytest.raises(hb.UserError, match=says) as caught:
        hb.train(tiny_net(), easy_data(), threat=THREAT, **how)
    assert "\n" not in str(caught.value)


class Unreadable(Counts):
    def state_dict(self):
        return {"path": Path("x")}


class Forgetful(Counts):
    def load_state_dict(self, state):
        raise KeyError("steps")


class Failing:
    def on_epoch_end(self, trainer, metrics):
        raise ZeroDivisionError("mine")


def test_a_callback_that_fails_is_not_swallowed_and_a_state_that_cannot_be_read_is_refused_at_once(tmp_path):
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(easy_data(), tmp_path / "fails", callbacks=[Failing()])
    with pytest.raises(hb.UserError, match="tensors and plain types"):
        train(easy_data(), tmp_path / "unreadable", callbacks=[Unreadable()])
    train(easy_data(), tmp_path / "run", callbacks=[Counts()], epochs=1)
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace("Counts", "Forgetful"))
    with pytest.raises(hb.UserError, match="the checkpoint of another run"):
        train(easy_data(), tmp_path / "run", callbacks=[Forgetful()], epochs=1, resume=True)
    train(easy_data(), tmp_path / "forgets", callbacks=[Forgetful()], epochs=1)
    with pytest.raises(hb.UserError, match="of another model or version: 'steps'"):
        train(easy_data(), tmp_path / "forgets", callbacks=[Forgetful()], epochs=1, resume=True)


MINE = """
import torch

def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)

def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

def bright(x, rng):
    return (x + 0.05 * rng.uniform(x, 7)).clamp(0, 1)

class Log:
    def on_epoch_end(self, trainer, metrics):
        with open("log.txt", "a") as file:
            file.write(f"{metrics['epoch']}\\n")
"""

NAMED = {"--optimizer": "adam", "--scheduler": "halving", "--augment": "bright", "--callbacks": "Log"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the folder that the commands are called from."""
    (tmp_path / "mine_of_the_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine_of_the_test", raising=False)
    return [word for option, name in NAMED.items() for word in (option, f"mine_of_the_test:{name}")]


def test_what_an_import_path_names_trains_and_resumes_on_the_command_line(mine, tmp_path, monkeypatch, capsys):
    from hauberk.training.trainer import Trainer

    common = ["train", "--data", "digits", "--model", "mlp", "--steps", "1", "--epochs", "3", "--batch-size", "256", "--quiet"]
    assert main([*common, "--out", "whole", *mine]) == 0
    assert (tmp_path / "log.txt").read_text() == "1\n2\n3\n"
    rates = [json.loads(line)["lr"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rates == [1e-3, 5e-4, 2.5e-4]
    with monkeypatch.context() as patched:
        train_step, steps = Trainer._train_step, iter(range(100))

        def stopping(self, *inputs):
            train_step(self, *inputs)
            self._stop.asked = next(steps) >= 8

        patched.setattr(Trainer, "_train_step", stopping)
        assert main([*common, "--out", "stopped", *mine]) == 1
    for option in range(0, len(mine), 2):
        kept = [word for i, word in enumerate(mine) if i not in (option, option + 1)]
        assert main(["train", "--resume", "stopped", "--quiet", *kept]) == 2
        said = capsys.readouterr().err
        assert f"this run would import {mine[option + 1]!r}; add {mine[option]} {mine[option + 1]} if you trust it" in said
    assert main(["train", "--resume", "stopped", "--quiet", *mine]) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert main([*common, "--out", "refused", "--optimizer", "mine_of_the_test:adam", "--lr", "0.3"]) == 2
    assert "lr does not apply to an own optimizer" in capsys.readouterr().err


def test_the_command_line_says_how_a_run_with_objects_of_python_goes_on(tmp_path, digits):
    x, y = digits["train"].fetch(torch.arange(100))
    data = hb.data.TensorDataset(x, y, 10, "digits")
    for name, passed in {"optimizer": adam, "augment": shifted, "callbacks": [print]}.items():
        given = {"augmentation" if name == "augment" else name: passed}
        hb.train("mlp", data, threat=hb.Linf(0.1), epochs=1, quiet=True, out=tmp_path / name, **given)
        with pytest.raises(hb.UserError, match=rf"{name} of this run was made in Python \(.*\); go on with hb.train"):
            resume(tmp_path / name)
        page = make_report(tmp_path / name).read_text()
        assert "other objects that no command knows" in page
        assert "hauberk train" not in page


def test_logging_elsewhere_takes_three_lines(monkeypatch, tmp_path):
    """As docs/howto/own-training.md has it, with stand-ins for Weights & Biases and MLflow."""
    from types import ModuleType

    logged = {"wandb": [], "mlflow": []}
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.log = logged["wandb"].append
    mlflow.log_metrics = lambda metrics, step: logged["mlflow"].append((step, metrics))
    callbacks = [wandb.log, lambda metrics: mlflow.log_metrics(metrics, step=metrics["epoch"])]
    run = train(easy_data(), tmp_path, callbacks=callbacks)
    assert logged["wandb"] == run.metrics
    assert logged["mlflow"] == [(row["epoch"], row) for row in run.metrics]


SEVERAL = """
import sys, torch
sys.path[:0] = [{tests!r}, {tests!r} + "/training"]
import hauberk as hb
import test_passed_objects as passed
from helpers import THREAT, easy_data, tiny_net
torch.set_num_threads(1)

class Everywhere(passed.Counts):
    all_ranks = True

with hb.init_distributed() as world:
    one, everywhere = passed.Counts(), Everywhere()
    one.on_step_end = lambda *inputs: None
    how = dict(optimizer=passed.adam, scheduler=passed.every_epoch, augmentation=passed.shifted, callbacks=[one, everywhere])
    method = hb.method("trades", THREAT, steps=2)
    run = hb.train(tiny_net(), easy_data(), method=method, out={out!r}, **passed.PLAIN, **how)
    assert everywhere.seen == [(1, 3, 0), (2, 6, 1), (3, 9, 2)]
    assert one.began == world.is_main and len(one.seen) == 3 * world.is_main
    same = world.all_gather_object([value.tolist() for value in run.model.state_dict().values()])
    assert same[0] == same[1]
    again = Everywhere()
    how["callbacks"] = [one, again]
    hb.train(tiny_net(), easy_data(), method=method, out={out!r}, resume=True, **passed.PLAIN, **how)
    assert again.seen == everywhere.seen
"""


def test_two_processes_share_what_is_passed(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(SEVERAL.format(tests=str(TESTS), out=str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "2", str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    require_success(done.returncode, done.stderr)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
