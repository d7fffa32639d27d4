import errno
import json
import math
import os
import pickle
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
import hauberk.training.checkpoint as checkpoint
from hauberk.attacks.step_size import parse_step_size
from hauberk.core.distributed import SINGLE_PROCESS
from hauberk.core.io import read_json, read_state, write_json, write_state
from hauberk.data import Subset, TensorDataset, as_dataset, labels
from hauberk.methods import Output
from hauberk.models import ModelSpec
from hauberk.training.callbacks import TensorBoardLog
from hauberk.training.config import TrainConfig
from hauberk.training.metrics import EpochMetrics, TrainingDiverged, check_catastrophic_overfitting
from hauberk.training.plan import hold_out, make_plan
from hauberk.training.published import BY_DATA, OFFICIAL, SCHEDULE_PRESETS, resolve
from hauberk.training.schedule import eps_scale, first_drop, lr_factor, swa_epoch
from helpers import SHAPE, THREAT, OnceNaN, Signalling, TurnsNaN, easy_data, few_images, further, settings, tiny_batch, tiny_net


def train_tiny(data, out, resume=False, method="trades", preset="paper", **changes):
    how = hb.method(method, THREAT, steps=2, preset=preset)
    return hb.train(tiny_net(dropout=0.2), data, method=how, out=out, resume=resume, **settings(**changes))


@pytest.mark.parametrize(
    "extra",
    [
        {"ema": 0.9, "augment": "crop-flip"},
        {"schedule": "cosine", "class_weights": "balanced", "eps_warmup": 0.5},
        {"method": "at", "preset": "official"},  # which makes a pass after the optimiser's step
    ],
)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_identical(extra, tmp_path):
    data = easy_data()
    whole = train_tiny(Signalling(data, 0), tmp_path / "whole", **extra)
    last = read_state(tmp_path / "whole" / "state.ckpt")[0]
    stopped = 0
    for at in (122, 130, 169, 201, 242, 260):  # fetches, after two looks at all: in several batches, epochs, in validation
        folder = tmp_path / f"at{at}"
        run = train_tiny(Signalling(data, at), folder, **extra)
        stopped += run.interrupted
        while run.interrupted:
            run = train_tiny(Signalling(data, 0), folder, resume=True, **extra)
        state = read_state(folder / "state.ckpt")[0]
        for name, value in last["model"].items():
            assert torch.equal(value, state["model"][name]), name
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, run.model.state_dict()[name]), name
        without_time = [{k: v for k, v in row.items() if "second" not in k} for row in run.metrics]
        assert without_time == [{k: v for k, v in row.items() if "second" not in k} for row in whole.metrics]
        assert (folder / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()
    assert stopped >= 4


def test_parts_of_the_training_examples_are_counted_over_the_epoch():
    def output(clean, adv):
        logits, logits_adv = (None if p is None else torch.tensor(p).log() for p in (clean, adv))
        return Output(torch.tensor(1.0), None, torch.ones(2), logits, logits_adv, 0, 0)

    y, metrics = torch.tensor([0, 1]), EpochMetrics(torch.device("cpu"), SINGLE_PROCESS)
    metrics.add(output([[0.9, 0.1], [0.7, 0.3]], [[0.52, 0.48], [0.8, 0.2]]), y, 2)  # S+ at the boundary, S- wrong
    metrics.add(output([[0.6, 0.4], [0.2, 0.8]], [[0.6, 0.4], [0.1, 0.9]]), y, 2)  # both S+ and safe
    again = EpochMetrics(torch.device("cpu"), SINGLE_PROCESS)
    again.load_state_dict(metrics.state_dict())
    found = again.means()
    names = ("n_clean_right", "n_clean_wrong", "n_safe", "n_boundary", "n_wrong")
    assert [found[name] for name in names] == [3, 1, 2, 1, 1]
    assert all(isinstance(found[name], int) for name in names)
    assert found["misclassification_weight"] == pytest.approx((0.1 + 0.7 + 0.4 + 0.2) / 4)  # MART's 1 - p_y(x)
    assert (found["risk_plus"], found["risk_minus"], found["risk_misc"]) == (0, 1 / 4, 1 / 4)  # of S-, x and x' are class 0
    only = EpochMetrics(torch.device("cpu"), SINGLE_PROCESS)
    only.add(output(None, [[0.6, 0.4], [0.1, 0.9]]), y, 2)  # AT makes no clean pass, and none is made for this
    assert only.means().keys() == {"loss", "train_robust_accuracy", "n_safe", "n_boundary", "n_wrong"}


def test_the_risks_of_mart_count_right_on_x_and_wrong_on_its_adversarial_example():
    clean, adv = (
        [[3.0, 1, 0], [3, 1, 0], [1, 3, 0], [1, 3, 0], [1, 3, 0]],
        [[3.0, 1, 0], [1, 3, 0], [3, 1, 0], [1, 3, 0], [0, 1, 3]],
    )
    y, metrics = torch.zeros(5, dtype=torch.int64), EpochMetrics(torch.device("cpu"), SINGLE_PROCESS)
    out = Output(torch.tensor(1.0), None, torch.ones(5), torch.tensor(clean), torch.tensor(adv), 0, 0)
    metrics.add(out, y, 5)
    found = metrics.means()
    assert found["risk_plus"] == pytest.approx(1 / 5)  # the second example
    assert found["risk_minus"] == pytest.approx((1 + 1 + 2) / 5)  # R- is 1 where x' is right or stays wrong alike, otherwise 2
    assert found["risk_misc"] == pytest.approx(found["risk_plus"] + found["risk_minus"])


def test_what_a_run_leaves(tmp_path):
    run = hb.train("small-cnn", easy_data(), method="mart", threat=THREAT, out=tmp_path / "run", **settings(epochs=2))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {f"{which}.{ending}" for which in ("best", "last") for ending in ("safetensors", "json")} <= names
    assert {"run.json", "metrics.jsonl", "state.ckpt"} <= names
    assert not any(name.endswith(".part") for name in names)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.metrics
    assert [row["epoch"] for row in rows] == [1, 2]
    accuracies = {f"{part}_{kind}_accuracy" for part in ("train", "val") for kind in ("clean", "robust")}
    assert {"loss", "lr", *accuracies} <= set(rows[0])
    for row in rows:  # every training example once an epoch
        assert row["n_clean_right"] + row["n_clean_wrong"] == row["n_safe"] + row["n_boundary"] + row["n_wrong"]
        assert row["n_clean_right"] == pytest.approx(
            row["train_clean_accuracy"] * (row["n_clean_right"] + row["n_clean_wrong"])
        )
    card = json.loads((tmp_path / "run" / "best.json").read_text())
    assert card["method"]["name"] == "mart"
    assert card["threat"]["eps"] == "8/255"
    assert card["data"]["val"] == 12
    assert card["versions"]["torch"] == torch.__version__
    assert "tensorboard" in names
    x, _ = easy_data()
    loaded = hb.load(tmp_path / "run")
    assert torch.equal(loaded(x), run.model(x))
    assert not loaded.training
    assert not torch.equal(hb.load(tmp_path / "run", which="last")(x), loaded(x)) or run.best["epoch"] == 2


def test_it_learns_and_the_best_epoch_is_chosen_by_validation(tmp_path):
    run = hb.train("small-cnn", easy_data(200), threat=THREAT, out=tmp_path / "run", **settings(epochs=8))
    scores = [(row["val_robust_accuracy"], row["val_clean_accuracy"]) for row in run.metrics]
    assert run.best["epoch"] == scores.index(max(scores)) + 1
    assert max(scores)[0] > 0.5
    assert not run.interrupted


def test_nothing_on_disk_when_not_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    run = hb.train("mlp", easy_data(), threat=THREAT, **settings(epochs=1))
    assert run.folder is None
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(state, torch.get_rng_state())


def test_early_stopping():
    run = hb.train(tiny_net(), easy_data(), threat=THREAT, **settings(epochs=50, patience=2, lr=1e-9))
    assert run.best["epoch"] + 2 == len(run.metrics) < 50
    assert not run.interrupted


def test_validation_examples_are_never_trained_on():
    source = as_dataset(easy_data(100))
    plan = make_plan(ModelSpec("mlp", SHAPE, 5), hb.method("at", THREAT), TrainConfig(seed=3), source)
    assert len(plan.val) == 10
    assert set(plan.val.indices.tolist()).isdisjoint(plan.train.indices.tolist())
    assert len(plan.val) + len(plan.train) == 100
    seen = torch.cat(plan.batches(0))
    assert sorted(seen.tolist()) == list(range(90))
    assert not torch.equal(seen, torch.cat(plan.batches(1)))


def test_examples_in_the_order_of_time_are_validated_on_the_last_ones():
    source = as_dataset(easy_data(100))
    source.in_time_order = True
    for part, last in ((source, 99), (Subset(source, torch.arange(0, 80, 2)), 78)):
        plan = make_plan(ModelSpec("mlp", SHAPE, 5), hb.method("at", THREAT), TrainConfig(seed=3), part)
        assert plan.val.indices.tolist() == list(range(len(part)))[-len(part) // 10 :]
        assert part is source or int(part.indices[plan.val.indices[-1]]) == last
    mixed = Subset(source, torch.arange(79, -1, -1))
    assert not mixed.in_time_order
    assert hold_out(mixed, TrainConfig())[1].indices.tolist() != list(range(72, 80))


def test_validation_on_examples_of_your_own(tmp_path):
    x, y = easy_data(60, seed=7)
    how = {"threat": THREAT, "val_set": (x, y), **settings(epochs=1, val_size=-1)}
    run = hb.train(tiny_net(), easy_data(100), out=tmp_path / "run", **how)
    right = run.model(x).argmax(1) == y
    assert run.metrics[0]["val_clean_accuracy"] == pytest.approx(float(right.double().mean()))
    record = read_json(tmp_path / "run/run.json")
    assert (record["data"]["train"], record["data"]["val"], record["settings"]["val_size"]) == (100, 60, 0)
    assert 'val_set = "python:arrays"' in (tmp_path / "run/config.toml").read_text()
    assert hb.train(tiny_net(), easy_data(100), out=tmp_path / "run", resume=True, **how).metrics == run.metrics
    others = {"other validation data": (x, (y + 1) % 5), "data val = 60, not 9": (x[:9], y[:9]), "train = 100, not 90": None}
    for said, other in others.items():
        with pytest.raises(hb.UserError, match=said):
            hb.train(tiny_net(), easy_data(100), out=tmp_path / "run", resume=True, **{**how, "val_set": other})


def test_a_last_batch_of_one_is_dropped():
    source = as_dataset(easy_data(33))
    plan = make_plan(ModelSpec("mlp", SHAPE, 5), hb.method("at", THREAT), TrainConfig(batch_size=16, val_size=0), source)
    assert [len(batch) for batch in plan.batches(0)] == [16, 16]
    assert plan.steps_per_epoch == 2


def test_balanced_class_weights():
    x, y = easy_data(100)
    y = torch.where(torch.arange(100) < 80, 0, 1)
    plan = make_plan(
        ModelSpec("mlp", SHAPE, 2),
        hb.method("at", THREAT),
        TrainConfig(class_weights="balanced", val_size=0),
        TensorDataset(x, y, 2),
    )
    assert torch.allclose(plan.class_weights, torch.tensor([100 / 160, 100 / 40]))
    assert float(plan.class_weights[labels(plan.train)].mean()) == pytest.approx(1.0)


def test_class_weights_are_of_the_classes_without_the_one_for_adversarial_inputs():
    x = easy_data(100)[0]
    source, method = as_dataset((x, torch.where(torch.arange(100) < 80, 0, 1))), hb.method("adversarial-class", THREAT)

    def plan(weights):
        return make_plan(ModelSpec("mlp", SHAPE, 3), method, TrainConfig(class_weights=weights, val_size=0), source)

    assert torch.allclose(plan("balanced").class_weights, torch.tensor([100 / 160, 100 / 40]))
    with pytest.raises(hb.UserError, match="class_weights needs 2 numbers"):
        plan((1.0, 1.0, 1.0))
    for weights in ("balanced", (1.0, 2.0)):
        how = {"method": method, **settings(epochs=1, class_weights=weights)}
        assert hb.train(tiny_net(classes=3), source, **how).metrics


def learning_rate(config, step, total):
    return config.lr * lr_factor(config, step, total)


def test_schedules():
    steps = TrainConfig(epochs=100, lr=0.1, schedule="steps")
    rates = [learning_rate(steps, epoch * 10, 1000) for epoch in (0, 73, 74, 88, 89, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    shares = TrainConfig(epochs=20, lr=0.1, schedule="steps", milestones=(0.5,))
    assert [learning_rate(shares, s, 200) for s in (99, 100)] == pytest.approx([0.1, 0.01])
    cosine = TrainConfig(lr=0.2, schedule="cosine")
    assert learning_rate(cosine, 500, 1000) == pytest.approx(0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1001, cycle_momentum=False)
    one = TrainConfig(lr=0.1)
    for step in range(1000):
        assert learning_rate(one, step, 1000) == pytest.approx(optimizer.param_groups[0]["lr"], rel=0.02, abs=2e-4)
        optimizer.step()
        theirs.step()
    assert [first_drop(config) for config in (steps, shares, cosine)] == [74, 10, 22]
    without_drop = [TrainConfig(epochs=epochs, schedule="steps") for epochs in (1, 2, 40)]
    assert [first_drop(config) for config in without_drop] == [0, 1, 30]
    assert [eps_scale(0.5, s, 100) for s in (0, 24, 49, 99)] == pytest.approx([0.02, 0.5, 1.0, 1.0])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(hb.UserError, match=r"the loss became nan at epoch 2, step 2; the last good checkpoint, of epoch 1"):
        hb.train(TurnsNaN(after=4), easy_data(), threat=THREAT, out=tmp_path / "run", **settings())
    state, _ = read_state(tmp_path / "run" / "state.ckpt")
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


class OnceNaNGradient(TurnsNaN):
    """Its next loss is not finite; what free training carries from batch to batch takes no harm."""

    def forward(self, x):
        self.calls += self.training
        logits = self.net(x)
        if self.training and self.calls == self.after:
            logits.register_hook(lambda grad: grad * math.nan)
        return logits


@pytest.mark.parametrize(
    ("method", "settings", "begins"),
    [
        ("mail-at", {"burn_in": 3}, 3),
        ("at+awp", {"awp_warmup": 2}, 2),
        ("gairat+awp", {"burn_in": 1, "awp_warmup": 4}, 4),
        ("at", {}, 0),
    ],
)
def test_the_best_epoch_is_one_of_the_method_itself(monkeypatch, tmp_path, method, settings, begins):
    """Epochs before the burn-in is over are plain adversarial training, however well they do."""
    worse = iter(range(9, 0, -1))
    monkeypatch.setattr(
        "hauberk.training.trainer.validate", lambda *_: {"val_robust_accuracy": next(worse) / 10, "val_clean_accuracy": 0.9}
    )
    how = {"epochs": 6, "patience": 2, "batch_size": 20, "val_size": 20, "quiet": True, "threads": 1, "on_divergence": "ignore"}
    bound = hb.method(method, hb.Linf("8/255"), steps=1, **settings)
    assert bound.first_full_epoch == begins
    run = hb.train("small-cnn", tiny_batch(80), method=bound, out=tmp_path / "run", **how)
    assert run.best["epoch"] == begins + 1
    assert json.loads((tmp_path / "run" / "best.json").read_text())["epoch"] == begins + 1
    assert len(run.metrics) == min(6, begins + 3)  # patience counts from there


def test_a_run_goes_back_to_its_best_weights_if_asked(tmp_path):
    whole = hb.train(OnceNaN(after=6), easy_data(), threat=THREAT, out=tmp_path / "run", on_divergence="rollback", **settings())
    assert [row["epoch"] for row in whole.metrics] == [1, 2, 3]
    assert all(row["lr"] <= 0.025 for row in whole.metrics[1:])
    assert read_state(tmp_path / "run" / "state.ckpt")[0]["n_rollbacks"] == 1
    with pytest.raises(hb.UserError, match="became nan at epoch 2, step 1, after 3 returns to earlier weights; the last good"):
        hb.train(TurnsNaN(after=4), easy_data(), threat=THREAT, out=tmp_path / "lost", on_divergence="rollback", **settings())
    with pytest.raises(hb.UserError, match="became nan at epoch 2, step 2"):
        hb.train(OnceNaN(after=5), easy_data(), threat=THREAT, out=tmp_path / "stopped", **settings())
    free = hb.train(
        OnceNaNGradient(after=30), easy_data(), method="free-at", threat=THREAT, on_divergence="rollback", **settings()
    )
    assert len(free.metrics) == 3
    assert all(value.isfinite().all() for value in free.model.state_dict().values())
    more = {"out": tmp_path / "stopped", "resume": True, "on_divergence": "rollback"}
    again = hb.train(OnceNaN(after=10**9), easy_data(), threat=THREAT, **more, **settings())
    assert len(again.metrics) == 3
    with pytest.raises(hb.UserError, match=r"became nan at epoch 1, step 1\. Try a lower lr"):
        hb.train(TurnsNaN(after=0), easy_data(), threat=THREAT, on_divergence="rollback", **settings())


def test_catastrophic_overfitting_is_told_from_noise_stumbles_and_slow_learning():
    def row(robust, seen=None, clean=0.8):
        found = {"epoch": 9, "val_robust_accuracy": robust, "val_clean_accuracy": clean}
        return found if seen is None else found | {"train_robust_accuracy": seen}

    best = row(0.4)
    told = r"from 40\.0 % to 2\.0 % in epoch 9, while 85.0 % withstand .* and 80.0 % are right without one"
    with pytest.raises(TrainingDiverged, match=told):
        check_catastrophic_overfitting(row(0.02, 0.85), best, 1000, 10)
    with pytest.raises(TrainingDiverged):  # clean accuracy may suffer, too, at a large radius
        check_catastrophic_overfitting(row(0.02, 0.85, clean=0.5), best, 1000, 10)
    for now, seen, before, held_out in (
        (0.3, 0.85, best, 1000),
        (0.05, 0.34, best, 1000),
        (0.0, 0.9, best, 12),
        (0, 1, {}, 1000),
    ):
        check_catastrophic_overfitting(row(now, seen), before, held_out, 10)
    check_catastrophic_overfitting(row(0.0), best, 1000, 10)  # a method that does not attack
    check_catastrophic_overfitting(row(0.0, 0.9, clean=0.0), best, 1000, 10)
    check_catastrophic_overfitting(row(0.026, 0.144), row(0.1), 500, 10)  # chance cannot be lost
    check_catastrophic_overfitting(row(0.153, 0.581), row(0.499), 1000, 2)
    # MART on digits in its fourth epoch, which ended at 93.7 %: clean accuracy fell with it.
    check_catastrophic_overfitting(row(0.175, 0.362, clean=0.566), row(0.357, clean=0.804), 143, 10)


def test_damaged_foreign_and_hostile_checkpoints(tmp_path):
    data = easy_data()
    train_tiny(data, tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "state.ckpt"
    whole = path.read_bytes()
    for length in (0, 1, 15, 16, 40, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(hb.UserError, match=r"cut short|not a Hauberk"):
            train_tiny(data, tmp_path / "run", resume=True, epochs=1)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(hb.UserError, match="damaged"):
        read_state(path)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(hb.UserError, match="not a Hauberk checkpoint"):
        read_state(path)


def test_the_checkpoint_before_is_used_and_named(tmp_path):
    path = tmp_path / "state.ckpt"
    write_state(path, {"epoch": 1})
    write_state(path, {"epoch": 2})
    path.write_bytes(path.read_bytes()[:-1])
    state, warning = read_state(path)
    assert state == {"epoch": 1}
    assert "state.ckpt.previous" in warning


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_checkpoints_that_carry_code_are_refused(tmp_path):
    write_state(tmp_path / "state.ckpt", {"epoch": Evil(tmp_path / "owned")})
    with pytest.raises(hb.UserError, match="carries code"):
        read_state(tmp_path / "state.ckpt")
    torch.save({"weight": Evil(tmp_path / "owned")}, tmp_path / "net.pth")
    with pytest.raises(hb.UserError, match="carries code"):
        hb.load(tmp_path / "net.pth", model=tiny_net())
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    with pytest.raises(hb.UserError):
        hb.load(tmp_path / "old.pt", model=tiny_net())
    assert not (tmp_path / "owned").exists()


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    data = easy_data()
    train_tiny(data, tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "best.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(hb.UserError, match="No space left on device"):
        train_tiny(data, tmp_path / "other", epochs=1)
    with pytest.raises(hb.UserError, match="what was saved before is intact"):
        write_state(tmp_path / "run" / "state.ckpt", {"epoch": 9})
    monkeypatch.undo()
    (tmp_path / "run" / "state.ckpt").rename(
        tmp_path / "run" / "state.ckpt.previous"
    )  # as a crash between two renames leaves it
    assert len(train_tiny(data, tmp_path / "run", resume=True, epochs=1).metrics) == 1
    assert read_state(tmp_path / "run" / "state.ckpt")[0]["epoch"] == 1
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


class Stopping:
    """Asks the run to stop after its first epoch."""

    def on_epoch_end(self, trainer, metrics):
        if metrics["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)


DAMAGES = {
    "rates": lambda state: state["scheduler"].update(base_lrs=["x"]),
    "step": lambda state: state["scheduler"].update(last_epoch=10**400),
    "method": lambda state: state["scheduler"].update(step=1),
    "momentum": lambda state: state["optimizer"]["param_groups"][0].update(momentum="x"),
    "shape": lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7)),
    "number": lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(())),
    "rows": lambda state: state["local"][0]["callbacks"][0].update(rows=[{"epoch": 10**400}]),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run stopped after an epoch of two, and its checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train_tiny(easy_data(), folder, epochs=2, callbacks=[Stopping()]).interrupted
    return folder, (folder / "state.ckpt").read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_its_optimizer_or_scheduler_cannot_use_is_refused_in_one_line(damage, stopped):
    folder, whole = stopped
    (folder / "state.ckpt").write_bytes(whole)
    state = read_state(folder / "state.ckpt")[0]
    DAMAGES[damage](state)
    write_state(folder / "state.ckpt", state)
    with pytest.raises(hb.UserError, match=r"the checkpoint in .* (cannot be gone on with|is of another model)"):
        train_tiny(easy_data(), folder, resume=True, epochs=2, callbacks=[Stopping()])


@pytest.mark.parametrize("content", [None, b"", b'{"epoch": 1, "lo', b"[" * 100_000])
def test_metrics_that_are_lost_or_damaged_are_written_again_from_the_checkpoint(content, stopped, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "run")
    (folder / "state.ckpt").write_bytes(stopped[1])
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").unlink() if content is None else (folder / "metrics.jsonl").write_bytes(content)
    run = train_tiny(easy_data(), folder, resume=True, epochs=2, callbacks=[Stopping()])
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    assert (folder / "metrics.jsonl").read_bytes().startswith(before)


def test_a_file_of_tensorboard_that_cannot_be_written_is_one_line(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(hb.UserError, match=r"cannot write .*tensorboard"):
        TensorBoardLog(tmp_path / "tensorboard").on_train_begin(None)


def test_resuming_as_something_else_is_refused(tmp_path):
    train_tiny(easy_data(), tmp_path / "run", epochs=1)
    for changes, says in (
        ({"epochs": 2}, "settings epochs = 1"),
        ({"lr": 0.2}, "settings lr"),
        ({"method": "mart"}, "method name = 'trades'"),
    ):
        with pytest.raises(hb.UserError, match=says):
            train_tiny(easy_data(), tmp_path / "run", resume=True, **{"epochs": 1, **changes})
    again = train_tiny(easy_data(), tmp_path / "run", resume=True, epochs=1)  # nothing left to do
    assert len(again.metrics) == 1


def test_a_run_of_a_version_with_other_settings_is_refused_by_their_names(tmp_path):
    train_tiny(easy_data(), tmp_path / "run", epochs=1)
    record = read_json(tmp_path / "run/run.json")
    del record["settings"]["mixup"]
    write_json(tmp_path / "run/run.json", record)
    with pytest.raises(hb.UserError, match=r"by a version of hauberk with other settings \(mixup\); use that, or a new folder"):
        train_tiny(easy_data(), tmp_path / "run", resume=True, epochs=1)


def changed_data(what):
    """The same data set but for its last example, or in another order."""
    x, y = easy_data()
    if what == "label":
        y[-1] = (y[-1] + 1) % 5
    if what == "pixel":
        x[-1, -1, -1, -1] += 0.01
    return (x.flip(0), y.flip(0)) if what == "order" else (x, y)


@pytest.mark.parametrize("kind", [as_dataset, lambda data: Signalling(data, 0)], ids=["arrays", "items"])
@pytest.mark.parametrize("what", ["label", "pixel", "order"])
def test_resuming_on_other_data_is_refused(what, kind, tmp_path):
    train_tiny(kind(easy_data()), tmp_path / "run", epochs=1)
    with pytest.raises(hb.UserError, match="started with other training data"):
        train_tiny(kind(changed_data(what)), tmp_path / "run", resume=True, epochs=1)


def test_resuming_with_other_extra_data_is_refused(tmp_path):
    train_tiny(easy_data(), tmp_path / "run", epochs=1, extra=changed_data("label"))
    with pytest.raises(hb.UserError, match="other extra data"):
        train_tiny(easy_data(), tmp_path / "run", resume=True, epochs=1, extra=easy_data())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        train_tiny(easy_data(), tmp_path / name, epochs=1, seed=seed)
    (tmp_path / "a" / "state.ckpt").write_bytes((tmp_path / "b" / "state.ckpt").read_bytes())
    with pytest.raises(hb.UserError, match="is the checkpoint of another run"):
        train_tiny(easy_data(), tmp_path / "a", resume=True, epochs=1)


def test_resuming_with_other_code_of_the_model_is_refused(tmp_path):
    net = tiny_net(dropout=0.2)
    train_tiny(easy_data(), tmp_path / "run", epochs=1)
    net[2].forward = torch.tanh
    method = hb.method("trades", THREAT, steps=2)
    with pytest.raises(hb.UserError, match="model code = 'Sequential"):
        hb.train(net, easy_data(), method=method, out=tmp_path / "run", resume=True, **settings(epochs=1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"versions": {"torch": "1.0"}}, "hauberk None, torch 1.0, python None"), ({"threads": 7}, "7 threads")],
)
def test_resuming_under_other_versions_or_threads_is_said(changes, says, tmp_path, capsys):
    train_tiny(easy_data(), tmp_path / "run", epochs=1)
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    train_tiny(easy_data(), tmp_path / "run", resume=True, epochs=1, quiet=False)
    said = capsys.readouterr().out.replace("\n", " ")
    train_tiny(easy_data(), tmp_path / "run", resume=True, epochs=1)
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'run'} was begun with {says}")  # quiet or not
    assert f"begun with {says}, going on with hauberk {hb.__version__}" in said
    assert "not the same bit for bit" in said


@pytest.mark.parametrize(("call", "after"), [(call, after) for call in ("open", "fsync", "replace") for after in (False, True)])
def test_a_run_killed_while_its_record_is_written_can_be_begun_again(call, after, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    home, folder = {"open": os, "fsync": os, "replace": Path}[call], tmp_path / "run"
    there = getattr(home, call)

    def dies(*words, **more):
        if after:
            there(*words, **more)
        raise Killed

    (folder / "tensorboard").mkdir(parents=True)  # made before the record, where TensorBoard is installed
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *words, **more: None)  # a process that is killed tidies nothing up
        patched.setattr(checkpoint, "write_json", lambda *words: (patched.setattr(home, call, dies), write_json(*words)))
        with pytest.raises(Killed):
            train_tiny(easy_data(), folder, epochs=1)
    if not (folder / "run.json").exists():
        with pytest.raises(hb.UserError, match="begin it again, without --resume"):
            train_tiny(easy_data(), folder, resume=True, epochs=1)
    run = train_tiny(easy_data(), folder, resume=(folder / "run.json").exists(), epochs=1)
    assert len(run.metrics) == 1
    assert not list(folder.glob("*.part"))


class Picky(nn.Module):
    """As networks of other libraries are, which assert the size of their images."""

    def forward(self, x):
        assert x.shape[-1] == 224, "images of 224 only"
        return x


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"epochs": "many"}, "whole number"),
        ({"epochs": 2.5}, "whole number"),
        ({"lr": "fast"}, "lr must be a finite number, got .fast."),
        ({"momentum": 1.0}, "momentum must be"),
        ({"schedule": "exponential"}, "schedule must be"),
        ({"milestones": (90.0, 75.0)}, "rising"),
        ({"val_size": 60}, "leaves nothing to train on"),
        ({"patience": 2, "val_size": 0}, "patience waits for better results on held-out examples, and there are none"),
        ({"class_weights": (1.0, 2.0)}, "needs 5 numbers"),
        ({"device": "tpu9"}, "cannot be used"),
        ({"method": "madry"}, "unknown method"),
        ({"threat": None}, "needs a threat model"),
        ({"model": "resnet19"}, "did you mean 'resnet18'"),
        ({"model": tiny_net(classes=4)}, "labels must be 0 to 3"),
        ({"model": nn.Sequential(tiny_net(), nn.Softmax(1))}, "returns probabilities"),
        ({"model": nn.Flatten(0)}, "must return logits of shape"),
        ({"model": nn.Linear(7, 5)}, "cannot take inputs of shape"),
        ({"model": Picky()}, "cannot take inputs of shape .*: images of 224 only"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 1))}, "one number per input"),
        ({"out": "/proc/nowhere/run"}, "cannot make the folder"),
        ({"resume": True}, "needs out="),
    ],
)
def test_mistakes_get_one_clear_line(kwargs, says):
    arguments = {"model": "small-cnn", "threat": THREAT, **settings(epochs=1), **kwargs}
    with pytest.raises(hb.UserError, match=says) as caught:
        hb.train(arguments.pop("model"), easy_data(), **arguments)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_outputs_of_a_network_is_refused_before_training():
    x, y = easy_data()
    beyond = y.clone()
    beyond[40:] = 5  # further than the batch that the network is tried on
    mix = hb.data.ConcatDataset([as_dataset((x, y)), as_dataset((x, beyond))])
    for which, given in {"train_set": (x, beyond), "val_set": (x, beyond), "extra": mix}.items():
        how = {"train_set": (x, y), "threat": THREAT, **settings(epochs=1, val_size=-1), which: given}
        with pytest.raises(hb.UserError, match=f"^labels of {which} must be 0 to 4, found 0 to 5$"):
            hb.train(tiny_net(), **how)
    how = {"method": "adversarial-class", "threat": THREAT, **settings(epochs=1)}
    with pytest.raises(hb.UserError, match=r"^labels of train_set must be 0 to 4, found 0 to 5$"):
        hb.train(tiny_net(classes=6), (x, beyond), **how)


def test_a_folder_that_exists_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(hb.UserError, match="exists; go on with it"):
        hb.train("mlp", easy_data(), threat=THREAT, out=tmp_path, **settings(epochs=1))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_training_that_saved_nothing_is_begun_anew_in_its_folder(tmp_path):
    how = {"threat": THREAT, "out": tmp_path / "run", **settings(epochs=1)}
    with pytest.raises(hb.UserError, match="Try a lower lr"):
        hb.train(TurnsNaN(after=0), easy_data(), **how)
    anew = hb.train(tiny_net(), easy_data(), **{**how, "lr": 0.01})
    assert len(anew.metrics) == 1
    assert read_json(tmp_path / "run/run.json")["settings"]["lr"] == 0.01
    with pytest.raises(hb.UserError, match="exists; go on with it"):  # something was, this time
        hb.train(tiny_net(), easy_data(), **how)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.toml").write_text("epochs = 3\n")
    with pytest.raises(hb.UserError, match="exists; go on with it"):
        hb.train(tiny_net(), easy_data(), **{**how, "out": tmp_path / "mine"})


def test_known_class_counts_are_compared():
    with pytest.raises(hb.UserError, match="4 outputs, but the data has 5 classes"):
        hb.train(tiny_net(classes=4), TensorDataset(easy_data()[0], easy_data()[1] % 4, 5), threat=THREAT, **settings(epochs=1))


def test_works_in_a_thread_and_puts_signal_handlers_back():
    before = signal.getsignal(signal.SIGINT)
    results = []
    worker = threading.Thread(target=lambda: results.append(hb.train("mlp", easy_data(), threat=THREAT, **settings(epochs=1))))
    worker.start()
    worker.join()
    assert len(results) == 1
    hb.train("mlp", easy_data(), threat=THREAT, **settings(epochs=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_recommended_settings_are_valid():
    presets = [found for by_data in SCHEDULE_PRESETS.values() for found in by_data.values()]
    for found in (*presets, *BY_DATA.values(), *OFFICIAL.values(), resolve("else", "mlp")):
        assert TrainConfig(**found.settings).epochs > 0
        assert found.source
    assert resolve("cifar10", "wrn-32-10").settings["weight_decay"] == 7e-4
    assert resolve("cifar10", "preact-resnet18").settings["augment"] == "crop-flip-reflect"
    for like, name in (
        ("resnet18", "resnet18-16"),
        ("preact-resnet18", "preact-resnet18-silu"),
        ("wrn-28-10", "wrn-28-10-silu"),
    ):
        assert resolve("cifar10", name) == resolve("cifar10", like)
    express = resolve("mnist", "small-cnn", schedule_preset="express").settings
    assert express["epochs"] == SCHEDULE_PRESETS["express"][""].settings["epochs"]
    assert express["eps_warmup"] == 0.3  # MNIST does not start to learn without
    robust = resolve("cifar10", "resnet18", "trades+awp", schedule_preset="robust")
    assert (robust.settings["augment"], robust.settings["ema"], robust.hyperparameters) == (
        "idbh-weak",
        -1.0,
        {"label_smoothing": 0.1},
    )
    assert "augment" not in resolve("digits", "mlp", "at", schedule_preset="robust").settings  # made for natural images
    assert resolve("svhn", "resnet18", "mart", schedule_preset="robust").hyperparameters == {}  # smooths for two alone
    with pytest.raises(hb.UserError, match="schedule_preset is"):
        resolve("mnist", "small-cnn", schedule_preset="quick")
    assert resolve("cifar10", "resnet18", "mail-at").settings["epochs"] == 100
    assert resolve("cifar10", "resnet18", "mail-at", preset="official").settings["milestones"] == (76.0, 91.0, 101.0)
    for name, _ in OFFICIAL:
        assert name.partition("+")[0] in hb.list_methods()


RATES = {  # of an epoch counted from 1, as the scripts compute them
    ("at", "wrn-32-10"): lambda t: 0.1 if t <= 40_000 / 390 else 0.01 if t <= 60_000 / 390 else 0.001,
    ("trades", "wrn-34-10"): lambda t: 0.01 if t >= 75 else 0.1,
    ("mart", "resnet18"): lambda t: 1e-5 if t >= 100 else 1e-4 if t >= 90 else 1e-3 if t >= 75 else 0.01,
    ("mart", "wrn-34-10"): lambda t: 0.001 if t >= 90 else 0.01 if t >= 75 else 0.1,
    ("fat", "wrn-32-10"): lambda t: 0.0005 if t >= 110 else 0.001 if t >= 90 else 0.01 if t >= 60 else 0.1,
    ("fat-trades", "wrn-34-10"): lambda t: 0.01 if t >= 75 else 0.1,
    ("fat-mart", "wrn-34-10"): lambda t: 0.001 if t >= 90 else 0.01 if t >= 60 else 0.1,
    ("trades+awp", "wrn-34-10"): lambda t: 0.001 if t >= 150 else 0.01 if t >= 100 else 0.1,
    ("at", "preact-resnet18"): lambda t: 0.001 if t - 1 >= 150 else 0.01 if t - 1 >= 100 else 0.1,  # counts from 0
    ("gairat", "wrn-32-10"): lambda t: (
        0.1 if t / 120 < 0.5 else 0.1 / 10 if t / 120 < 0.75 else 0.1 / 100 if t / 120 < 11 / 12 else 0.1 / 200
    ),
    ("fgsm-at", "preact-resnet18"): lambda t: 0.2 * np.interp(t - 1, [0, 7.5, 15], [0, 1, 0]),  # in fact of each step
    **{  # MAIL counts from 0
        (name, "resnet18"): lambda t: 1e-5 if t - 1 >= 100 else 1e-4 if t - 1 >= 90 else 1e-3 if t - 1 >= 75 else 0.01
        for name in ("mail-at", "mail-trades", "mail-mart")
    },
    ("arow", "resnet18"): lambda t: 0.001 if t - 1 >= 100 else 0.01 if t - 1 >= 60 else 0.1,  # as torch's MultiStepLR counts
    **{  # timm's, of steps
        key: lambda t: 0.001 if t - 1 >= 150 else 0.01 if t - 1 >= 100 else 0.1
        for key in (("at+adr", "resnet18"), ("trades+adr", "resnet18"), ("at+adr+awp", "wrn-34-10"))
    },
    ("rebat", "preact-resnet18"): lambda t: 0.1 if t - 1 < 100 else 0.1 / 1.5 if t - 1 < 150 else 0.1 / 1.5**2,
    ("n-fgsm", "preact-resnet18"): lambda t: 0.2 * np.interp(t - 1, [0, 15, 30], [0, 1, 0]),  # in fact of each step
    **{
        (name, "preact-resnet18"): lambda t: 0.1 if (t - 1) / 200 < 0.5 else 0.1 / 10 if (t - 1) / 200 < 0.75 else 0.1 / 100
        for name in ("cfa-at", "cfa-trades")
    },
    **{  # counts from 1
        (name, "resnet18"): lambda t: 0.001 if t >= 110 - 5 else 0.01 if t >= 110 - 10 else 0.1
        for name in ("dafa-at", "dafa-trades")
    },
    ("frl-rmrw", "preact-resnet18"): lambda t: 1e-5 if t - 1 >= 80 else 1e-4 if t - 1 >= 40 else 1e-3,
}


def test_data_are_hashed_only_where_a_run_is_kept(tmp_path, monkeypatch):
    class Hashed(Exception):
        pass

    def refuse(dataset):
        raise Hashed

    monkeypatch.setattr("hauberk.training.plan.data_digest", refuse)
    train_tiny(easy_data(40), None, epochs=1)
    with pytest.raises(Hashed):
        train_tiny(easy_data(40), tmp_path / "run", epochs=1)


LENGTHS = {  # epochs and weight decay of the scripts, by hand
    ("at", "wrn-32-10"): (205, 2e-4),  # 80,000 steps of 128
    ("at", "preact-resnet18"): (200, 5e-4),
    ("trades", "wrn-34-10"): (76, 2e-4),
    ("trades+awp", "wrn-34-10"): (200, 5e-4),
    ("mart", "resnet18"): (120, 3.5e-3),
    ("mart", "wrn-34-10"): (90, 7e-4),
    ("fat", "wrn-32-10"): (120, 2e-4),
    ("fat-trades", "wrn-34-10"): (85, 2e-4),
    ("fat-mart", "wrn-34-10"): (90, 2e-4),
    ("gairat", "wrn-32-10"): (120, 2e-4),
    ("fgsm-at", "preact-resnet18"): (15, 5e-4),
    **{(name, "resnet18"): (120, 3.5e-3) for name in ("mail-at", "mail-trades", "mail-mart")},
    ("arow", "resnet18"): (120, 5e-4),
    **{(name, "resnet18"): (200, 5e-4) for name in ("at+adr", "trades+adr")},
    ("at+adr+awp", "wrn-34-10"): (200, 5e-4),
    ("rebat", "preact-resnet18"): (200, 5e-4),
    ("n-fgsm", "preact-resnet18"): (30, 5e-4),
    **{(name, "preact-resnet18"): (200, 5e-4) for name in ("cfa-at", "cfa-trades")},
    **{(name, "resnet18"): (110, 5e-4) for name in ("dafa-at", "dafa-trades")},
    ("frl-rmrw", "preact-resnet18"): (120, 5e-4),
}


@pytest.mark.parametrize(("method", "model"), RATES)
def test_official_schedules_are_the_scripts_epoch_by_epoch(method, model):
    chosen = resolve("cifar10", model, method, preset="official").config
    assert (chosen.epochs, chosen.weight_decay) == LENGTHS[method, model]
    rates = [learning_rate(chosen, epoch, chosen.epochs) for epoch in range(chosen.epochs)]
    assert rates == pytest.approx([RATES[method, model](epoch + 1) for epoch in range(chosen.epochs)])


def test_the_official_rate_of_dkl_falls_by_half_a_cosine_while_its_radius_grows():
    """Once an epoch in its code, at each step here: they are as far apart as a rate is from that of the epoch before."""
    chosen = resolve("cifar10", "wrn-34-10", "ikl+awp", preset="official").config
    theirs = [0.2 * 0.5 * (1 + math.cos(math.pi * epoch / 201)) for epoch in range(1, 201)]
    assert [learning_rate(chosen, epoch, 200) for epoch in range(200)] == pytest.approx(theirs, abs=0.002)
    assert [eps_scale(chosen.eps_warmup, epoch, 200) for epoch in range(200)] == [epoch / 200 for epoch in range(1, 201)]
    assert hb.method("gkl+awp", THREAT, preset="official").with_schedule(200).first_full_epoch == 9
    with pytest.raises(hb.UserError, match="eps_warmup is a part of the training"):
        TrainConfig(eps_warmup=1.5)


def test_official_averages_are_those_of_the_scripts():
    """ARoW's begins with epoch 51, FAWA takes in what is robust enough, ReBAT's is that of its loss."""
    found = {key: one.settings for key, one in OFFICIAL.items()}
    assert swa_epoch(TrainConfig(**found["arow", "resnet18"])) == 50
    for name, threshold in (("cfa-at", 0.2), ("cfa-trades", 0.24)):
        of = found[name, "preact-resnet18"]
        assert (of["fawa"], of["fawa_threshold"], of["augment"]) == (0.88, threshold, "crop-flip-reflect")
    assert found["rebat", "preact-resnet18"]["ema"] == hb.method("rebat", THREAT).objective.ema_decay == 0.999
    fast = {key for key, of in found.items() if of.get("nesterov")}
    assert fast == {
        *((name, "resnet18") for name in ("at+adr", "trades+adr", "dafa-at", "dafa-trades")),
        ("at+adr", "wrn"),
    }


@pytest.mark.parametrize(
    ("name", "epochs", "settings"),  # by epoch from 1: (weights or perturbation on, τ)
    [
        ("fat", 120, lambda t: (True, 0 if t <= 50 else 1 if t <= 90 else 2)),
        ("fat-trades", 85, lambda t: (True, 0 if t <= 30 else 1 if t <= 50 else 2 if t <= 70 else 3)),
        ("fat-mart", 90, lambda t: (True, 0 if t <= 20 else 1 if t <= 40 else 2 if t <= 60 else 3 if t <= 80 else 4)),
        ("gairat", 120, lambda t: (t >= 60, None)),
        ("mail-at", 120, lambda t: (t - 1 >= 76, None)),  # counts from 0
        ("trades+awp", 200, lambda t: (t >= 10, None)),
        ("at+awp", 200, lambda t: (True, None)),
    ],
)
def test_official_methods_change_in_the_scripts_epochs(name, epochs, settings):
    method = hb.method(name, THREAT, preset="official").with_schedule(epochs)
    ours = [(e >= method.first_full_epoch, method.inner.attack_at((e + 1) / epochs).tau) for e in range(epochs)]
    assert ours == [settings(epoch + 1) for epoch in range(epochs)]


def test_gairat_reweights_from_the_epoch_of_its_first_drop():
    chosen = resolve("cifar10", "wrn-32-10", "gairat", preset="official").config
    assert hb.method("gairat", THREAT, preset="official").first_full_epoch == first_drop(chosen) == 59


def test_a_method_by_name_has_what_is_published_and_one_that_was_made_stays_as_it_is(tmp_path):
    how = {"epochs": 1, "batch_size": 4, "val_size": 0, "augment": "none", "quiet": True, "threads": 1}
    same = {"at": 2 / 255, hb.method("at", THREAT): 2 / 255}
    for data, steps in {"svhn": {**same, "at": 1 / 255}, "cifar10": same}.items():
        for method, step in steps.items():
            out = tmp_path / f"{data}-{getattr(method, 'name', 'by-name')}"
            threat = {"threat": THREAT} if method == "at" else {}
            hb.train("preact-resnet18", few_images(data), method=method, out=out, **threat, **how)
            used = json.loads((out / "run.json").read_text())["method"]
            made = hb.method(used.pop("name"), THREAT, **used)
            assert float(parse_step_size(made.attack.step_size).of(THREAT.eps)) == pytest.approx(step)


def test_a_name_that_a_module_has_of_itself_is_no_name_of_a_network(tmp_path):
    data = TensorDataset(*easy_data(), 5, "cifar10")
    for name in ("resnet18", 3):
        net = tiny_net()
        net.name = name
        how = {"threat": THREAT, "epochs": 1, "val_size": 0, "quiet": True, "out": tmp_path / str(name)}
        hb.train(net, data, **how)
        record = json.loads((tmp_path / str(name) / "run.json").read_text())["settings"]
        assert record["weight_decay"] == resolve("cifar10", "").settings.get("weight_decay", TrainConfig.weight_decay)
        assert record["weight_decay"] != resolve("cifar10", "resnet18").settings["weight_decay"]


def published_method(name, data, model, preset="paper", seed=0, **given):
    chosen = resolve(data, model, name, preset=preset, hyperparameters=given).hyperparameters
    made = hb.method(name, THREAT, preset=preset, seed=seed, **chosen, **further(name))
    made.settings.pop("teacher", None)
    return made


@pytest.mark.parametrize(("key", "found"), [*OFFICIAL.items(), *BY_DATA.items()])
def test_every_published_setting_of_a_method_reaches_it(key, found):
    if key in OFFICIAL:
        made = published_method(key[0], "cifar10", key[1].replace("wrn", "wrn-34-10"), preset="official")
        assert found.hyperparameters.items() <= made.settings.items()
        return
    for name in (*hb.list_methods(), "at+awp", "trades+awp"):
        taken = found.hyperparameters if not found.methods or name in found.methods else {}
        made = published_method(name, *key)
        assert made.settings == {"preset": "paper", "seed": 0, **taken}
        given = published_method(name, *key, seed=3, **dict.fromkeys(taken, "eps"))
        assert given.settings == {"preset": "paper", "seed": 3, **dict.fromkeys(taken, "eps")}


def test_cuda_training(device, tmp_path):
    run = hb.train("small-cnn", easy_data(), threat=THREAT, out=tmp_path / "run", **settings(epochs=2, device=str(device)))
    assert next(run.model.parameters()).device.type == device.type
    assert hb.load(tmp_path / "run")(tiny_batch()[0]).shape == (6, 5)


@pytest.mark.parametrize("norm", [hb.L2(0.5), hb.L1(4.0)])
def test_other_norms_train(norm):
    assert hb.train("mlp", easy_data(), threat=norm, **settings(epochs=1)).metrics


def test_a_run_and_its_data_are_shown_in_short_and_epochs_counted_from_1():
    run = hb.train(tiny_net(), easy_data(), threat=THREAT, **settings(epochs=2))
    assert run.best["epoch"] == run.best["metrics"]["epoch"] in (1, 2)
    assert repr(run).startswith(f"Run(Sequential, 2 epochs, best epoch {run.best['epoch']}, val_clean_accuracy")
    assert repr(as_dataset(easy_data())) == "TensorDataset('arrays', 60 examples)"


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_training_works_wherever_gradients_are_off(within):
    net = tiny_net()
    with within():
        assert hb.train(net, easy_data(), threat=THREAT, **settings(epochs=1, val_size=0)).metrics


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"report_every": 0}, "report_every must be at least 1"),
        ({"class_weights": (0.0,) * 5}, "not all 0"),
        ({"class_weights": "heavy"}, "class_weights must be 'none' or 'balanced' or a list"),
        ({"save_minutes": math.nan}, "save_minutes must be a finite number"),
        ({"val_size": -5}, "val_size must be -1"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"seed": 2**63}, "seed must be a whole number of 64 bits"),
        ({"device": "meta"}, "its tensors hold nothing"),
        ({"out": 3}, "out must be text or a path or None, got 3"),
        ({"method": None}, "method must be text or a Method, got None"),
        ({"threat": 8 / 255}, r"threat must be a threat model, such as hb.Linf\('8/255'\)"),
        ({"val_set": (torch.rand(5, 7), torch.zeros(5, dtype=torch.long)), "val_size": -1}, "inputs of val_set have shape"),
        ({"val_set": easy_data(9), "val_size": 5}, "leave it out, or val_set"),
        ({"val_set": (easy_data(9)[0] * 3, torch.zeros(9, dtype=torch.long)), "val_size": -1}, "inputs"),
        ({"extra": (torch.rand(5, 7), torch.zeros(5, dtype=torch.long))}, "inputs of extra have shape"),
    ],
)
def test_settings_that_make_no_sense(changes, says):
    with pytest.raises(hb.UserError, match=says):
        hb.train(tiny_net(), easy_data(), **{"threat": THREAT, **settings(epochs=1), **changes})


def test_the_largest_seed_trains():
    assert hb.train(tiny_net(), easy_data(), threat=THREAT, **settings(epochs=1, seed=2**63 - 1)).metrics
