"""The active test: planted examples are there, honest models give them away, and models that hide gradients do not."""

from functools import partial

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.evaluation.diagnostics.active import plant
from helpers import sound

NAME = "attacks-find-planted-examples"


class Hidden(nn.Module):
    """A network behind a rule that answers for it."""

    def __init__(self, net, rule):
        super().__init__()
        self.net, self.rule = net, rule

    def forward(self, x):
        return self.rule(self.net, x)


def quantised(net, x):
    return net((6 * x).round() / 6)


RULES = {
    "no gradient": quantised,
    "flipped": lambda net, x: 2 * net(x).detach() - net(x),
    "decoy": lambda net, x: net(x).detach() + net(x.flip(3)) - net(x.flip(3)).detach(),
    "gradient at the data only": lambda net, x: net(x) if bool((x == (255 * x).round() / 255).all()) else net(x.detach()),
}


def active_test(model, x, y, threat, attacks=("pgd-20",), **how):
    ev = hb.evaluate(model, (x, y), threat=threat, attacks=attacks, diagnostics=[NAME], quiet=True, **how)
    return ev.diagnostics


HONEST = [(hb.Linf(0.05), name) for name in ("pgd-20", "cw-30", "apgd-ce", "apgd-t", "apgd-dlr")]
HONEST += [(hb.L2(0.4), "pgd-20"), (hb.L2(0.4), "apgd-ce"), (hb.L1(2.0), "pgd-20")]


@pytest.mark.parametrize(("threat", "attack"), HONEST, ids=str)
def test_an_honest_network_gives_them_away(threat, attack):
    model, x, y = sound(20)
    (found,) = active_test(model, x, y, threat, [attack])
    assert found.verdict == "ok"
    assert "miss 0 of 16 " in found.measured or "miss 1 of 16 " in found.measured


@pytest.mark.parametrize("rule", RULES)
def test_what_hides_its_gradients_is_invalid_by_name(rule):
    net, x, _ = sound(20)
    x, model = (255 * x).round() / 255, Hidden(net, RULES[rule]).eval()
    y = model(x).argmax(1)
    (found,) = active_test(model, x, y, hb.Linf(0.1), ["fgsm", "pgd-20", "cw-30"])
    assert (found.name, found.verdict) == (NAME, "invalid")
    assert "FGSM" not in found.measured
    assert active_test(net, x, y, hb.Linf(0.1))[0].verdict == "ok"


def test_a_stand_in_finds_what_was_hidden():
    net, x, _ = sound(20)
    model = Hidden(net, quantised).eval()
    y = model(x).argmax(1)
    assert active_test(model, x, y, hb.Linf(0.1))[0].verdict == "invalid"
    assert active_test(model, x, y, hb.Linf(0.1), bpda=net)[0].verdict == "ok"


def test_saturated_logits_hide_them_from_cross_entropy_and_not_from_the_margin():
    net, x, y = sound(20)
    model = Hidden(net, lambda net, x: 1e5 * net(x)).eval()
    assert active_test(model, x, y, hb.Linf(0.03), ["pgd-20"])[0].verdict == "invalid"
    assert active_test(model, x, y, hb.Linf(0.03), ["pgd-20", "cw-30"])[0].verdict == "ok"


def test_a_regression_is_tested_too():
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1), nn.Flatten(0))
    x = torch.rand(20, 30)
    how = {
        "criterion": lambda outputs, y: (outputs - y).abs() > 0.5,
        "loss": lambda outputs, y: (outputs - y).abs(),
        "threat": hb.Linf(0.1),
    }
    assert active_test(net, x, net(x).detach(), **how)[0].verdict == "ok"
    rounded = Hidden(net, lambda net, x: net((20 * x).round() / 20)).eval()
    assert active_test(rounded, x, rounded(x).detach(), **how)[0].verdict == "invalid"


def test_categories_hide_no_planted_examples_and_a_turned_gradient_does():
    """Rows of a table: two categories of seven values behind the nearest row, and a number."""
    torch.manual_seed(0)
    groups = [list(range(7)), list(range(7, 14))]
    net = nn.Sequential(nn.Linear(15, 32), nn.Tanh(), nn.Linear(32, 2))
    rounding = hb.models.StraightThroughRound([], groups)
    threat = hb.Linf([1.0] * 14 + [0.1], one_hot=[1] * 7 + [2] * 7 + [0])
    x = torch.cat([torch.eye(7)[torch.randint(7, (40,))] for _ in groups] + [torch.rand(40, 1)], 1)
    honest = nn.Sequential(rounding, net)
    turned = nn.Sequential(rounding, Hidden(net, RULES["flipped"]))
    for model, verdict in ((honest, "ok"), (turned, "invalid")):
        (found,) = active_test(model, x, model(x).argmax(1), threat, ["pgd-20", "cw-30"])
        assert found.verdict == verdict, found.measured
    (found,) = active_test(honest, x, honest(x).argmax(1), hb.Linf(threat.eps), ["pgd-20", "cw-30"])
    assert found.verdict == "invalid"  # an attack that raises several values at once misses what is there


def test_where_nothing_can_be_planted_or_tried_nothing_is_said():
    net, x, y = sound(20)
    constant = Hidden(net, lambda net, x: net(x.detach() * 0 + 0.5)).eval()
    assert active_test(constant, x, constant(x).argmax(1), hb.Linf(0.1)) == []
    assert active_test(net, x, y, hb.Linf(0.1), ["random-100"]) == []
    assert active_test(net, x, y, hb.Linf(0.1), [hb.attacks.PGD(5, loss=lambda z, y: z[:, 0])]) == []


@pytest.mark.parametrize("width", [1, 2, 10, 300])
def test_the_planted_point_is_the_only_one_of_its_class(width):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    outputs, clean = 3.0 + draw(5, 128, width), 3.0 + 0.1 * draw(5, width)
    outputs[:, 70] = 3.0 + 3 * (outputs[:, 70] - 3.0)  # one that is apart
    margin = torch.linspace(0.5, 5.0, 5)
    heads, which, planted = plant(outputs, clean, margin)
    assert planted.sum() >= (4 if width > 1 else 3)
    rows = torch.arange(5)
    inside = heads.found(outputs.flatten(0, 1), rows.repeat_interleave(128)).view(5, 128)
    assert torch.equal(inside[planted], nn.functional.one_hot(which, 128).bool()[planted])
    at_clean = heads(clean, rows)
    assert torch.allclose((at_clean[:, 0] - at_clean[:, 1])[planted], margin.double()[planted])
    shifted, _, _ = plant(1000 * outputs + 7, 1000 * clean + 7, margin)  # neither scale nor origin of the outputs counts
    assert torch.allclose(shifted(1000 * outputs[:, 0] + 7, rows), heads(outputs[:, 0], rows), rtol=1e-3, atol=1e-3)
