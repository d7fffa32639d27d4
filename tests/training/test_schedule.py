"""Learning rates against torch's own schedulers and numpy, optimizers against torch's own, step by step."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LinearLR, MultiStepLR, OneCycleLR

import hauberk as hb
from hauberk.training import trainer
from hauberk.training.config import TrainConfig
from hauberk.training.schedule import first_drop, lr_factor, make_optimizer, swa_epoch
from helpers import THREAT, easy_data, settings, stopped_and_resumed, tiny_net


def rates(total=100, **given):
    config = TrainConfig(**{"epochs": 20, "lr": 0.2, **given})
    return [config.lr * lr_factor(config, step, total) for step in range(total)]


def theirs(make, total=100, lr=0.2):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_linear_is_a_straight_line_to_zero():
    assert rates(schedule="linear") == pytest.approx(theirs(lambda o: LinearLR(o, 1.0, 0.0, total_iters=100)))


def test_triangular_is_the_cyclic_rate_of_fast_adversarial():
    cyclic = theirs(lambda o: CyclicLR(o, 0.0, 0.2, step_size_up=50, step_size_down=50, cycle_momentum=False))
    assert rates(schedule="triangular") == pytest.approx(cyclic)


def test_triangular_with_its_top_at_two_fifths_is_superconverge():
    wanted = np.interp(np.arange(100), [0, 40, 100], [0, 0.2, 0])
    assert rates(schedule="triangular", pct_start=0.4) == pytest.approx(list(wanted))


def test_one_cycle_rises_for_the_part_that_is_asked_for():
    one = theirs(lambda o: OneCycleLR(o, 0.2, total_steps=1001, pct_start=0.025, cycle_momentum=False), 1000)
    assert rates(1000, pct_start=0.025) == pytest.approx(one, rel=0.02, abs=0.01)
    assert max(rates(1000, pct_start=0.025)) == rates(1000, pct_start=0.025)[25]
    assert rates() == rates(pct_start=0.3)


def test_a_factor_for_all_milestones_and_one_for_each():
    by_third = rates(schedule="steps", milestones=(0.5, 0.75), decay_rate=1 / 3)
    assert by_third == pytest.approx(theirs(lambda o: MultiStepLR(o, [50, 75], 1 / 3)))
    halved = rates(schedule="steps", milestones=(11.0, 16.0, 19.0), decay_rate=(0.1, 0.1, 0.5))
    assert [halved[step] for step in (49, 50, 74, 75, 89, 90, 99)] == pytest.approx(
        [0.2, 0.02, 0.02, 0.002, 0.002, 0.001, 0.001]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one-cycle", "triangular"])
def test_a_warm_up_comes_before_the_schedule(schedule):
    warm = rates(schedule=schedule, warmup_epochs=2)
    assert warm[:10] == pytest.approx([0.2 * (step + 1) / 10 for step in range(10)])
    assert warm[10:] == pytest.approx(rates(90, schedule=schedule))


def test_steps_count_the_epochs_of_the_warm_up():
    plain, warm = rates(schedule="steps", milestones=(11.0,)), rates(schedule="steps", milestones=(11.0,), warmup_epochs=4)
    assert warm[20:] == plain[20:]
    assert warm[:20] == pytest.approx([0.01 * (step + 1) for step in range(20)])
    assert first_drop(TrainConfig(epochs=20, schedule="steps", milestones=(11.0,), warmup_epochs=4)) == 10


def test_where_the_equal_average_begins():
    assert [swa_epoch(TrainConfig(epochs=20, swa_start=start)) for start in (0.5, 0.75, 1, 12, 20)] == [10, 15, 0, 11, 19]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"schedule": "steps", "decay_rate": (0.1, 0.1, 0.1)}, "one for each of 2 milestones"),
        ({"decay_rate": 0.0}, "decay_rate must be positive"),
        ({"decay_rate": (0.1, -1.0)}, "decay_rate must be positive"),
        ({"warmup_epochs": 30}, r"less than epochs \(30\)"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0"),
        ({"pct_start": 1.0}, "pct_start must be at least 0 and below 1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov is a form of momentum"),
        ({"clip_grad": -1.0}, "clip_grad must not be negative"),
        ({"ema": 0.9, "swa_start": 2}, "ema and swa_start are two averages"),
        ({"fawa": 0.9, "swa_start": 2}, "swa_start and fawa are two averages"),
        ({"fawa": 1.0}, "fawa must be at least 0 and below 1"),
        ({"fawa": 0.9, "fawa_threshold": 20.0}, "from 0 to 1"),
        ({"ema_warmup": True}, "set ema, too"),
        ({"swa_start": 31}, "nothing would be averaged"),
        ({"save_every": -1}, "save_every must not be negative"),
    ],
)
def test_settings_that_cannot_be(given, says):
    with pytest.raises(hb.UserError, match=says):
        TrainConfig(**given)


def test_a_setting_of_another_optimizer_is_refused():
    for given, says in (
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum does not apply to adamw; leave it out$"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean 'adamw'"),
        ({"optimizer": torch.optim.AdamW, "filter_bias_and_bn": True}, "filter_bias_and_bn does not apply to an own optimizer"),
        ({"scheduler": lambda o: LinearLR(o), "warmup_epochs": 1}, "warmup_epochs does not apply to an own scheduler"),
    ):
        how = {key: value for key, value in settings(epochs=2).items() if key != "lr"}
        with pytest.raises(hb.UserError, match=says):
            hb.train(tiny_net(), easy_data(), threat=THREAT, **how, **given)


OPTIMIZERS = {
    "nesterov": ({"nesterov": True}, lambda p: torch.optim.SGD(p, 0.2, 0.9, weight_decay=0.01, nesterov=True)),
    "adamw": ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.2, weight_decay=0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs(name):
    given, make = OPTIMIZERS[name]
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    ]  # no BatchNorm, behind which gradients of biases are rounding errors
    nets.append(deepcopy(nets[0]))
    config = TrainConfig(lr=0.2, weight_decay=0.01, schedule="steps", **given)
    optimizers = [make_optimizer(nets[0], config, 9)[0], make(nets[1].parameters())]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(easy_data(8, seed=step)[0]).square().mean().backward()
            optimizer.step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_normalisation_are_left_out_of_weight_decay(name):
    net = tiny_net()
    before = {key: value.clone() for key, value in net.named_parameters()}
    config = TrainConfig(optimizer=name, weight_decay=0.5, filter_bias_and_bn=True, lr=0.1)
    optimizer, _, _ = make_optimizer(net, config, 9)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"0.weight", "5.weight"}  # of the convolution and the linear layer


def test_a_gradient_is_scaled_down_to_the_norm_that_is_asked_for(monkeypatch):
    norms = []

    class Seen:
        def on_step_end(self, trainer, output):
            norms.append(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item())

    for clip in (0.0, 0.05):
        hb.train(tiny_net(), easy_data(), threat=THREAT, callbacks=[Seen()], **settings(epochs=1, clip_grad=clip))
    plain, clipped = norms[:3], norms[3:]
    assert min(plain) > 0.05
    assert clipped == pytest.approx([0.05] * 3, rel=1e-3)


RUNS = {
    "nesterov": {"nesterov": True, "filter_bias_and_bn": True, "schedule": "linear", "warmup_epochs": 1.5},
    "adamw": {"optimizer": "adamw", "lr": 2e-3, "clip_grad": 1.0, "schedule": "triangular", "ema": 0.9, "ema_warmup": True},
    "fawa": {"fawa": 0.5, "fawa_threshold": 0.0},
    "swa": {"swa_start": 2, "schedule": "steps", "milestones": (2.0, 3.0), "decay_rate": (0.5, 0.2), "save_every": 2},
}


def train(data, out, resume=False, **given):
    method = hb.method("trades", THREAT, steps=2)
    return hb.train(tiny_net(dropout=0.2), data, method=method, out=out, resume=resume, **settings(**given))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_identical(name, tmp_path):
    given, data = RUNS[name], easy_data()
    whole, runs, stopped = stopped_and_resumed(train, data, tmp_path, (130, 201, 260), **given)
    for run in runs:
        assert [row["lr"] for row in run.metrics] == [row["lr"] for row in whole.metrics]
    assert stopped == 3


def test_swa_is_the_equal_average_of_the_ends_of_the_epochs(tmp_path):
    ends = []

    class Keeps:
        def on_epoch_end(self, trainer, metrics):
            ends.append({key: value.clone() for key, value in trainer.model.state_dict().items()})

    given = settings(epochs=4, swa_start=3, val_size=0, save_every=1)
    hb.train(tiny_net(), easy_data(), threat=THREAT, out=tmp_path / "run", callbacks=[Keeps()], **given)
    for epoch, wanted in ((2, ends[1:2]), (3, ends[2:3]), (4, ends[2:4])):
        found = hb.load(tmp_path / "run" / f"epoch-{epoch}.json", model=tiny_net()).state_dict()
        for key, value in found.items():
            if value.is_floating_point():
                assert torch.allclose(value, torch.stack([one[key] for one in wanted]).mean(0), atol=1e-7), key
            else:
                assert torch.equal(value, wanted[-1][key])


def test_fawa_takes_in_the_epochs_whose_worst_class_is_robust_enough(tmp_path, monkeypatch):
    """As CFA's code has it: the first such epoch is copied, the others move the average; before, it is the network itself."""
    worst, ends, seen = [0.1, 0.2, 0.19, 0.5, 0.3], [], []

    def validated(model, plan, world):
        if len(seen) % 2 == 0:  # of each epoch the network first, then the average
            ends.append({key: value.double() for key, value in model.state_dict().items()})
        seen.append(model)
        return honest(model, plan, world) | {"val_worst_class_robust_accuracy": worst[(len(seen) - 1) // 2]}

    honest = trainer.validate
    monkeypatch.setattr(trainer, "validate", validated)
    given = settings(epochs=5, fawa=0.88, save_every=1)
    run = hb.train(tiny_net(), easy_data(), threat=THREAT, out=tmp_path / "run", **given)
    assert len(seen) == 10
    assert seen[0] is not seen[1]
    for epoch in range(1, 6):
        found = hb.load(tmp_path / "run" / f"epoch-{epoch}.json", model=tiny_net()).state_dict()
        for key in (key for key, value in found.items() if value.is_floating_point()):
            wanted = ends[min(epoch, 2) - 1][key]
            for later in (3, 4)[: max(epoch - 3, 0)]:
                wanted = 0.88 * wanted + 0.12 * ends[later][key]
            assert torch.allclose(found[key].double(), wanted, atol=1e-6), (epoch, key)
    assert [row["val_worst_class_robust_accuracy"] for row in run.metrics] == worst
    with pytest.raises(hb.UserError, match="fawa looks at the classes of held-out examples, and there are none"):
        hb.train(tiny_net(), easy_data(), threat=THREAT, **settings(fawa=0.88, val_size=0))


def test_every_so_many_epochs_are_kept_and_can_be_evaluated(tmp_path, capsys):
    from hauberk.cli import main

    words = ["train", "--epochs", "5", "--save-every", "2", "--model", "mlp", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--method", "standard"]) == 0
    names = sorted(path.name for path in (tmp_path / "run").glob("epoch-*"))
    assert names == ["epoch-2.json", "epoch-2.safetensors", "epoch-4.json", "epoch-4.safetensors"]
    assert main(["evaluate", str(tmp_path / "run" / "epoch-4.json"), "--attacks", "fgsm", "--n", "20", "--quiet"]) == 0
