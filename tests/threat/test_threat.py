import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.threat import make_threat, threat_from_dict
from hauberk.threat.projections import project_l1_box, project_l2_box

NORMS = {"Linf": hb.Linf, "L2": hb.L2, "L1": hb.L1}


def reference_projection(v, lo, hi, p):
    """Solve the projection by bisection on its multiplier, one row at a time."""

    def point(multiplier):
        if p == 2:
            return np.clip(v / (1 + multiplier), lo, hi)
        return np.clip(np.sign(v) * np.maximum(np.abs(v) - multiplier, 0), lo, hi)

    low, high = 0.0, 1e6
    if np.linalg.norm(point(0.0), p) <= 1:
        return point(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(point(middle), p) > 1 else (low, middle)
    return point(high)


@pytest.mark.parametrize(("onto", "p"), [(project_l2_box, 2), (project_l1_box, 1)])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), dims=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 5.0, 100.0]))
def test_projections_solve_their_problem(onto, p, seed, dims, scale):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(3, dims)) * scale
    lo, hi = -rng.uniform(0, 1, (3, dims)), rng.uniform(0, 1, (3, dims))
    lo[rng.random((3, dims)) < 0.2] = 0  # already at the bound
    ours = onto(*map(torch.from_numpy, (v, lo, hi))).numpy()
    for row in range(3):
        assert np.allclose(ours[row], reference_projection(v[row], lo[row], hi[row], p), atol=1e-7)


def test_projection_is_nearest_by_a_general_solver():
    rng = np.random.default_rng(0)
    v, lo, hi = rng.normal(size=4) * 3, -rng.uniform(0.1, 1, 4), rng.uniform(0.1, 1, 4)
    ball = {"type": "ineq", "fun": lambda u: 1 - u @ u}
    found = minimize(lambda u: ((u - v) ** 2).sum(), np.zeros(4), bounds=list(zip(lo, hi, strict=True)), constraints=ball)
    ours = project_l2_box(*(torch.from_numpy(a)[None] for a in (v, lo, hi))).numpy()[0]
    assert np.allclose(ours, found.x, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    norm=st.sampled_from(list(NORMS)),
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1,), (5,), (40,), (1, 4, 3), (3, 8, 8), (2, 3)]),
    double=st.booleans(),
    eps=st.sampled_from([0.0, 1e-4, 0.03, 0.3, 1.0]),
    per_feature=st.booleans(),
    frozen=st.booleans(),
)
def test_start_step_and_projection_never_leave(norm, seed, shape, double, eps, per_feature, frozen):
    dtype = torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, *shape, generator=generator, dtype=dtype)
    x[0] = 0  # corners of the box
    x[1] = 1
    radius = torch.rand(shape, generator=generator) * eps if per_feature and math.prod(shape) > 1 else eps
    mask = torch.rand(shape, generator=generator) < 0.5 if frozen else None
    threat = NORMS[norm](radius, frozen=mask)
    region = threat.around(x)
    points = [region.random(ExampleRng(seed, torch.arange(4)))]
    points.append(region.project(x + torch.randn(4, *shape, generator=generator, dtype=dtype) * 10))
    for size in (1e-3, 0.1, 10.0):
        points.append(region.step(points[-1], torch.randn(4, *shape, generator=generator, dtype=dtype), size))
    points.append(region.step(points[-1], torch.zeros_like(x), 0.1))
    for point in points:
        assert point.dtype == dtype
        assert region.contains(point).all()
        assert region.constraint_violation(point).max() <= (0 if norm == "Linf" else 1e-14 if double else 1e-6)
        assert (point >= 0).all()
        assert (point <= 1).all()
        if mask is not None:
            assert torch.equal(point[:, mask], x[:, mask])


def test_constraint_violation_says_by_how_much():
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    moved = x + torch.tensor([[0.1, 0.0], [0.3, 0.4], [0.0, 0.7]], dtype=torch.float64)
    assert torch.allclose(hb.Linf(0.2).constraint_violation(moved, x), torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64))
    assert torch.allclose(hb.L2(0.2).constraint_violation(moved, x), torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64))
    assert torch.allclose(hb.L1(0.2).constraint_violation(moved, x), torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    assert hb.Linf(0.5, high=1.0).constraint_violation(x + 0.6, x)[0] == pytest.approx(0.1)
    assert hb.L2(0.2, frozen=[0]).constraint_violation(x + torch.tensor([[0.05, 0.0]]), x)[0] == pytest.approx(0.05)
    assert hb.Linf(0.2).contains(moved, x).tolist() == [True, False, False]
    broken = x.clone()
    broken[0, 0] = math.nan
    assert hb.Linf(0.2).contains(broken, x).tolist() == [False, True, True]


def test_random_start_fills_the_ball():
    x = torch.full((4000, 3), 0.5, dtype=torch.float64)
    rng = ExampleRng(0, torch.arange(4000))
    for norm, p in (("L2", 2), ("L1", 1)):
        lengths = (NORMS[norm](0.3).around(x).random(rng) - x).norm(p=p, dim=1) / 0.3
        assert abs(float((lengths**3).mean()) - 0.5) < 0.02  # r³ is uniform in three dimensions
    change = hb.Linf(0.3).around(x).random(rng) - x
    assert abs(float(change.mean())) < 0.01
    assert abs(float(change.abs().mean()) - 0.15) < 0.005


def test_per_feature_units():
    x = torch.tensor([[50.0, 2.0, 1.0]])
    threat = hb.Linf(torch.tensor([10.0, 0.5, 0.0]), low=[0.0, 0.0, 0.0], high=[100.0, 5.0, 1.0])
    moved = threat.project(x + 100, x)
    assert moved.tolist() == [[60.0, 2.5, 1.0]]
    wide = hb.L2(torch.tensor([10.0, 0.5, 0.0]), low=-math.inf, high=math.inf)
    assert ((wide.project(x + 100, x) - x) / torch.tensor([10.0, 0.5, 1.0])).norm() == pytest.approx(1.0)


def test_texts_and_cards():
    assert str(hb.Linf("8/255")) == "Linf(8/255)"
    assert hb.Linf("8/255").eps == 8 / 255
    assert str(hb.L2(0.5)) == "L2(0.5)"
    assert "2 frozen" in str(hb.Linf(0.1, frozen=[0, 3]))
    for threat in (hb.Linf("8/255"), hb.L2(0.5, low=-math.inf), hb.L1(torch.tensor([1.0, 2.0]), frozen=[1])):
        again = threat_from_dict(threat.to_dict())
        assert again.to_dict() == threat.to_dict()
        assert again.norm == threat.norm
    assert hb.Linf(0.3).scaled(0.5).eps == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.Linf(-0.1), "not negative"),
        (lambda: hb.Linf(float("nan")), "finite"),
        (lambda: hb.Linf(float("inf")), "finite"),
        (lambda: hb.Linf(8), "did you mean '8/255'"),
        (lambda: hb.Linf("8/0"), "not a number or a fraction"),
        (lambda: hb.Linf("eight"), "not a number or a fraction"),
        (lambda: hb.Linf(0.1, low=1.0, high=0.0), "box is empty"),
        (lambda: hb.L2(0.1, low=[0.0, 2.0], high=[1.0, 1.0]), "box is empty"),
        (lambda: hb.Linf(torch.tensor([0.1, -0.2])), "not negative"),
        (lambda: hb.Linf(0.1, frozen=[0.5]), "indices"),
        (lambda: hb.Linf(0.1, frozen=[7]).around(torch.zeros(1, 3)), "index 7"),
        (lambda: hb.Linf(torch.tensor([0.1, 0.2])).around(torch.zeros(1, 3)), "does not fit"),
        (lambda: hb.Linf(0.1, frozen=[None]), "frozen = .* is no mask or list"),
        (lambda: hb.Linf(0.1, monotone=[None]), "monotone = .* is no mask or list"),  # found by fuzzing cards
        (lambda: hb.Linf(0.1, monotone=[2, 0]), r"\+1, -1 or 0"),
        (lambda: make_threat("Linfty", 0.1), "did you mean 'Linf'"),
        (lambda: threat_from_dict({"norm": "L2"}), "no readable threat model"),
    ],
)
def test_bad_threat_models_say_why(make, says):
    with pytest.raises(hb.UserError, match=says):
        make()


def test_noise_depends_on_the_example_only():
    like = torch.empty(5, 7)
    ids = torch.tensor([3, 1, 4, 10**9, 5])
    whole = ExampleRng(7, ids, stage=2).uniform(like, 1)
    for i in range(5):
        assert torch.equal(ExampleRng(7, ids[i : i + 1], stage=2).uniform(like[:1], 1)[0], whole[i])
    for other in (
        ExampleRng(8, ids, stage=2).uniform(like, 1),
        ExampleRng(7, ids, stage=3).uniform(like, 1),
        ExampleRng(7, ids, 2).uniform(like, 2),
    ):
        assert not torch.equal(other, whole)
    assert torch.allclose(ExampleRng(7, ids, stage=2).uniform(like.double(), 1), whole.double(), atol=1e-7)
    several = ExampleRng(7, ids, stage=2).uniform(torch.empty(5, 2, 7), torch.tensor([[1, 4]] * 5))
    assert torch.equal(several[:, 0], whole)
    assert torch.equal(several[:, 1], ExampleRng(7, ids, stage=2).uniform(like, 4))


def test_noise_is_uniform_and_normal():
    from scipy import stats

    rng = ExampleRng(0, torch.arange(200))
    uniform, normal = rng.uniform(torch.empty(200, 500), 0), rng.normal(torch.empty(200, 500), 0)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(uniform[:2])[0, 1])) < 0.2


def test_numbers_keep_their_digits():
    threat = hb.Linf(0.031, low=[0.1, 0.2], high=0.9)
    assert threat.eps == 0.031
    assert (threat.high, threat.low.tolist()) == (0.9, [0.1, 0.2])
    assert hb.Linf([0.031, 0.1]).eps.tolist() == [0.031, 0.1]


def test_numbers_for_each_feature_are_those_of_now_and_may_be_made_under_inference_mode():
    frozen, x = torch.tensor([0]), torch.rand(3, 2)
    with torch.inference_mode():
        made = hb.Linf([0.1, 0.2], frozen=torch.tensor([1]))
    assert torch.equal(made.around(x).radius, torch.tensor([0.1, 0.0]))
    eps = torch.tensor([0.1, 0.2], dtype=torch.float64)
    threat = hb.Linf(eps, frozen=frozen)
    assert torch.equal(threat.around(x).radius, torch.tensor([0.0, 0.2]))
    eps.mul_(2)
    frozen.fill_(1)
    assert torch.equal(threat.around(x).radius, torch.tensor([0.2, 0.0]))
