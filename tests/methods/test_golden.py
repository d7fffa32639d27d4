"""Against numbers of the methods' official code."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from helpers import TESTS

GOLDEN = {
    name: torch.from_numpy(np.array(value)) for name, value in np.load(TESTS / "golden" / "official_code_seed0.npz").items()
}


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
