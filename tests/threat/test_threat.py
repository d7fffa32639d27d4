import itertools
import json
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
from hauberk.threat.batch import check_inputs
from hauberk.threat.projections import project_l1_box, project_l2_box

NORMS = {"Linf": hb.Linf, "L2": hb.L2, "L1": hb.L1}


def projection_by_sorting(v, lo, hi, p):
    """Solve the projection by sorting the breakpoints of its multiplier, one row at a time, in float64."""
    size, bound = np.abs(v), np.where(v > 0, hi, -lo)
    if p == 2:
        ends = np.divide(bound, size, out=np.full_like(size, np.inf), where=size > 0)
        levels = np.unique(np.append(ends, [0.0, 1.0]).clip(0, 1))
    else:
        levels = np.unique(np.concatenate([size, size - bound, [0.0]]).clip(0))[::-1]

    def at(level):  # grows along the levels
        return np.minimum(level * size if p == 2 else (size - level).clip(0), bound)

    last = sum((at(level) ** p).sum() <= 1 for level in levels) - 1
    if last == len(levels) - 1:
        return at(levels[last]) * np.sign(v)
    before, after = levels[last], levels[last + 1]
    if p == 1:
        moving = (size >= before) & (size - bound <= after)
        return at(before - (1 - at(before).sum()) / max(moving.sum(), 1)) * np.sign(v)
    moving = ends >= after
    return at(np.sqrt((1 - (bound[~moving] ** 2).sum()) / (size[moving] ** 2).sum())) * np.sign(v)


@pytest.mark.parametrize(("onto", "p"), [(project_l2_box, 2), (project_l1_box, 1)])
@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dims=st.sampled_from([1, 2, 7, 40, 200]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 5.0, 100.0, 1e30]),
    how=st.sampled_from(["plain", "ties", "frozen", "zeros", "open", "narrow", "uneven"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projections_agree_with_sorting(onto, p, seed, dims, scale, how, dtype):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(3, dims))
    lo, hi = -rng.uniform(0, 1, (3, dims)), rng.uniform(0, 1, (3, dims))
    if how == "ties":
        v, lo, hi = np.sign(v), np.full_like(lo, -0.25), np.full_like(hi, 0.25)
    elif how == "open":
        lo, hi = np.full_like(lo, -np.inf), np.full_like(hi, np.inf)
    elif how == "narrow":
        lo, hi = 1e-3 * lo, 1e-3 * hi
    elif how == "uneven":
        v, hi = v * 10.0 ** rng.uniform(-3, 3, v.shape), hi * 10.0 ** rng.uniform(-6, 0, v.shape)
    out = rng.random((3, dims)) < 0.3
    v[out & (how == "zeros")] = 0
    lo[out & (how == "frozen")] = hi[out & (how == "frozen")] = 0
    v, lo, hi = (torch.from_numpy(a).to(dtype) for a in (v * scale, lo, hi))
    ours = onto(v, lo, hi)
    assert ours.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert bool((ours.double().norm(p=p, dim=1) <= 1 + 32 * eps).all())
    assert bool(((ours >= lo) & (ours <= hi)).all())
    size, bound = v.double().numpy(), (lo.double().numpy(), hi.double().numpy())
    nearest = np.stack([projection_by_sorting(size[row], bound[0][row], bound[1][row], p) for row in range(3)])
    # In L1 a coordinate is |v| - λ, which has no more digits after the point than v has.
    rounding = 8 * eps * (1 + (0 if p == 2 else np.abs(size).max(1, keepdims=True)))
    assert np.all(np.abs(ours.double().numpy() - nearest) <= rounding)
    for row in range(3):  # to the last bit whatever the others are, and how many they are
        assert torch.equal(onto(v[row : row + 1], lo[row : row + 1], hi[row : row + 1])[0], ours[row])


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


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_feature_is_granted_its_own_rounding_and_a_frozen_one_none(norm, dtype):
    """Where one feature is of the order of a million, which rounds by a part of 1, the others stay where they must."""
    threat = NORMS[norm]([0.0, 0.1, 1e5], low=[0.0, 0.0, -1e7], high=[1.0, 1.0, 1e7])
    x = torch.tensor([[0.3, 0.5, 1e6]], dtype=dtype).expand(50, 3)
    region = threat.around(x)
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    inside = region.project(x + noise * torch.tensor([1.0, 0.3, 3e5]))
    assert region.contains(inside).all()
    border = x + torch.tensor([0.0, 0.1, 0.0], dtype=dtype)
    assert region.contains(border).all()
    for outside in ([1e-6, 0, 0], [0.2, 0, 0], [0, 0.1001, 0], [0, -0.1001, 0], [0, 0, 1.01e5]):
        assert not region.contains(x + torch.tensor(outside, dtype=dtype)).any()


@pytest.mark.parametrize(
    "threat",
    [
        hb.Linf(0.1, high=[1.0, 1e7]), hb.L2(0.1, high=[1.0, 1e7]), hb.L0(1, high=[1.0, 1e7]),
        hb.Linf(0.1, high=[1.0, 1e7], monotone=[-1, 0]),
    ],
)  # fmt: skip
def test_inputs_outside_the_box_are_refused_in_every_norm_however_large_other_features_are(threat):
    x, y = torch.tensor([[0.3, 1e6], [1.2, 1e6]]), torch.tensor([0, 1])
    with pytest.raises(hb.UserError, match="outside the threat model's box"):
        check_inputs(x, y, threat)
    assert torch.equal(check_inputs(x[:1], y[:1], threat), y[:1])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_input_outside_its_box_by_rounding_is_inside_its_set(norm):
    x = torch.tensor([[-1e-7, 1 + 1e-6, -1e-7, 1 + 1e-6]])
    region = NORMS[norm](0.1, frozen=[0, 1]).around(x)
    assert region.contains(x)
    assert region.contains(region.project(x + torch.tensor([[1.0, 1.0, 1.0, -1.0]])))
    assert not region.contains(x + torch.tensor([[1e-5, 0.0, 0.0, 0.0]]))
    assert not region.contains(x - torch.tensor([[0.0, 0.0, 1e-6, 0.0]]))


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


@pytest.mark.parametrize("eps", [8 / 255, 0.12345678, 1 / 3, 1e-7, 0.1, "0.1", "8/255", "3.10e-2", "0.03137254901960784"])
def test_a_card_has_every_digit_of_eps(eps):
    threat = hb.Linf(eps)
    again = threat_from_dict(json.loads(json.dumps(threat.to_dict())))
    assert again.eps == threat.eps
    assert str(again) == str(threat)
    assert again.to_dict() == threat.to_dict()
    assert hb.Linf("8/255").to_dict()["eps"] == "8/255"


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
        (lambda: hb.Linf(0.1, one_hot=[0.5, 0]), "the number of its group"),
        (lambda: hb.Linf(0.1, one_hot=[3, -1]), "the number of its group"),
        (lambda: hb.Linf(0.1, one_hot=[1, 1]).around(torch.zeros(1, 3)), "one_hot has shape .* does not fit"),
        (lambda: make_threat("L0", 1, one_hot=[1, 1]), "L0 counts features"),
        (lambda: make_threat("Linfty", 0.1), "did you mean 'Linf'"),
        (lambda: threat_from_dict({"norm": "L2"}), "no readable threat model"),
    ],
)
def test_bad_threat_models_say_why(make, says):
    with pytest.raises(hb.UserError, match=says):
        make()


def test_a_step_goes_to_the_best_value_of_each_one_hot_group():
    """Of a linear function, the vertices of the groups are tried one by one in float64."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    slope[:20] += 3  # all rise: by the sign of each, all values of a group would become 1 together
    groups = [0, 1, 1, 1, 0, 2, 2, 2]
    x = torch.tensor([0.5, 0, 1, 0, 0.5, 1, 0, 0], dtype=torch.float64).repeat(40, 1)
    threat = hb.Linf([0.25, 1, 1, 1, 0.25, 1, 1, 1], one_hot=groups)
    region = threat.around(x)
    values = [(a, b) for a in (1, 2, 3) for b in (5, 6, 7)]
    rows = torch.stack([torch.eye(8, dtype=torch.float64)[list(pair)].sum(0) for pair in values])
    best = (slope @ rows.T).amax(1) + (0.5 * slope[:, [0, 4]]).sum(1) + (0.25 * slope[:, [0, 4]].abs()).sum(1)
    moved = region.step(x, slope, region.eps)
    torch.testing.assert_close((slope * moved).sum(1), best)
    shifted = slope + torch.tensor([0, 5, 5, 5, 0, -7, -7, -7], dtype=torch.float64)  # the sum over a group is always 1
    assert torch.equal(region.step(x, shifted, region.eps), moved)
    assert torch.equal(region.step(x, torch.zeros_like(x), region.eps), x)
    fraction = torch.full((40,), 0.25, dtype=torch.float64)
    part = region.index_select(torch.arange(5)).with_radius_scaled(fraction[:5])
    assert part.step(x[:5], slope[:5], part.eps)[:, 1:4].sum(1).sub(1).abs().max() <= 0.5
    corner = region.random_corner(ExampleRng(0, torch.arange(40)))
    for group in (corner[:, 1:4], corner[:, 5:]):
        assert torch.equal(group.sum(1), torch.ones(40, dtype=torch.float64))
        assert group.amax(0).min() == 1  # each value comes up
    again = threat_from_dict(json.loads(json.dumps(threat.to_dict())))
    assert again.one_hot.tolist() == groups
    assert "2 one-hot" in repr(again)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_uniform_draw_is_no_infinite_normal_one(dtype):
    """Of 2²⁴ numbers in float32 one is so large that the middle of its interval rounds to 1."""

    class Extreme(ExampleRng):
        def uniform(self, like, tag):
            largest = 1 - 2.0 ** (-53 if like.dtype == torch.float64 else -24)
            return torch.tensor([0.0, largest], dtype=like.dtype)

    low, high = Extreme(0, torch.arange(1)).normal(torch.empty(1, 2, dtype=dtype), 0).tolist()
    assert -9 < low < -5
    assert 5 < high < 9


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


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(0, 5), double=st.booleans(), wide=st.booleans())
def test_l0_projection_is_the_nearest_point(seed, k, double, wide):
    """Of all points with at most k changes in the box, by trying all sets of features."""
    dtype, generator = torch.float64 if double else torch.float32, torch.Generator().manual_seed(seed)
    high = 7.0 if wide else 1.0
    x = torch.rand(3, 5, generator=generator, dtype=dtype) * high
    x[0, 0], x[1, 1] = 0, high
    frozen = torch.rand(5, generator=generator) < 0.3
    threat = hb.L0(k, high=high, frozen=frozen)
    point = x + high * torch.randn(3, 5, generator=generator, dtype=dtype)
    ours = threat.project(point, x)
    assert threat.contains(ours, x).all()
    assert ((ours != x).sum(1) <= k).all()
    assert torch.equal(ours[:, frozen], x[:, frozen])
    clipped = torch.where(frozen, x, point.clamp(0, high))
    for row in range(3):
        best = min(
            float((torch.where(chosen, clipped[row], x[row]) - point[row]).norm())
            for chosen in (torch.tensor(bits) for bits in itertools.product([False, True], repeat=5))
            if chosen.sum() <= k
        )
        assert float((ours[row] - point[row]).norm()) == pytest.approx(best, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([0, 1, 3, 40, 500]), one_way=st.booleans())
def test_l0_starts_and_steps_never_leave(seed, k, one_way):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, 5, 5, generator=generator)
    ways = torch.randint(-1, 2, (3, 5, 5), generator=generator) if one_way else None
    region = hb.L0(k, monotone=ways).around(x)
    points = [region.random(ExampleRng(seed, torch.arange(4)))]
    for size in (0.1, 1.0, 100.0):
        points.append(region.step(points[-1], torch.randn(4, 3, 5, 5, generator=generator), size))
    points.append(region.step(points[-1], torch.zeros_like(x), 1.0))
    for point in points:
        assert region.contains(point).all()
        assert ((point != x).flatten(1).sum(1) <= k).all()
        if ways is not None:
            assert (point >= x)[:, ways > 0].all()
    half = region.with_radius_scaled(torch.tensor([0.0, 0.5, 1.0, 1.0]))
    counts = (half.project(torch.rand(4, 3, 5, 5, generator=generator)) != x).flatten(1).sum(1)
    assert counts.tolist() <= [0, k // 2, k, k]


def test_l0_counts_exactly():
    x = torch.full((4, 3), 0.5)
    point = x.clone()
    point[1, 0] = 1.0
    point[2, :2] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    point[3, 0] = 1.25
    threat = hb.L0(1)
    assert threat.contains(point, x).tolist() == [True, True, False, False]
    assert threat.constraint_violation(point, x).tolist() == [0.0, 0.0, 1.0, 0.25]
    assert str(threat) == "L0(1)"
    assert str(threat_from_dict(threat.to_dict())) == "L0(1)"
    for wrong in ("8/255", 0.5, [1.0, 2.0, 1.0]):
        with pytest.raises(hb.UserError, match="how many features"):
            hb.L0(wrong)
    for ask in (threat.norm.project, threat.norm.steepest, threat.norm.onto_hyperplane):
        with pytest.raises(hb.UserError, match="SigmaZero"):
            ask(*[x] * (3 if ask == threat.norm.project else 4))
