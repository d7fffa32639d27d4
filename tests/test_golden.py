"""Against numbers of the methods' official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb

GOLDEN = {
    name: torch.from_numpy(np.array(value))
    for name, value in np.load(Path(__file__).parent / "golden" / "official_code_seed0.npz").items()
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
    return model


def gradients(objective, beta, preset):
    clean = GOLDEN["logits_nat"].clone().requires_grad_()
    adv = GOLDEN["logits_adv"].clone().requires_grad_()
    terms = objective(clean, adv, GOLDEN["y"], beta=beta, preset=preset)
    loss = (terms.robust + terms.regular).mean()
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
