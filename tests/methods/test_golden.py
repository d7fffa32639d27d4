"""Against numbers of the methods' official code, and of a note's trainer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.models.layers import Normalize
from helpers import TESTS, tiny_batch, tiny_net


def read(name):
    return {key: torch.from_numpy(np.array(value)) for key, value in np.load(TESTS / "golden" / name).items()}


GOLDEN = read("official_code_seed0.npz")


class GoldenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(1024, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.bn2(self.conv2(torch.relu(self.bn(self.conv(x)))))).flatten(1))


@pytest.fixture(scope="module")
def net():
    model = GoldenNet().double()
    model.load_state_dict({name[4:]: value for name, value in GOLDEN.items() if name.startswith("net.")})
    return model.eval()


def gradients(objective, beta, preset):
    clean = GOLDEN["logits_nat"].clone().requires_grad_()
    adv = GOLDEN["logits_adv"].clone().requires_grad_()
    terms = objective(clean, adv, GOLDEN["y"], beta=beta, preset=preset)
    loss = (terms.robust + terms.regularizer).mean()
    return loss, *torch.autograd.grad(loss, (clean, adv))


def largest_relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("name", "objective", "beta", "preset"),
    [
        ("trades_beta6", hb.objectives.trades, 6.0, "official"),
        ("trades_beta6", hb.objectives.trades, 6.0, "paper"),  # log space changes no digit where nothing underflows
        ("mart_beta5", hb.objectives.mart, 5.0, "official"),
        ("mart_beta6", hb.objectives.mart, 6.0, "official"),
    ],
)
def test_losses_and_both_gradients(name, objective, beta, preset):
    loss, grad_nat, grad_adv = gradients(objective, beta, preset)
    for ours, field in ((loss, "loss"), (grad_nat, "grad_nat"), (grad_adv, "grad_adv")):
        assert largest_relative_error(ours.detach(), GOLDEN[f"{name}.{field}"]) < 1e-6, field


def test_mart_paper_differs_only_by_the_constants_of_the_code():
    """The exact form leaves out 1.0001 and 1e-12: the loss moves by 1e-4, and gradients of confident mistakes grow."""
    loss, grad_nat, grad_adv = gradients(hb.objectives.mart, 5.0, "paper")
    assert 1e-6 < largest_relative_error(loss.detach(), GOLDEN["mart_beta5.loss"]) < 1e-3
    assert largest_relative_error(grad_nat, GOLDEN["mart_beta5.grad_nat"]) < 1e-5
    assert 1e-6 < largest_relative_error(grad_adv, GOLDEN["mart_beta5.grad_adv"]) < 1e-2


@pytest.mark.parametrize(
    ("name", "loss", "start"),
    [("pgd10_ce", "ce", "normal"), ("pgd10_kl", "kl", "normal"), ("gapgd10", "ce", "uniform")],
)
def test_inner_attacks(net, name, loss, start):
    x, y = GOLDEN["x"].double(), GOLDEN["x_label"]
    if start == "normal":
        begin = x + 0.001 * GOLDEN["noise_normal"].double()
    else:
        begin = (x + 8 / 255 * GOLDEN["noise_uniform"].double()).clamp(0, 1)
    found = hb.attacks.pgd(net, x, y, hb.Linf("8/255"), steps=10, step_size="2/255", start=begin, loss=loss, return_last=True)
    assert (found.x_adv - GOLDEN[f"{name}.x_adv"]).abs().max() < 1e-7  # stored in float32
    assert (found.forwards, found.backwards) == ((12, 10) if loss == "kl" else (11, 10))
    if name == "gapgd10":
        assert found.kappa.tolist() == GOLDEN["gapgd10.kappa"].tolist()


MAIL = {
    "mail_at_code": ("mail-at", {}),
    "mail_trades_code_beta5": ("mail-trades", {"beta": 5.0}),
    "mail_mart_code_beta6": ("mail-mart", {"beta": 6.0}),
}


class Logits(torch.nn.Module):
    """A model whose outputs are given: it returns the clean logits for the clean input and the others for any other."""

    def __init__(self, clean, adv):
        super().__init__()
        self.clean, self.adv = torch.nn.Parameter(clean.clone()), torch.nn.Parameter(adv.clone())

    def forward(self, x):
        return (self.clean if bool((x == 0.5).all()) else self.adv) + 0 * x.sum(1, keepdim=True)


@pytest.mark.parametrize("golden", MAIL)
def test_mail_losses_and_both_gradients(golden):
    name, settings = MAIL[golden]
    model = Logits(GOLDEN["logits_nat"], GOLDEN["logits_adv"])
    x = torch.full((32, 3), 0.5, dtype=torch.float64)
    out = hb.method(name, hb.Linf(0.1), preset="official", start="uniform", burn_in=0, **settings)(model, x, GOLDEN["y"])
    out.loss.backward()
    assert largest_relative_error(out.loss.detach(), GOLDEN[f"{golden}.loss"]) < 1e-6
    for ours, field in ((model.clean.grad, "grad_nat"), (model.adv.grad, "grad_adv")):
        theirs = GOLDEN[f"{golden}.{field}"]
        if theirs.abs().max() == 0:
            assert ours is None or not ours.any()
        else:
            assert largest_relative_error(ours, theirs) < 1e-6, field


def test_margins_and_weights():
    logits, y = GOLDEN["logits_adv"], GOLDEN["y"]
    assert torch.allclose(hb.probabilistic_margin(logits, y), GOLDEN["pm_adv"], rtol=1e-6, atol=1e-12)
    assert torch.allclose(hb.probabilistic_margin(GOLDEN["logits_nat"], y), GOLDEN["pm_nat"], rtol=1e-6, atol=1e-12)
    margin = hb.probabilistic_margin(logits, y)
    for slope, bias, name in ((10.0, -0.5, "slope10_bias-0.5"), (2.0, 0.0, "slope2_bias0")):
        ours = hb.weighting.mail(margin, slope=slope, bias=bias, preset="official")
        assert torch.allclose(ours, GOLDEN[f"mail_weight_code_{name}"], rtol=1e-6)
    for kind, lam, name in (
        ("tanh", -1, "tanh_lambda-1"),
        ("tanh", 0, "tanh_lambda0"),
        ("sigmoid", -1, "sigmoid_lambda-1"),
        ("discrete", 0, "discrete"),
    ):
        ours = hb.weighting.gairat(GOLDEN["kappa"], steps=10, lam=lam, kind=kind)
        assert torch.allclose(ours, GOLDEN[f"gairat_weight_{name}"], rtol=1e-6), name


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_friendly_attack_points_and_counts(net, tau):
    x, y = GOLDEN["x"].double(), GOLDEN["x_label"]
    begin = (x + 8 / 255 * GOLDEN["noise_uniform"].double()).clamp(0, 1)
    found = hb.attacks.friendly_pgd(net, x, y, hb.Linf("8/255"), steps=10, step_size="2/255", tau=tau, start=begin)
    assert (found.x_adv - GOLDEN[f"fat_tau{tau}.x_adv"]).abs().max() < 1e-7
    assert int(found.steps_taken.sum()) == int(GOLDEN[f"fat_tau{tau}.count"])


@pytest.mark.parametrize(
    ("golden", "objective", "gamma", "attack"),
    [("awp_at_gamma0.01", "at", 0.01, "ce"), ("awp_trades_gamma0.005_beta6", "trades", 0.005, "kl")],
)
def test_weight_perturbations(net, golden, objective, gamma, attack):
    from hauberk.methods import AWP

    x, x_adv, y = GOLDEN["x"].double(), GOLDEN[f"pgd10_{attack}.x_adv"].double(), GOLDEN["x_label"]
    net = copy.deepcopy(net).train()  # as the public code's proxy is
    logits_adv = net(x_adv)
    terms = (
        hb.objectives.at(None, logits_adv, y) if objective == "at" else hb.objectives.trades(net(x), logits_adv, y, beta=6.0)
    )
    change = AWP(gamma).direction(net, (terms.robust + terms.regularizer).mean())
    assert set(change) == {"conv.weight", "conv2.weight", "fc.weight"}
    for name, ours in change.items():
        assert largest_relative_error(ours, GOLDEN[f"{golden}.{name}"]) < 1e-6, name


STEPS = read("full_steps_seed0.npz")
CASES = {  # method, epoch from 0, of how many, settings besides preset="official"
    "at_mail": ("mail-at", 0, 120, {}),  # MAIL's and GAIRAT's AT is what they do in the burn-in
    "at_gairat": ("gairat", 58, 120, {}),
    "at_robust_overfitting": ("at", 0, 200, {}),
    "trades": ("trades", 0, 76, {}),
    "trades_mail": ("mail-trades", 0, 120, {"beta": 6.0}),
    "mart": ("mart", 0, 120, {}),
    "fat_tau0": ("fat", 10, 120, {}),
    "fat_tau1": ("fat", 60, 120, {}),
    "fat_tau2": ("fat", 100, 120, {}),
    "fat_trades": ("fat-trades", 40, 85, {}),
    "fat_mart": ("fat-mart", 30, 90, {}),
    **{f"gairat_{kind}": ("gairat", 59, 120, {"kind": kind}) for kind in ("tanh", "sigmoid", "discrete")},
    **{f"mail_{name}_before": (f"mail-{name}", 75, 120, {}) for name in ("at", "trades", "mart")},
    **{f"mail_{name}_after": (f"mail-{name}", 76, 120, {}) for name in ("at", "trades", "mart")},
    "at_awp": ("at+awp", 0, 200, {}),
    "trades_awp": ("trades+awp", 9, 200, {}),
}
NORMALIZED, AT_8 = ("at_robust_overfitting", "at_awp"), ("at_robust_overfitting", "at_awp", "trades_awp")
WEIGHT_DECAY = 5e-4


class StoredDraws(ExampleRng):
    """The draws that the public code was given in a step, keyed by the place in the batch."""

    def __init__(self, step, keys):
        self.step, self.keys = step, keys

    def index_select(self, index):
        return StoredDraws(self.step, self.keys[index])

    def uniform(self, like, tag):
        return (STEPS["uniform"][self.step, self.keys] + 1) / 2

    def normal(self, like, tag):
        noise = int(tag.max()) - 100  # the attack step, of FAT's noise
        draws = STEPS["normal"][self.step] if noise < 0 else STEPS["jitter"][self.step, noise].double()
        return draws[self.keys]


class RecordedAWP(hb.AWP):
    """AWP whose last perturbation can be looked at."""

    def direction(self, *arguments):
        change = super().direction(*arguments)
        seen[:] = [{name: v.clone() for name, v in change.items()}]
        return change


seen = []


class StepsNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))).flatten(1))


def distance(ours, theirs):
    """Norm of the difference relative to the norm of theirs."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300))


@pytest.mark.parametrize("case", CASES)
def test_five_whole_steps_are_the_public_codes(case):
    """Points, losses, weights, gradients, BatchNorm statistics and what SGD makes of them: all 22 cases without exception.

    Two things are not ours to repeat: GAIRAT's code has κ and weights in float32, and AWP's lets weight decay act on the
    perturbed weights, which is added by hand here.
    """
    name, epoch, epochs, settings = CASES[case]
    theirs = {key.removeprefix(f"{case}."): value for key, value in STEPS.items() if key.startswith(f"{case}.")}
    close = 1e-6 if case.startswith("gairat") else 1e-10
    net = StepsNet().double()
    net.load_state_dict({key[4:]: value for key, value in STEPS.items() if key.startswith("net.")})
    normalize = [Normalize(STEPS["normalize.mean"].tolist(), STEPS["normalize.std"].tolist())] if case in NORMALIZED else []
    model = nn.Sequential(*normalize, net).double().train()
    for layer in normalize:
        layer.mean, layer.std = STEPS["normalize.mean"], STEPS["normalize.std"]  # not rounded to float32
    method = hb.method(name, hb.Linf("8/255" if case in AT_8 else 0.031), preset="official", **settings)
    method = method.with_schedule(epochs, 75)
    awp = method.weight_perturbation
    if awp is not None:
        method.weight_perturbation = RecordedAWP(awp.gamma, awp.warmup)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0 if awp else WEIGHT_DECAY)
    for step in range(5):
        x, y = STEPS["x"][step].double() / 255, STEPS["y"][step].long()
        out = method(model, x, y, epoch, rng=StoredDraws(step, torch.arange(12)))
        optimizer.zero_grad()
        out.loss.backward()
        assert distance(out.loss, theirs["losses"][step]) < close, step
        if step == 0:
            assert distance(out.x_adv.flatten(1).sum(1), theirs["x_adv.sum"]) < 1e-10
            for key, parameter in net.named_parameters():
                assert distance(parameter.grad, theirs[f"grad.{key}"]) < close, key
            assert "weights" not in theirs or distance(out.weights, theirs["weights"]) < close
            for key, change in seen[0].items() if awp else ():
                assert distance(change, theirs[f"awp.{key.partition('.')[2]}"]) < close, key
        if awp is not None:
            for key, parameter in model.named_parameters():
                parameter.grad.add_(WEIGHT_DECAY * (parameter.detach() + seen[0].get(key, 0.0)))
        optimizer.step()
        method.after_step(model)
        if step == 0:
            for key, buffer in net.named_buffers():
                assert distance(buffer, theirs[f"buffers.{key}"]) < 1e-10, key
    for key, value in net.state_dict().items():
        assert distance(value, theirs[f"after5.{key}"]) < close, key


@pytest.mark.parametrize("case", [key for key in CASES if f"{key}.kappa" in STEPS or f"{key}.steps_sum" in STEPS])
def test_counts_of_the_attacks_of_whole_steps(case):
    name, epoch, epochs, settings = CASES[case]
    net = StepsNet().double()
    net.load_state_dict({key[4:]: value for key, value in STEPS.items() if key.startswith("net.")})
    method = hb.method(name, hb.Linf(0.031), preset="official", **settings).with_schedule(epochs, 75)
    attack = method.inner.attack_at((epoch + 1) / epochs)
    x, y = STEPS["x"][0].double() / 255, STEPS["y"][0].long()
    found = attack(net, x, y, method.threat, seed=StoredDraws(0, torch.arange(12)))
    if f"{case}.kappa" in STEPS:
        assert found.kappa.tolist() == STEPS[f"{case}.kappa"].tolist()
    else:
        assert int(found.steps_taken.sum()) == int(STEPS[f"{case}.steps_sum"])


def note_step(model, x, y, start, eps, alpha):
    """A step of the trainer of the note among the sources, written anew from its text."""
    model.train()
    logits = model(x)
    point = start
    for _ in range(10):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y), point)
        with torch.no_grad():
            point = (x + (point + alpha * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    logits_adv = model(point.detach())
    p_adv, rows = logits_adv.softmax(1), torch.arange(len(y))
    two = p_adv.argsort(1)[:, -2:]
    other = torch.where(two[:, 1] == y, two[:, 0], two[:, 1])
    boosted = nn.functional.cross_entropy(logits_adv, y) - torch.log(1.0001 - p_adv + 1e-12)[rows, other].mean()
    p = logits.detach().softmax(1)
    weight = 1 - p[rows, y]
    kl = nn.functional.kl_div(logits_adv.log_softmax(1), p, reduction="none").sum(1)
    return point.detach(), boosted + 6.0 * (weight * kl).mean()


def test_the_note_preset_is_the_notes_trainer():
    """A note on MART among the sources: weight and clean logits detached, clean pass first, attack in training mode."""
    ours, theirs = tiny_net().double(), tiny_net().double()
    threat, method = hb.Linf("8/255"), hb.method("mart", hb.Linf("8/255"), preset="note")
    x, y = tiny_batch(12, dtype=torch.float64)
    for step in range(2):
        rng = ExampleRng(0, torch.arange(12), stage=step)
        point, loss = note_step(theirs, x, y, threat.around(x).random(rng), 8 / 255, 2 / 255)
        out = method(ours.train(), x, y, rng=ExampleRng(0, torch.arange(12), stage=step))
        assert distance(out.x_adv, point) < 1e-12
        assert distance(out.loss, loss) < 1e-12
        for model, value in ((ours, out.loss), (theirs, loss)):
            model.zero_grad()
            value.backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert distance(a, b) < 1e-12, key
    official = hb.method("mart", threat, preset="official", beta=6.0).objective
    clean, adv = (torch.randn(5, 4, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (0, 1))
    grads = {}
    for objective in (method.objective, official):
        terms = type(objective).function(clean, adv, torch.arange(5) % 4, beta=6.0, preset=objective.preset)
        loss = (terms.robust + terms.regularizer).mean()
        grads[objective.preset] = torch.autograd.grad(loss, (clean, adv), allow_unused=True)
    assert grads["note"][0] is None
    assert grads["official"][0].norm() > 1e-3
    assert torch.allclose(grads["note"][1], grads["official"][1], atol=1e-5)


def test_only_mart_has_a_note_preset():
    with pytest.raises(hb.UserError, match="preset is 'paper' or 'official' for this method, not 'note'"):
        hb.method("trades", hb.Linf(0.1), preset="note")
