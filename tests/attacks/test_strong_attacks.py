from importlib import import_module
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hauberk as hb
from hauberk.attacks import PRESETS, AttackInputs, ModelQueries, run_attack
from hauberk.attacks.apgd_l1 import APGDL1
from hauberk.attacks.score_based.square import Square, _move_mass
from hauberk.attacks.score_based.square_windows import HALVED_AFTER, pick_windows
from hauberk.core.random import ExampleRng
from hauberk.threat import NORMS as NORM_OBJECTS
from hauberk.threat import FeasibleSet
from helpers import fingerprint, linear, same, tiny_batch, tiny_net

NORMS = [hb.Linf, hb.L2, hb.L1]
RADIUS = {"Linf": 0.03, "L2": 0.5, "L1": 6.0}


def threats(**box):
    return [make(RADIUS[make.__name__], **box) for make in NORMS]


CALLS = {
    "apgd": lambda *a, **k: hb.attacks.apgd(*a, steps=15, **k),
    "apgd-t": lambda *a, **k: hb.attacks.apgd(*a, steps=15, loss="dlr-targeted", targets=2, **k),
    "fab-t": lambda *a, **k: hb.attacks.fab(*a, steps=10, targets=2, **k),
    "fab": lambda *a, **k: hb.attacks.fab(*a, steps=10, targeted=False, restarts=2, **k),
    "square": lambda *a, **k: hb.attacks.square(*a, steps=60, **k),
    "random": lambda *a, **k: hb.attacks.random_search(*a, steps=20, **k),
}


@pytest.mark.parametrize("threat", threats(), ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_stays_inside_leaves_the_model_alone_and_reports_what_holds(call, threat, device):
    model = tiny_net(seed=2).to(device).train()
    x, y = (t.to(device) for t in tiny_batch(24))
    before = fingerprint(model)
    found = call(model, x, y, threat)
    assert same(before, fingerprint(model))
    assert threat.contains(found.x_adv, x).all()
    logits = model.eval()(found.x_adv)
    assert torch.equal(logits.argmax(1) != y, found.success)
    assert found.success.any()


@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 8, 5), (2, 3, 4, 6), (1, 1, 1), (2,)])
@pytest.mark.parametrize("threat", threats(low=-1.0, high=2.0), ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_any_shape_of_input(call, threat, shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(torch.Size(shape).numel(), 5)).eval()
    x, y = tiny_batch(4, shape)
    assert threat.contains(call(model, x, y, threat).x_adv, x).all()


@pytest.mark.parametrize(
    "call", [CALLS[k] for k in ("apgd", "fab", "square", "random")], ids=["apgd", "fab", "square", "random"]
)
def test_frozen_features_and_radii_for_each(call):
    eps = torch.tensor([0.3, 0.0, 0.1, 0.5, 0.2, 0.05])
    x, y = tiny_batch(30, (6,), classes=2, dtype=torch.float64)
    eps = eps.double()
    model = linear(torch.tensor([1.0, 5.0, -2.0, 0.5, 9.0, 1.0]))
    for make in NORMS:
        threat = make(eps, low=-1.0, high=2.0, frozen=[4])
        found = call(model, x, y, threat)
        assert threat.contains(found.x_adv, x).all()
        assert torch.equal(found.x_adv[:, [1, 4]], x[:, [1, 4]])
        assert found.success.any()


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("call", ["apgd", "fab"])
def test_reaches_the_optimum_of_a_linear_model(make, call):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=generator, dtype=torch.float64)
    x = torch.rand(60, 12, generator=generator, dtype=torch.float64)
    y = (x @ w > 0).long()
    distance = (x @ w).abs() / w.norm(p={hb.Linf: 1, hb.L2: 2, hb.L1: torch.inf}[make])
    eps = float(distance.median())
    found = getattr(hb.attacks, call)(linear(w), x, y, make(eps, low=-9, high=9))
    # L1-APGD spreads a step over a share of the coordinates, which 12 of them make coarse.
    near = 0.7 if call == "apgd" and make is hb.L1 else 0.95
    assert found.success[distance < eps * near].all()
    assert not found.success[distance > eps * (1 + 1e-9)].any()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), need=st.floats(0.01, 3.0))
def test_nearest_points_of_a_hyperplane_against_solvers(norm, seed, need):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    below, above = torch.rand(2, 1, 6, generator=generator, dtype=torch.float64)
    gap = torch.tensor([need if seed % 2 else -need], dtype=torch.float64)
    ours = NORM_OBJECTS[norm].onto_hyperplane(w, gap, below, above)[0]
    assert (ours >= -below[0] - 1e-12).all()
    assert (ours <= above[0] + 1e-12).all()
    toward = w[0] * gap.sign()
    most = (toward.abs() * torch.where(toward > 0, above[0], below[0])).sum()
    if most < need * (1 + 1e-6):  # no solution: the nearest corner
        assert float(toward @ ours) == pytest.approx(float(most), rel=1e-6)
        return
    assert float(w[0] @ ours) == pytest.approx(float(gap), rel=1e-6)
    bounds = list(zip((-below[0]).tolist(), above[0].tolist(), strict=True))
    if norm == "L2":
        exact = minimize(
            lambda d: (d**2).sum(), ours.numpy() * 0, bounds=bounds,
            constraints={"type": "eq", "fun": lambda d: w[0].numpy() @ d - float(gap)}, options={"ftol": 1e-14, "maxiter": 500},
        ).fun ** 0.5  # fmt: skip
        assert float(ours.norm()) <= exact * (1 + 1e-5) + 1e-9
        return
    # |d_j| ≤ t_j, and the largest (L∞) or the sum (L1) of t is least
    size = 1 if norm == "Linf" else 6
    cost = [0.0] * 6 + [1.0] * size
    rows = []
    for j in range(6):
        for sign in (1.0, -1.0):
            row = [0.0] * (6 + size)
            row[j], row[6 + (0 if norm == "Linf" else j)] = sign, -1.0
            rows.append(row)
    exact = linprog(cost, rows, [0.0] * 12, [w[0].tolist() + [0.0] * size], [float(gap)], bounds + [(0, None)] * size).fun
    length = ours.abs().max() if norm == "Linf" else ours.abs().sum()
    assert float(length) == pytest.approx(exact, rel=1e-6)


def test_square_answers_proposals_that_change_nothing_without_a_pass(monkeypatch):
    model = tiny_net((1, 8, 8), seed=5).eval()
    x, _ = tiny_batch(16, (1, 8, 8))
    y = model(x).argmax(1)
    fast = hb.attacks.square(model, x, y, hb.Linf(0.02), steps=300, seed=3)
    monkeypatch.setattr(import_module("hauberk.attacks.score_based.square"), "_MOST_CELLS", 0)
    slow = hb.attacks.square(model, x, y, hb.Linf(0.02), steps=300, seed=3)
    assert torch.equal(fast.x_adv, slow.x_adv)
    assert torch.equal(fast.first_success, slow.first_success)
    assert fast.forwards < 0.9 * slow.forwards
    assert (slow.steps_taken[~slow.success] == 300).all()


def test_the_windows_of_square_shrink():
    windows = pick_windows((3, 8, 5), NORM_OBJECTS["Linf"])
    assert prod(windows.host_sizes[0]) == pytest.approx(0.8 * 40, rel=0.1)
    assert windows.host_sizes[-1] == (1, 1)
    assert windows.size_at(torch.tensor([[1, 11, 12], [51, 52, 9001]])).tolist() == [[0, 0, 1], [1, 2, 9]]
    for query in (0, 1, *HALVED_AFTER, 9001):
        assert windows.largest_from(query) == windows.size_at(torch.tensor(query))
    vector = pick_windows((1, 1, 20), NORM_OBJECTS["L2"])
    assert vector.cells(0).patterns[0, 0].norm() == pytest.approx(1.0)
    assert all(high == 1 for high, _ in vector.host_sizes)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 6, 9), (1, 9, 4), (1, 1, 7), (1, 1, 2)])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_windows_of_square_have_the_official_law(shape, norm):
    """First rows and columns are ``floor(u · max(side - size, 1))``: never the last of an image; in a vector every place."""
    windows, (_, height, width) = pick_windows(shape, NORM_OBJECTS[norm]), shape
    for k, (high, wide) in enumerate(windows.host_sizes):
        room = torch.tensor([max(height - high + (1 in shape[1:]), 1), max(width - wide + (1 in shape[1:]), 1)])
        draws = (torch.arange(4 * room.prod()) + 0.5) / (4 * room.prod())
        draws = torch.stack([draws, (draws * room[0]) % 1], 1)
        size = torch.full((len(draws),), k)
        first = windows.first(draws, size)
        assert torch.equal((first[:, 0] * room[1] + first[:, 1]).bincount(), torch.full((int(room.prod()),), 4))
        mask = torch.zeros(len(draws), height, width)
        for row, (top, left) in enumerate(first.tolist()):
            mask[row, top : top + high, left : left + wide] = 1
        assert mask.sum((1, 2)).eq(high * wide).all()
        if height > high and 1 not in shape[1:]:
            assert not mask[:, -1].any()
        if width > wide and 1 not in shape[1:]:
            assert not mask[:, :, -1].any()
        rows, columns = windows.bands(first, size)
        assert torch.equal(rows[:, :, None] * columns[:, None], mask)
        for largest in {0, k}:  # also among larger ones
            cells = windows.cells(largest)
            places = windows.places(first) + cells.offsets[size]
            assert torch.equal(torch.zeros(len(draws), height * width).scatter(1, places, 1.0).view_as(mask), mask)
            assert cells.valid[k].sum() == high * wide


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_square_moves_mass_as_in_the_paper(norm):
    """Against the formula, on windows that overlap, with a smaller one among larger ones."""
    windows, p = pick_windows((2, 9, 8), NORM_OBJECTS[norm]), NORM_OBJECTS[norm].p
    generator = torch.Generator().manual_seed(0)
    offset = torch.randn(3, 2, 9, 8, generator=generator, dtype=torch.float64)
    offset *= torch.tensor([0.02, 0.2, 0.01]).view(3, 1, 1, 1) / (1 if p == 2 else 4)
    size, cells = torch.tensor([3, 4, 2]), windows.cells(2)
    first = torch.tensor([[[1, 2], [2, 3]], [[0, 0], [4, 3]], [[1, 1], [1, 1]]])
    places = windows.places(first) + cells.offsets[size][:, None]
    pattern = cells.patterns[size, torch.tensor([0, 1, 0])][:, None].double() * torch.tensor([1.0, -1.0])[:, None]
    moved = _move_mass(
        offset.flatten(2).clone(), pattern, places[:, 0], places[:, 1], cells.valid[size], NORM_OBJECTS[norm]
    ).view_as(offset)
    for row in range(3):
        high, wide = windows.host_sizes[int(size[row])]
        here, there = ((slice(top, top + high), slice(left, left + wide)) for top, left in first[row].tolist())
        expected = offset[row].clone()
        spent = offset[row].norm(p=p)
        for channel in range(2):
            image, union = offset[row, channel], torch.zeros(9, 8, dtype=torch.bool)
            union[here] = union[there] = True
            shape = pattern[row, channel, : high * wide].view(high, wide) + image[here] / image[here].norm(p=p)
            left = max(1 - float(spent) ** p, 0) / 2
            budget = (left + image[union].norm(p=p) ** 2) ** 0.5 if p == 2 else 2 * (left + image[union].norm(p=p))
            expected[channel][there] = 0
            expected[channel][here] = shape / shape.norm(p=p) * budget
        assert torch.allclose(moved[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize(
    ("shape", "tile", "start"), [((2, 28, 28), 5, (1, 1)), ((1, 32, 34), 6, (1, 2)), ((1, 10, 14), 2, (0, 2))]
)
def test_the_tiles_that_square_starts_with_have_the_official_law(norm, shape, tile, start):
    """25 tiles from ``(side - 5 (side // 5)) // 2`` on, each turned with probability 1/2, with a sign for each channel."""
    count = 400
    windows = pick_windows(shape, NORM_OBJECTS[norm])
    tiles = windows.tiles(ExampleRng(0, torch.arange(count)), torch.zeros(count, dtype=torch.long), torch.empty(count, *shape))
    (top, left), side = start, 5 * tile
    inside = tiles[:, :, top : top + side, left : left + side]
    assert tiles.count_nonzero() == inside.count_nonzero() == inside.numel()
    inside = inside.unflatten(2, (5, tile)).unflatten(4, (5, tile)).transpose(3, 4)  # (B, C, 5, 5, tile, tile)
    one = inside[0, 0, 0, 0]
    one = one * one[0, 0].sign()
    kinds = torch.stack([one, one.T])
    match = (inside * inside[..., :1, :1].sign() == kinds[:, None, None, None, None]).flatten(-2).all(-1)  # (2, B, C, 5, 5)
    assert match.any(0).all()
    assert torch.equal(match[0].all(1), match[0].any(1))  # all channels of a tile are turned together
    turned, up = match[0, :, 0].double(), (inside[..., 0, 0] > 0).double()
    five_sigma = 5 * 0.5 / count**0.5
    for each in (turned, up):
        assert (each.mean(0) - 0.5).abs().max() < five_sigma  # each tile, each channel
        assert (each.flatten(1).mean(1) - 0.5).abs().max() < 5 * 0.5 / 25**0.5  # each example has draws of its own
        assert each.flatten(1).var(1).min() > 0
    assert np.corrcoef(turned.flatten(1).T)[0, 1:].max() < 2 * five_sigma


def test_fab_finds_points_that_are_near_the_boundary():
    model = tiny_net(seed=4).eval()
    x, _ = tiny_batch(40)
    y = model(x).argmax(1)
    wide = hb.attacks.fab(model, x, y, hb.Linf(0.5), steps=60, targets=4)
    nearer = hb.attacks.pgd(model, x, y, hb.Linf(0.5), steps=40)
    assert wide.success.sum() >= nearer.success.sum()


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made inside the block."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


@pytest.mark.parametrize("make", NORMS)
def test_untargeted_fab_holds_the_gradients_of_few_classes_and_takes_the_same_boundary(make, monkeypatch):
    weights = torch.randn(1000, 48, generator=torch.Generator().manual_seed(0))
    weights[:480] = torch.eye(48).repeat(10, 1)  # many boundaries equally near: the first counts
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1000)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weights)
        model[1].bias.copy_(0.05 * torch.arange(1000).eq(0))
    x = torch.cat([torch.full((2, 3, 4, 4), 0.5), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))])
    threat = make(RADIUS[make.__name__])

    def attack():
        with Largest() as largest:
            found = hb.attacks.fab(model, x, model(x).argmax(1), threat, steps=2, targeted=False)
        return found, largest.numbers

    (whole, most), at_once = attack(), 5000
    monkeypatch.setattr(import_module("hauberk.attacks.model.queries"), "_GRADIENTS_AT_ONCE", at_once)
    parts, fewer = attack()
    assert most == 1000 * x.numel()
    assert fewer <= max(at_once, weights.numel())
    assert whole.backwards == parts.backwards == 2000
    assert torch.allclose(whole.x_adv, parts.x_adv, atol=1e-6)
    assert torch.equal(whole.success, parts.success)


def test_random_search_draws_a_point_in_the_ball_or_at_a_corner_not_both(monkeypatch):
    model = tiny_net().eval()
    x, _ = tiny_batch()
    y, drawn, random = model(x).argmax(1), [], FeasibleSet.random
    monkeypatch.setattr(FeasibleSet, "random", lambda *given: drawn.append(1) or random(*given))
    hb.attacks.random_search(model, x, y, hb.Linf(1e-6), steps=6)
    assert len(drawn) == 3


def test_targeted_pgd_is_not_undirected():
    model = tiny_net(seed=4).eval()
    x, _ = tiny_batch(40)
    y = model(x).argmax(1)
    program, _ = PRESETS["pgd-20-targeted"].adapted(hb.Linf(0.03), 5)
    aimed = run_attack(program, model, x, y, hb.Linf(0.03))
    assert program.n_runs(5) == 4
    plain = hb.attacks.pgd(model, x, y, hb.Linf(0.03), steps=20, start="uniform")
    assert aimed.success.sum() >= plain.success.sum() - 2


def test_transfer_crafts_on_the_surrogate_and_looks_once():
    model, surrogate = tiny_net(seed=4).eval(), tiny_net(seed=4).eval()
    x, _ = tiny_batch(40)
    y = model(x).argmax(1)
    same_model = hb.attacks.transfer(model, x, y, hb.Linf(0.03), surrogate=surrogate)
    white_box = hb.attacks.pgd(model, x, y, hb.Linf(0.03), steps=20, step_size="eps/10", return_last=True)
    assert torch.equal(same_model.success, white_box.success)
    assert (same_model.forwards, same_model.backwards) == (2, 0)
    other = hb.attacks.transfer(model, x, y, hb.Linf(0.03), surrogate=tiny_net(seed=9))
    assert other.success.sum() < same_model.success.sum()


def test_averaging_over_draws_breaks_a_random_model():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net(seed=4)

        def forward(self, x):
            return self.net(x + 0.3 * torch.randn_like(x))

    model = Noisy().eval()
    x, _ = tiny_batch(60)
    y = model.net(x).argmax(1)
    torch.manual_seed(0)
    averaged = hb.attacks.apgd(model, x, y, hb.Linf(0.02), steps=20, eot_iter=20)
    assert averaged.backwards == pytest.approx(20 * averaged.forwards / 20, rel=0.2)


def test_too_little_of_anything_is_refused():
    x, y = tiny_batch(2)
    for attack, wrong in (
        ("fab", {"steps": 0}),
        ("fab", {"targets": 0}),
        ("square", {"steps": 0}),
        ("random_search", {"steps": 0}),
    ):
        with pytest.raises(hb.UserError, match="at least 1"):
            getattr(hb.attacks, attack)(tiny_net(), x, y, hb.Linf(0.1), **wrong)
    assert Square().steps == 5000


def test_autoattack_is_its_four_attacks_one_after_the_other(short_autoattack):
    model = tiny_net(seed=2).eval()
    x, _ = tiny_batch(40)
    y = model(x).argmax(1)
    found = hb.attacks.autoattack(model, x, y, hb.Linf(0.015))
    assert hb.Linf(0.015).contains(found.x_adv, x).all()
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.success)
    alone = hb.attacks.apgd(model, x, y, hb.Linf(0.015), steps=10)
    assert (found.success | ~alone.success).all()
    assert alone.success.sum() < found.success.sum() < 40
    assert found.forwards > 500 * (~found.success).float().mean()
    assert hb.attacks.autoattack(tiny_net(classes=2), x, y.clamp_max(1), hb.Linf(0.015)).x_adv.shape == x.shape


def test_the_steps_of_l1_apgd_are_as_long_as_the_radius_of_their_time(monkeypatch):
    monkeypatch.setattr(ExampleRng, "normal", lambda self, like, tag: torch.zeros_like(like))  # starts at the clean input
    model, (x, y) = tiny_net().eval(), tiny_batch()
    threat = hb.L1(2.0, low=-100.0, high=100.0)
    program = APGDL1(steps=10)
    rng = ExampleRng(0, torch.arange(len(x)))
    rows = program.init(AttackInputs(threat.around(x), y, model(x).detach(), torch.zeros_like(y), rng))
    lengths = []
    for tick in range(program.max_steps):
        before = rows.offset
        program.step(rows, ModelQueries(model), np.full(len(x), tick))
        lengths.append(float((rows.offset - before).abs().sum(1).max()))
    assert lengths[1] == pytest.approx(3.0)  # in units of ε, as the ball of the first stage
    assert float(rows.offset.abs().sum(1).max()) <= 1 + 1e-5  # that of the last is the threat model's
