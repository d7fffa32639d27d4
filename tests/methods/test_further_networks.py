"""Methods that ask another network: a teacher, HAT's helper, or the moving average of their own."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb
from hauberk.cli import main
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from hauberk.methods.adr import ADR, rectified_labels
from hauberk.methods.networks import MovingAverage
from helpers import THREAT, OnceNaN, count_passes, easy_data, fingerprint, further, same, settings, tiny_batch, tiny_net

WITH_TEACHER = ("hat", "ard", "rslad", "adaad", "saad", "rslad+igdm")
BALL = hb.Linf(0.1)


def small(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return small(1), small(2), torch.rand(10, 6, dtype=torch.double), torch.arange(10) % 4


def kl(p, q):
    """KL of the softmax of logits, by its definition."""
    p, q = p.softmax(1), q.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def ascend(x, loss, start, steps=10, step=0.025, eps=0.1):
    """PGD in L∞ by hand; loss(points) -> (B,)."""
    point = start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(point).sum(), point)
        point = (point + step * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1).detach()
    return point


def tangent(teacher, x, y):
    """The teacher's logits with that of the label linear in the input."""
    jacobian = torch.stack([torch.autograd.functional.jacobian(teacher, one)[k] for one, k in zip(x, y, strict=True)])

    def logits(point):
        found = teacher(x).detach().clone()
        return found + F.one_hot(y, 4) * (jacobian * (point - x)).sum(1, keepdim=True)

    return logits


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_attack_and_loss_are_those_of_the_paper(name, batch):
    model, teacher, x, y = batch
    start = x + 0.01 * torch.rand(10, 6, dtype=torch.double)
    method = hb.method(name, BALL, teacher=teacher, start=start).with_schedule(10)
    out = method(model, x, y, epoch=4)
    clean, line = teacher(x).detach(), tangent(teacher, x, y)
    attacks = {
        "hat": lambda z: kl(model(x).detach(), model(z)),
        "ard": lambda z: F.cross_entropy(model(z), y, reduction="none"),
        "rslad": lambda z: kl(clean, model(z)),
        "adaad": lambda z: kl(teacher(z), model(z)),
        "saad": lambda z: kl(line(z), model(z)),
    }
    point = ascend(x, attacks[name.split("+")[0]], start)
    torch.testing.assert_close(out.x_adv, point, rtol=0, atol=1e-12)

    away, soft, opposite = model(point), teacher(point).detach(), 2 * x - point
    matched = kl(soft - teacher(opposite).detach(), away - model(opposite))
    entropy = -(soft.softmax(1) * soft.log_softmax(1)).sum(1)
    far = F.cross_entropy(model(x + 2 * (point - x)), soft.argmax(1))
    losses = {
        "hat": F.cross_entropy(model(x), y) + 2.5 * kl(model(x), away).mean() + 0.5 * far,
        "ard": 900 * kl(clean / 30, away / 30).mean(),
        "rslad": (5 * kl(clean, away) + kl(clean, model(x))).mean() / 6,
        "adaad": kl(soft, away).mean(),
        "saad": (5 * (entropy - entropy.min()) * (kl(soft, away) + 0.5 * matched)).mean(),
        "rslad+igdm": ((5 * kl(clean, away) + kl(clean, model(x))) / 6 + 0.5 * matched).mean(),
    }
    torch.testing.assert_close(out.loss, losses[name], rtol=1e-9, atol=0)
    own, reference = (torch.autograd.grad(loss, model.parameters()) for loss in (out.loss, losses[name]))
    for one, other in zip(own, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)
    assert all(p.grad is None for p in teacher.parameters())


def test_official_losses_have_the_means_of_the_public_code(batch):
    model, teacher, x, _ = batch
    clean, adv, soft, y = model(x), model(x + 0.1), teacher(x), torch.arange(10) % 4
    both = {"teacher": soft, "preset": "official"}
    element_mean = nn.KLDivLoss()  # whose mean is over the classes, too: what the codes call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far, near = (element_mean(z.log_softmax(1), soft.softmax(1)) for z in (adv, clean))
        warm = element_mean((adv / 30).log_softmax(1), (soft / 30).softmax(1))
    terms = hb.objectives.ard(clean, adv, y, **both)
    torch.testing.assert_close((terms.robust + terms.regularizer).mean(), 900 * warm, rtol=1e-12, atol=0)
    terms = hb.objectives.adaad(clean, adv, y, teacher_adv=soft, alpha=0.7, **both)
    torch.testing.assert_close((terms.robust + terms.regularizer).mean(), 0.7 * far + 0.3 * near, rtol=1e-12, atol=0)
    terms = hb.objectives.rslad(clean, adv, y, **both)  # of ten classes there
    expected = 0.4 * (5 / 6 * far + 1 / 6 * near)
    torch.testing.assert_close((terms.robust + terms.regularizer).mean(), expected, rtol=1e-12, atol=0)


def test_saad_weighs_by_the_teacher_s_entropy(batch):
    model, teacher, x, y = batch
    found = hb.weighting.saad(torch.tensor([0.1, 0.4, 0.2]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.5, 0.5]))
    ones = hb.method("saad", BALL, teacher=teacher, weighting=lambda context: torch.ones(10), igdm_alpha=0.0)(model, x, y)
    plain = hb.method("saad", BALL, teacher=teacher, igdm_alpha=0.0)
    plain.weighting = None
    assert torch.equal(ones.loss, plain(model, x, y).loss)
    named = hb.method("rslad", BALL, teacher=teacher, weighting="saad", entropy_scale=2.0)(model, x, y)
    soft = teacher(named.x_adv)
    entropy = -(soft.softmax(1) * soft.log_softmax(1)).sum(1).detach()
    torch.testing.assert_close(named.weights, 2 * (entropy - entropy.min()), rtol=1e-12, atol=1e-15)
    with pytest.raises(hb.UserError, match="entropy_scale"):
        hb.weighting.Saad(entropy_scale=0.0)


@pytest.mark.parametrize("name", [*WITH_TEACHER, "hat+adr+awp", "at+adr", "rebat"])
def test_every_pass_is_counted_and_the_teacher_stays_as_it_is(name):
    more = further(name)
    method = hb.method(name, THREAT, **more, **({"ema_start": 0} if name == "rebat" else {}))
    method, (x, y) = method.with_schedule(10), tiny_batch()
    before = [fingerprint(net) for net in more.values()]
    model = tiny_net().train()
    networks = [model] if method.teacher is None else [model, method.teacher.network]
    seen = [count_passes(network) for network in networks]  # the moving average is a copy, hook and all
    out = method(model, x, y, epoch=5)
    assert out.forwards == sum(one["forwards"] for one in seen)
    if "awp" not in name:  # whose first backward pass is made in the step
        teacher_to_input = {"saad": 1}.get(name, 0)  # of the tangent
        assert out.backwards == sum(one["backwards"] for one in seen) - teacher_to_input
    for fingerprint_before, net in zip(before, more.values(), strict=True):
        assert same(fingerprint_before, fingerprint(net))
    assert not list(method.parameters())
    assert "teacher" not in " ".join(method.state_dict())


def test_a_method_that_needs_a_teacher_says_so_and_takes_it_in_several_forms(tmp_path, monkeypatch):
    for name in WITH_TEACHER:
        with pytest.raises(hb.UserError, match="learns from another network: give teacher="):
            hb.method(name, THREAT)
    with pytest.raises(hb.UserError, match="two names of one thing"):
        hb.method("hat", THREAT, teacher=tiny_net(), helper=tiny_net())
    with pytest.raises(hb.UserError, match="does not exist"):
        hb.method("rslad", THREAT, teacher="nowhere")
    with pytest.raises(hb.UserError, match="teacher is a network"):
        hb.method("rslad", THREAT, teacher=3)
    with pytest.raises(hb.UserError, match="add it to rslad"):
        hb.method("at+igdm", THREAT)
    for name in ("rslad", "adaad", "hat"):
        with pytest.raises(hb.UserError, match=r"6 (outputs|classes), the (network|model) 5"):
            hb.method(name, THREAT, teacher=tiny_net(classes=6))(tiny_net(), *tiny_batch())

    run = hb.train("small-cnn", easy_data(), method="at", threat=THREAT, out=tmp_path / "teacher", **settings(epochs=1))
    (tmp_path / "mynets.py").write_text("from helpers import tiny_net\n\nnetwork = tiny_net\nready = tiny_net()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    x, y = tiny_batch()
    by_folder = hb.method("rslad", THREAT, teacher=tmp_path / "teacher")(tiny_net(), x, y)
    passed = hb.method("rslad", THREAT, teacher=run.model)(tiny_net(), x, y)
    assert torch.equal(by_folder.loss, passed.loss)
    named = [hb.method("rslad", THREAT, teacher=f"mynets:{one}")(tiny_net(), x, y).loss for one in ("network", "ready")]
    assert torch.equal(named[0], named[1])
    assert torch.equal(named[0], hb.method("rslad", THREAT, teacher=tiny_net())(tiny_net(), x, y).loss)


def test_the_teacher_moves_with_the_method_and_takes_the_dtype_and_device_of_its_own(batch):
    model, teacher, x, y = batch
    method = hb.method("rslad", BALL, teacher=teacher.float())
    assert method(model, x, y).loss.dtype == torch.float64
    method.to(torch.float64)
    assert next(method.teacher.network.parameters()).dtype == torch.float64
    assert next(teacher.parameters()).dtype == torch.float32
    copied = copy.deepcopy(method)
    assert copied.teacher.network is not method.teacher.network


def test_cuda_teacher(device):
    model, (x, y) = tiny_net().to(device).train(), (t.to(device) for t in tiny_batch())
    for name in (*WITH_TEACHER, "at+adr"):
        method = hb.method(name, THREAT, precision="bf16", **further(name)).with_schedule(10)
        method(model, x, y, epoch=3).loss.backward()
        method.after_step(model)
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_run_is_bound_to_its_teacher(tmp_path):
    def go(teacher, **how):
        method = hb.method("rslad", THREAT, teacher=teacher)
        return hb.train("small-cnn", easy_data(), method=method, out=tmp_path / "run", **settings(epochs=1), **how)

    go(tiny_net(seed=4))
    go(tiny_net(seed=4), resume=True)
    with pytest.raises(hb.UserError, match="this run was started with another teacher"):
        go(tiny_net(seed=5), resume=True)


def test_a_teacher_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = ["--epochs", "1", "--val-steps", "2", "--threads", "1", "--quiet"]
    assert main(["train", "--method", "at", *quick, "--out", "teacher"]) == 0
    assert main(["train", "--method", "saad", "--teacher", "teacher", *quick, "--out", "student"]) == 0
    assert main(["train", "--resume", "student", "--quiet"]) == 0
    assert main(["train", "--method", "saad", *quick, "--out", "other"]) == 2
    assert "--teacher" in capsys.readouterr().err
    assert main(["methods", "rslad+igdm"]) == 0
    assert "needs teacher=" in capsys.readouterr().out


def test_labels_are_rectified_by_the_formula():
    torch.manual_seed(0)
    logits, y = torch.randn(50, 5, dtype=torch.double) * 4, torch.arange(50) % 5
    found = rectified_labels(logits, y, interpolation=0.8, temperature=2.0)
    for row, label, one in zip(logits, y, found, strict=True):
        p = (row / 2).softmax(0)
        share = min(max(0.8 - float(p.max() - p[label]), 0.0), 1.0)
        torch.testing.assert_close(one, share * p + (1 - share) * F.one_hot(label, 5).double(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.sum(1), torch.ones(50, dtype=torch.double))
    mixed = 0.7 * F.one_hot(y, 5).double() + 0.3 * F.one_hot(y.roll(1), 5).double()  # as CutMix makes them
    softened = rectified_labels(logits, y, interpolation=0.8, temperature=2.0, targets=mixed)
    p = (logits / 2).softmax(1)
    share = (0.8 - (p.amax(1) - p.gather(1, y[:, None])[:, 0])).clamp(0, 1)[:, None]
    torch.testing.assert_close(softened, share * p + (1 - share) * mixed, rtol=1e-12, atol=1e-15)
    assert rectified_labels(logits.half(), y, interpolation=0.8, temperature=2.0).dtype == torch.float32


def test_adr_softens_the_labels_of_mixed_images(batch):
    model, _, x, y = batch
    mixed = 0.7 * F.one_hot(y, 4).double() + 0.3 * F.one_hot(y.roll(1), 4).double()
    found = []
    for targets in (None, mixed):
        out = hb.method("at+adr", BALL, start="clean").with_schedule(10)(model, x, y, epoch=4, targets=targets)
        found.append(out)
    interpolation, temperature = ADR().schedule(0.4)  # the average is the model itself at the first step
    wanted = rectified_labels(model(x).detach(), y, interpolation=interpolation, temperature=temperature, targets=mixed)
    loss = -(wanted * found[1].logits_adv.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found[1].loss, loss)
    assert not torch.allclose(found[0].loss, found[1].loss)


@pytest.mark.parametrize("name", ["rslad", "adaad", "saad"])
def test_a_distillation_that_looks_at_no_label_takes_mixed_ones(name, batch):
    model, teacher, x, y = batch
    method = hb.method(name, BALL, teacher=teacher, start="clean").with_schedule(10)
    plain, mixed = (method(model, x, y, epoch=0, targets=targets) for targets in (None, torch.full((10, 4), 0.25).double()))
    torch.testing.assert_close(plain.loss, mixed.loss)


def test_a_name_that_two_parts_have_is_refused(batch):
    with pytest.raises(hb.UserError, match="temperature is a setting of the objective and of the weighting of ard"):
        hb.method("ard", BALL, teacher=batch[1], weighting="kl-dro", temperature=0.5)
    own = hb.method("ard", BALL, teacher=batch[1], weighting=hb.weighting.KLDRO(), temperature=0.5)
    assert (own.objective.temperature, own.weighting.temperature) == (0.5, hb.weighting.KLDRO().temperature)
    assert hb.method("mart", BALL, preset="note", weighting="mlcat").weighting.preset == "paper"


def test_the_official_adr_attacks_in_training_mode_and_has_no_warm_up_of_awp():
    for name in ("at+adr", "trades+adr", "trades+adr+awp"):
        method = hb.method(name, THREAT, preset="official")
        assert (method.attack.mode, str(method.attack.step_size)) == ("train", "eps/4")
    assert method.weight_perturbation.warmup == 0


def test_adr_has_the_constants_of_the_public_code_and_its_schedule():
    plain, perturbed = hb.method("at+adr", THREAT).targets, hb.method("trades+adr+awp", THREAT)
    assert plain == ADR(0.7, 0.95, 2.5, 2.0, 0.995)
    assert perturbed.targets == ADR(0.7, 0.85, 2.5, 1.5, 0.995)
    assert perturbed.weight_perturbation.gamma == 0.005
    assert hb.method("AT+AWP+ADR", THREAT).name == "at+adr+awp"
    assert hb.method("at+adr", THREAT, lambda_end=0.9, ema_decay=0.9).targets == ADR(0.7, 0.9, 2.5, 2.0, 0.9)
    for done in (0.0, 0.3, 0.999):
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        expected = 0.95 + cosine * (0.7 - 0.95), 2.0 + cosine * 0.5
        assert plain.schedule(done) == pytest.approx(expected, abs=1e-12)
    for wrong in ({"lambda_end": 1.2}, {"temperature_start": 0.0}, {"ema_decay": 1.0}):
        with pytest.raises(hb.UserError, match=r"lambda_end|temperatures|ema_decay"):
            hb.method("at+adr", THREAT, **wrong)
    for name, says in (("mma+adr", "not defined for probabilities"), ("rslad+adr", "does not look at labels")):
        with pytest.raises(hb.UserError, match=says):
            hb.method(name, THREAT, **further(name))


def test_adr_by_hand_over_several_steps(batch):
    """Loss, attack and average, beside a loop that has nothing of ours but PGD's random starts."""
    model, _, x, y = batch
    own, average = copy.deepcopy(model), copy.deepcopy(model)
    method = hb.method("at+adr", BALL, ema_decay=0.8).with_schedule(4)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.5) for net in (model, own)]
    for step in range(4):
        rng = ExampleRng(0, torch.arange(10), stage=step)
        out = method(model, x, y, epoch=step, rng=rng, done=step / 4)
        cosine = 0.5 * (1 + math.cos(math.pi * step / 4))
        interpolation, temperature = 0.95 - 0.25 * cosine, 2 + 0.5 * cosine
        p = (average(x) / temperature).softmax(1).detach()
        share = (interpolation - (p.amax(1) - p[torch.arange(10), y])).clamp(0, 1)[:, None]
        targets = share * p + (1 - share) * F.one_hot(y, 4)
        start = BALL.around(x).random(rng)
        point = ascend(x, lambda z, t=targets: -(t * own(z).log_softmax(1)).sum(1), start)
        loss = -(targets * own(point).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(out.x_adv, point, rtol=0, atol=1e-12)
        torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0)
        for one, optimizer in zip((out.loss, loss), optimizers, strict=True):
            optimizer.zero_grad()
            one.backward()
            optimizer.step()
        method.after_step(model)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), own.parameters(), strict=True):
                mine.mul_(0.8).add_(theirs, alpha=0.2)


def test_the_training_tells_adr_how_much_is_done(monkeypatch):
    seen = []
    schedule = ADR.schedule
    monkeypatch.setattr(ADR, "schedule", lambda self, done: (seen.append(done), schedule(self, done))[1])
    hb.train(tiny_net(), easy_data(), method=hb.method("at+adr", THREAT), **settings(epochs=2, val_size=0))
    assert seen == [step / 8 for step in range(8)]  # 60 examples in batches of 16


def test_rebat_is_adversarial_training_until_its_average_begins(batch):
    model, _, x, y = batch
    method = hb.method("rebat", BALL, ema_start=2, ema_decay=0.5, beta=3.0).with_schedule(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = None
    for epoch in range(4):
        out = method(model, x, y, epoch=epoch)
        logits = model(out.x_adv)
        expected = F.cross_entropy(logits, y)
        if epoch >= 2:
            expected = expected + 3 * kl(average(out.x_adv).detach(), logits).mean()
        torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=0)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(model)
        if epoch < 2:
            average = copy.deepcopy(model)
        else:
            with torch.no_grad():
                for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs, 0.5)
    objective = hb.method("rebat", BALL).objective
    context = StepContext(None, x, y, None, None, schedule=hb.core.step_context.Schedule(200, 100))
    assert objective.start(context) == 105
    with pytest.raises(hb.UserError, match="ema_start"):
        hb.method("rebat", BALL, ema_start=-1)
    with pytest.raises(hb.UserError, match="moving averages of decays"):
        hb.method("rebat+adr", BALL)


def test_the_average_answers_in_evaluation_mode_and_is_saved_and_forgotten():
    model, (x, y) = tiny_net(dropout=0.3).train(), tiny_batch()
    method = hb.method("at+adr", THREAT, ema_decay=0.5).with_schedule(10)
    assert method.state_dict()["average._extra_state"] == {}
    for _ in range(3):
        method(model, x, y, epoch=1).loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
        method.after_step(model)
    average = method.average
    assert not any(module.training for module in average.network.modules())
    assert not torch.equal(average.network[0].weight, model[0].weight)
    other = hb.method("at+adr", THREAT, ema_decay=0.5).with_schedule(10)
    other.load_state_dict(copy.deepcopy(method.state_dict()))  # before it has seen a network
    assert other.state_dict()["average._extra_state"]["updates"] == 4
    twin, rng = copy.deepcopy(model), ExampleRng(0, torch.arange(6), stage=9)
    torch.manual_seed(0)
    loss = method(model, x, y, epoch=1, rng=rng).loss
    torch.manual_seed(0)
    assert torch.equal(other(twin, x, y, epoch=1, rng=rng).loss, loss)
    method.restart(model)
    assert torch.equal(average.network[0].weight, model[0].weight)
    assert method.with_schedule(10).average.network is None


def test_a_loop_that_never_updates_the_average_is_told():
    average, model = MovingAverage(0.9), tiny_net()
    for _ in range(15):
        average.bind(model)
    with pytest.warns(UserWarning, match="after_step"):
        average.bind(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            average.bind(model)
            average.after_step(model)


def test_a_training_that_goes_back_takes_its_average_along(monkeypatch):
    seen, restart = [], MovingAverage.restart

    def recorded(average, model):
        restart(average, model)
        assert torch.equal(average.network.net[0].weight, model.net[0].weight)
        seen.append(model)

    monkeypatch.setattr(MovingAverage, "restart", recorded)
    method = hb.method("at+adr", THREAT)
    how = settings(epochs=2, batch_size=10, on_divergence="rollback", val_size=0)
    hb.train(OnceNaN(9), easy_data(), method=method, **how)
    assert len(seen) == 1
