"""Minimum-norm attacks against distances that are known, or found by a dense search."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import hauberk as hb
from helpers import linear, sound, tiny_batch, tiny_net

THREATS = {"Linf": hb.Linf("8/255"), "L2": hb.L2(0.5), "L1": hb.L1(5), "L0": hb.L0(8)}
ATTACKS = {
    "fmn-Linf": (hb.attacks.FMN(), "Linf"),
    "fmn-L2": (hb.attacks.FMN(), "L2"),
    "fmn-L1": (hb.attacks.FMN(), "L1"),
    "fmn-L0": (hb.attacks.FMN(), "L0"),
    "sigma-zero": (hb.attacks.SigmaZero(steps=300), "L0"),
    "deepfool-Linf": (hb.attacks.DeepFool(), "Linf"),
    "deepfool-L2": (hb.attacks.DeepFool(), "L2"),
    "cw-l2": (hb.attacks.CWL2(steps=60, searches=5, step_size=0.05, first_constant=1.0), "L2"),
    "ddn": (hb.attacks.DDN(), "L2"),
}
each = pytest.mark.parametrize(("attack", "norm"), list(ATTACKS.values()), ids=list(ATTACKS))


def nearest_in_box(w, gap, low, high, norm):
    """Length of the shortest δ within the bounds with ``w·δ = gap > 0``, by solvers that share nothing with the library."""
    reach = np.where(w > 0, w * high, w * low)  # most that each coordinate can give
    if norm == "L0":
        return 1 + np.searchsorted(np.sort(reach)[::-1].cumsum(), gap)
    if norm == "L1":
        found = linprog(
            np.ones(2 * len(w)),
            A_eq=np.concatenate([w, -w])[None],
            b_eq=[gap],
            bounds=[(0, h) for h in high] + [(0, -most) for most in low],
        )
        return found.fun
    below, above = 0.0, 1e6
    for _ in range(200):
        middle = (below + above) / 2
        direction = middle * (np.sign(w) if norm == "Linf" else w)
        enough = w @ np.clip(direction, low, high) > gap
        below, above = (below, middle) if enough else (middle, above)
    change = np.clip(above * (np.sign(w) if norm == "Linf" else w), low, high)
    return np.abs(change).max() if norm == "Linf" else np.linalg.norm(change)


@each
@pytest.mark.parametrize("near_the_bounds", [False, True])
def test_reach_the_boundary_of_a_linear_model(attack, norm, near_the_bounds):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(20, generator=generator, dtype=torch.float64)
    x = torch.rand(12, 20, generator=generator, dtype=torch.float64) * (0.1 if near_the_bounds else 1)
    model, y = linear(w), (x @ w > 0).long()
    if isinstance(attack, hb.attacks.CWL2):  # which takes its time
        attack = replace(attack, steps=200, searches=9, step_size=0.02, first_constant=0.1)
    found = attack(model, x, y, THREATS[norm])
    assert found.success.all()
    lengths = THREATS[norm].norm.length(found.x_adv - x)
    for k in range(len(x)):
        gap, sign = float((x[k] @ w).abs()), -float((x[k] @ w).sign())
        low, high = -x[k].numpy(), (1 - x[k]).numpy()
        best = nearest_in_box(sign * w.numpy(), gap, low, high, norm)
        assert best * (1 - 1e-6) <= float(lengths[k]) <= best * 1.03 + (0.01 if norm != "L0" else 1)


@pytest.mark.parametrize("confidence", [0.01, 0.5, 3.0])
def test_cw_l2_goes_beyond_its_confidence_and_no_further_than_it_must(confidence):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(20, generator=generator, dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(4, 20, generator=generator, dtype=torch.float64)
    model, y = linear(w), (x @ w > 0).long()
    attack = hb.attacks.CWL2(steps=100, searches=8, step_size=0.03, first_constant=0.1, confidence=confidence)
    found = attack(model, x, y, hb.L2(0.5))
    margin = found.logits.gather(1, 1 - y[:, None]) - found.logits.gather(1, y[:, None])
    assert found.success.all()
    assert (margin > confidence).all()
    slope = (model.weight[1] - model.weight[0]).detach()
    nearest = (confidence + (model(x)[:, 1] - model(x)[:, 0]).abs()) / slope.norm()
    assert ((found.x_adv - x).norm(dim=1) <= 1.03 * nearest + 0.01).all()


@each
def test_reach_the_optimum_of_a_small_network(attack, norm):
    """In two dimensions the nearest adversarial example is found on a fine grid."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        model[0].weight.data *= 2
        x = torch.rand(40, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    line = torch.linspace(0, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    if norm == "L0":
        threat = hb.L0(1)
        grid = torch.cat([torch.stack([line, torch.full_like(line, v)], 1) for v in x[:, 1]] + [grid])
        grid = torch.cat([torch.stack([torch.full_like(line, v), line], 1) for v in x[:, 0]] + [grid])
    else:
        threat = THREATS[norm]
    classes = model(grid).argmax(1)
    found = attack(model, x, y, threat)
    lengths = threat.norm.length(found.x_adv - x)
    best = torch.stack([threat.norm.length(grid[classes != label] - one).min() for one, label in zip(x, y, strict=True)])
    reached = found.success & (lengths <= 1.05 * best + 0.005)  # the grid itself is that coarse
    # The others are led to another part of the boundary; DeepFool ends at the first point that it comes to.
    assert reached.double().mean() >= (0.5 if isinstance(attack, hb.attacks.DeepFool) else 0.8)


@each
def test_stay_in_the_box_and_leave_frozen_features(attack, norm):
    model, x, y = sound(12, dtype=torch.float32)
    frozen = torch.zeros(3, 8, 8, dtype=torch.bool)
    frozen[:, :4] = True
    ways = torch.zeros(3, 8, 8)
    ways[:, 6:] = 1
    eps = THREATS[norm].eps
    make = {"Linf": hb.Linf, "L2": hb.L2, "L1": hb.L1, "L0": hb.L0}[norm]
    threat = make(eps, frozen=frozen, monotone=ways)
    found = attack(model, x, y, threat)
    assert found.success.any()
    assert torch.equal(found.x_adv[:, frozen], x[:, frozen])
    assert (found.x_adv >= 0).all()
    assert (found.x_adv <= 1).all()
    assert (found.x_adv[:, :, 6:] >= x[:, :, 6:]).all()
    assert torch.equal(found.success, model(found.x_adv).argmax(1) != y)


@each
def test_an_input_that_is_misclassified_is_its_own_nearest_example(attack, norm):
    model, x, y = sound(8)
    y = y.clone()
    y[::2] = (y[::2] + 1) % 5
    found = attack(model, x, y, THREATS[norm])
    assert torch.equal(found.x_adv[::2], x[::2])
    assert found.success[::2].all()


@each
def test_rows_do_not_see_each_other_and_draws_repeat(attack, norm):
    model, x, y = sound(9)
    rng = hb.attacks.base.ExampleRng(3, torch.arange(9))
    whole = attack(model, x, y, THREATS[norm], seed=rng)
    part = attack(model, x[4:], y[4:], THREATS[norm], seed=rng.index_select(torch.arange(4, 9)))
    assert torch.allclose(whole.x_adv[4:], part.x_adv, atol=1e-5)
    again = attack(model, x, y, THREATS[norm], seed=rng)
    assert torch.equal(whole.x_adv, again.x_adv)


@each
def test_an_evaluation_counts_what_is_within_eps(attack, norm):
    """The verdict of a stream with refilled rows is that of the whole search on a batch."""
    model, x, y = sound(40)
    threat = THREATS[norm].scaled(0.25)
    alone = attack(model, x, y, threat)
    inside = alone.success & threat.contains(alone.x_adv, x)
    assert 0 < int(inside.sum()) < 40
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = hb.evaluate(model, (x, y), threat=threat, attacks=[attack], batch_size=7, diagnostics=(), quiet=True)
    broken = torch.tensor([name is not None for name in result.broken_by])
    assert int((broken != inside).sum()) <= 1  # by rounding
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    norms = [one["norm"] for one in result.examples if one["norm"] is not None]
    assert max(norms) <= float(threat.eps) * (1 + 1e-5)


def test_eps_per_feature_sets_the_proportions():
    """Half as much of the second feature is as far as all of the first."""
    model = linear(torch.tensor([1.0, 1.0], dtype=torch.float64))
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    threat = hb.L2([0.2, 0.1], low=-5, high=5)
    found = hb.attacks.fmn(model, x, torch.tensor([1]), threat, steps=300)
    change = (found.x_adv - x)[0]
    assert change[0] / change[1] == pytest.approx(4, rel=0.05)


def test_no_gradient_is_no_obstacle_to_ddn():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([(x.flatten(1).norm(dim=1) > 1.0).double(), torch.full((len(x),), 0.5, dtype=x.dtype)], 1)

    x, y = torch.full((4, 6), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    found = hb.attacks.ddn(Flat(), x, y, hb.L2(0.5))
    assert found.success.all()


@pytest.mark.parametrize(
    ("name", "norm"), [("ddn", "Linf"), ("apgd", "L0"), ("fab", "L0"), ("square", "L0"), ("autoattack", "L0")]
)
def test_what_is_not_defined_in_a_norm_says_what_is(name, norm):
    model, x, y = tiny_net(), *tiny_batch()
    with pytest.raises(hb.UserError, match=r"not defined in .*FMN"):
        getattr(hb.attacks, name)(model, x, y, THREATS[norm])


def test_l0_by_brute_force():
    """PGD and FMN in L0 on a network of which every corner of the box can be looked at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
        x = torch.rand(30, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    values = torch.linspace(0, 1, 9, dtype=torch.float64)
    fewest = torch.full((30,), 7)
    for count in (2, 1):
        for which in itertools.combinations(range(6), count):
            for value in itertools.product(values, repeat=count):
                moved = x.clone()
                moved[:, which] = torch.stack(value)
                fewest[model(moved).argmax(1) != y] = count
    for k in (1, 2):
        by_pgd = hb.attacks.pgd(model, x, y, hb.L0(k), steps=100, step_size="eps", loss="cw", restarts=10).success
        nearest = hb.attacks.fmn(model, x, y, hb.L0(k))
        by_fmn = nearest.success & ((nearest.x_adv != x).sum(1) <= k)
        exact = int((fewest <= k).sum())
        assert int(by_pgd.sum()) >= 0.9 * exact
        assert int(by_fmn.sum()) >= 0.7 * exact


def test_an_evaluation_in_l0_with_its_diagnostics():
    model, x, y = sound(30)
    result = hb.evaluate(model, (x, y), threat=hb.L0(2), attacks=["pgd-20", "fmn-100"], batch_size=16, quiet=True)
    assert 0 < result.robust_accuracy < 1
    assert all(one["norm"] in (None, 1.0, 2.0) for one in result.examples)
    robust = [point["robust"] for point in result.curve]
    assert robust == sorted(robust, reverse=True)
    assert result.curve[-1]["robust"] == 0
