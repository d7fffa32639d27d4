"""Randomised smoothing against closed forms: the smoothed classifier of a linear model, and quadrature in two dimensions."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, norm
from torch import nn

import hauberk as hb
from hauberk.certification.smoothing.certificates import certified_radius
from hauberk.certification.smoothing.noise import grid_step, noisy_inputs, sampling_error
from hauberk.core.intervals import clopper_pearson_lower
from hauberk.core.random import ExampleRng
from helpers import TESTS, TORCHRUN, long_or, require_success, tiny_net

SIGMA = 0.25


class HalfSpace(nn.Module):
    """Class 1 where w·x + b > 0; its smoothed classifier is the same, with radius |w·x + b| / ‖w‖."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(w.double()), b

    def signed_distance(self, x):
        return ((x.double() @ self.w + self.b) / self.w.norm()).detach()

    def forward(self, x):
        z = x @ self.w + self.b
        return torch.stack([-z, z], 1)


def half_space(n, d=8, seed=0, spread=2.0):
    """A half-space, and inputs at distances of up to so many σ from its boundary, with their true classes."""
    generator = torch.Generator().manual_seed(seed)
    model = HalfSpace(torch.randn(d, generator=generator))
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    wanted = SIGMA * spread * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
    x = x + ((wanted - model.signed_distance(x)) / model.w.norm())[:, None] * model.w.detach()
    return model, x, (model.signed_distance(x) > 0).long()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_radii_of_a_linear_model(seed):
    model, x, y = half_space(30, seed=seed)
    found = hb.certify_smoothed(model, (x, y), sigma=SIGMA, draws=20_000, seed=seed, quiet=True)
    true = model.signed_distance(x).abs().numpy()
    standing = ~found.abstained
    assert standing.mean() > 0.8
    assert (found.radius[standing] <= true[standing]).all()  # 30 bounds at α 0.001
    clear = true > 0.4 * SIGMA  # 100 draws choose the right class
    assert (found.radius >= np.minimum(true, found.largest_radius) - 0.15 * SIGMA)[clear].all()
    assert (found.predicted[standing] == y.numpy()[standing]).all()
    share = norm.cdf(np.where(found.selected == y.numpy(), true, -true) / SIGMA)
    expected = binomtest(int(found.counts.sum()), 30 * 20_000, float(share.mean())).pvalue
    assert expected > 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bound_is_above_the_truth_no_more_often_than_alpha(seed):
    """At 200 draws and α 0.1, the bound of a probability of 0.8 is above it in 0.094 of all cases, by the binomial law."""
    n, alpha, p = 1500, 0.1, 0.8
    model = HalfSpace(torch.ones(1))
    ids = torch.arange(n, dtype=torch.float64)[:, None] * 1e-7  # other draws, nearly the same probability
    x = SIGMA * norm.ppf(p) + ids
    found = hb.certify_smoothed(
        model, (x, torch.ones(n, dtype=torch.int64)), sigma=SIGMA, draws=200, selection_draws=50, alpha=alpha, seed=seed,
        quiet=True,
    )  # fmt: skip
    above = int((found.radius > x[:, 0].numpy()).sum())
    exact = sum(binomial(200, k, p) for k in range(201) if k and beta.ppf(alpha, k, 201 - k) > p)
    assert 0.05 < exact <= alpha
    assert binomtest(above, n, exact).pvalue > 1e-3


def binomial(n, k, p):
    from scipy.stats import binom

    return float(binom.pmf(k, n, p))


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("n", [1, 7, 100, 100_000])
def test_the_bound_is_clopper_and_pearsons(n, alpha):
    counts = np.unique(np.linspace(0, n, 40).astype(int))
    wanted = [binomtest(int(k), n).proportion_ci(1 - 2 * alpha, method="exact").low for k in counts]
    assert clopper_pearson_lower(counts, n, alpha) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_radii_by_hand():
    counts, none = np.array([100, 99, 60, 50, 0]), np.zeros(5)
    found = certified_radius(counts, 100, 0.01, 2.0, none)
    assert found[0] == pytest.approx(2 * norm.ppf(0.01 ** (1 / 100)), rel=1e-9)
    assert found[1] == pytest.approx(2 * norm.ppf(beta.ppf(0.01, 99, 2)), rel=1e-9)
    assert (found[2:] == 0).all()
    assert (certified_radius(counts[:2], 100, 0.01, 2.0, none[:2] + 0.01) < found[:2]).all()


def test_it_abstains_where_nothing_can_be_said():
    model = HalfSpace(torch.ones(4))
    x = torch.tensor([[0.0] * 4, [0.5, -0.5, 0.2, -0.2], [1.0] * 4], dtype=torch.float64)
    y = torch.ones(3, dtype=torch.int64)
    found = hb.certify_smoothed(model, (x, y), sigma=SIGMA, draws=1000, quiet=True)
    assert found.abstained.tolist() == [True, True, False]
    assert found.predicted.tolist() == [-1, -1, 1]
    assert found.right.tolist() == [False, False, True]
    assert found.radius[2] == pytest.approx(found.largest_radius)
    assert found.radius[2] > 2.4 * SIGMA
    assert hb.predict_smoothed(model, x, sigma=SIGMA).tolist() == [-1, -1, 1]
    with pytest.raises(hb.UserError, match="0 or more"):
        found.certified(-0.1)


def test_answers_are_wrong_no_more_often_than_alpha():
    """PREDICT's binomial test: at the boundary any answer is an error, of which there are at most α."""
    x = torch.arange(600, dtype=torch.float64)[:, None] * 1e-12
    answers = hb.predict_smoothed(HalfSpace(torch.ones(1)), x, sigma=SIGMA, draws=100, alpha=0.1)
    assert 0.02 < float((answers >= 0).double().mean()) < 0.13
    assert binomtest(60, 100).pvalue > 0.05 > binomtest(61, 100).pvalue  # the level that bdtrc has to reproduce
    sure = hb.predict_smoothed(HalfSpace(torch.ones(1)), torch.tensor([[SIGMA], [-SIGMA]]).double(), sigma=SIGMA)
    assert sure.tolist() == [1, 0]


def test_the_curve_and_what_is_said(tmp_path):
    model, x, y = half_space(40)
    y[:4] = 1 - y[:4]  # wrong: certified of another class
    found = hb.certify_smoothed(model, (x, y), sigma=SIGMA, draws=2000, quiet=True)
    assert found.n == 40
    assert not found.certified(0)[:4].any()
    for radius in (0.0, 0.1, 0.3):
        expected = ((found.predicted == y.numpy()) & (found.radius > radius)).mean()
        assert found.certified_accuracy(radius) == expected
        low, high = found.interval(radius)
        assert low <= expected <= high
        exact = binomtest(round(expected * 40), 40).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((exact.low, exact.high))
    shares = [point["certified_accuracy"] for point in found.curve()]
    assert shares == sorted(shares, reverse=True)
    assert [point["radius"] for point in found.curve()] == [k * SIGMA / 2 for k in range(len(shares))]
    assert found.radii[-1] <= found.largest_radius < found.radii[-1] + SIGMA / 2
    assert found.average_radius == pytest.approx(np.where(found.right, found.radius, 0).mean())
    said = str(found)
    assert "smoothed classifier (σ = 0.25; not the network alone)" in said
    assert "probability 0.999" in said
    assert found.table().row_count == len(shares)
    found.save(tmp_path / "smoothing.json")
    saved = json.loads((tmp_path / "smoothing.json").read_text())
    assert (saved["bound"], saved["classifier"], saved["norm"]) == ("lower", "smoothed", "L2")
    assert [row["radius"] for row in saved["examples"]] == found.radius.tolist()


def test_no_input_within_a_certified_radius_has_another_class():
    """In two dimensions the smoothed classifier is known by quadrature, of a network that is far from linear."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    for parameter in net.parameters():
        parameter.data = 2.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    found = hb.certify_smoothed(net, (x, torch.zeros(40, dtype=torch.int64)), sigma=SIGMA, draws=5000, quiet=True)
    assert (found.radius > 0.3 * SIGMA).sum() > 15
    nodes = torch.linspace(-5, 5, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(nodes, nodes) * SIGMA
    weight = torch.exp(-0.5 * (nodes[:, None] ** 2 + nodes**2)).flatten()
    turns = torch.linspace(0, 2 * torch.pi, 9, dtype=torch.float64)[:-1]
    around = torch.stack([turns.cos(), turns.sin()], 1)
    for i in np.flatnonzero(~found.abstained):
        for point in x[i] + found.radius[i] * 0.999 * around:
            mass = torch.zeros(3, dtype=torch.float64).index_add(0, net(point + grid).argmax(1), weight)
            assert int(mass.argmax()) == found.predicted[i]


def test_an_attack_on_the_smoothed_classifier_stays_outside_the_certified_radius():
    """SmoothADV with many draws finds the way to the boundary, and never crosses it within the radius."""
    model, x, y = half_space(20, spread=1.5)
    found = hb.certify_smoothed(model, (x, y), sigma=SIGMA, draws=10_000, quiet=True)
    standing, true = found.radius > 0.2 * SIGMA, model.signed_distance(x).abs()
    assert standing.sum() > 10
    crossed = {}
    for times in (0.999, 1.2):
        for i in np.flatnonzero(standing):
            radius = times * (found.radius[i] if times < 1 else float(true[i]))
            attack = hb.attacks.SmoothAdv(steps=20, sigma=SIGMA, draws=50, return_last=True)
            point = attack(model, x[i : i + 1], y[i : i + 1], hb.L2(radius, low=-99, high=99)).x_adv
            side = (model.signed_distance(point) > 0).long()
            crossed.setdefault(times, []).append(bool(side != y[i]))
    assert not any(crossed[0.999])
    assert all(crossed[1.2])


@pytest.mark.parametrize("batch_size", [1, 37, 256, 5000])
def test_counts_do_not_depend_on_the_batch_size(batch_size):
    model, x, y = tiny_net().double().eval(), torch.rand(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    arguments = {"sigma": SIGMA, "draws": 300, "selection_draws": 30, "quiet": True}
    whole = hb.certify_smoothed(model, (x, y), **arguments)
    other = hb.certify_smoothed(model, (x, y), batch_size=batch_size, **arguments)
    for name in ("counts", "selected", "radius", "sampling_error"):
        assert np.array_equal(getattr(whole, name), getattr(other, name))
    turned = hb.certify_smoothed(model, (x.flip(0), y.flip(0)), batch_size=batch_size, **arguments)
    assert np.array_equal(turned.counts[::-1], whole.counts)
    assert not np.array_equal(hb.certify_smoothed(model, (x, y), seed=1, **arguments).counts, whole.counts)


class Stopping(nn.Module):
    """A network that asks to stop at its k-th pass."""

    def __init__(self, model, at):
        super().__init__()
        self.model, self.at, self.passes = model, at, 0

    def forward(self, x):
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.parametrize("at", [2, 5, 9])
def test_it_goes_on_where_it_was_stopped(tmp_path, at):
    model, x, y = half_space(6)
    arguments = {"sigma": SIGMA, "draws": 400, "selection_draws": 50, "batch_size": 200, "quiet": True}
    whole = hb.certify_smoothed(Stopping(model, 0), (x, y), **arguments)
    with pytest.raises(KeyboardInterrupt):
        hb.certify_smoothed(Stopping(model, at), (x, y), out=tmp_path, **arguments)
    lines = (tmp_path / "certificates-0.jsonl").read_text()
    (tmp_path / "certificates-0.jsonl").write_text(lines + '{"i": 5, "lab')  # as a crash may leave it
    resumed = Stopping(model, 0)
    found = hb.certify_smoothed(resumed, (x, y), out=tmp_path, **arguments)
    assert np.array_equal(found.counts, whole.counts)
    assert np.array_equal(found.radius, whole.radius)
    assert found.provenance["passes"]["forwards"] == 6 * 450
    again = Stopping(model, 0)
    other = hb.certify_smoothed(again, (x, y), out=tmp_path, alpha=0.05, **arguments)
    assert again.passes == 1  # the look at the model; nothing is drawn again
    assert (other.radius >= whole.radius).all()
    assert other.radius.sum() > whole.radius.sum()
    assert json.loads((tmp_path / "smoothing.json").read_text())["alpha"] == 0.05


def test_a_folder_of_something_else_is_refused(tmp_path):
    model, x, y = half_space(3)
    arguments = {"sigma": SIGMA, "draws": 100, "quiet": True, "out": tmp_path}
    hb.certify_smoothed(model, (x, y), **arguments)
    with pytest.raises(hb.UserError, match="draws"):
        hb.certify_smoothed(model, (x, y), **{**arguments, "draws": 200})
    with pytest.raises(hb.UserError, match="data_digest"):
        hb.certify_smoothed(model, (x + 1e-3, y), **arguments)
    with pytest.raises(hb.UserError, match="model_id"):
        hb.certify_smoothed(half_space(3, seed=1)[0], (x, y), **arguments)
    for line in (
        '{"i": 99, "label": 0, "selected": 0, "count": 1, "error": 0.0}',
        "[]",
        '{"i": 0, "label": -1}',
        '{"cost": "a"}',
    ):
        (tmp_path / "certificates-1.jsonl").write_text(line + "\n")
        with pytest.raises(hb.UserError, match=r"line 1 of .*certificates-1.jsonl is not a record"):
            hb.certify_smoothed(model, (x, y), **arguments)
    (tmp_path / "certificates-1.jsonl").write_text('{"i": 0, "label": 0, "selected": 0, "count": 101, "error": 0.0}\n')
    with pytest.raises(hb.UserError, match="cannot be of 100 draws"):
        hb.certify_smoothed(model, (x, y), **arguments)


def wavy():
    """A network and data that are the same in every process."""
    model = nn.Linear(6, 3).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(torch.arange(p.numel()).view_as(p).sin() + k)
    x = torch.rand(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, (x, torch.arange(7) % 3)


def test_processes_share_the_examples(tmp_path):
    work = f"""
import json, sys, torch, hauberk as hb
sys.path[:0] = {[str(TESTS), str(TESTS / "certification")]}
from hauberk.core.distributed import init_distributed
from test_smoothing import wavy
with init_distributed() as world:
    found = hb.certify_smoothed(*wavy(), sigma=0.25, draws=300, out="out", quiet=True)
    print(json.dumps([world.rank, found.counts.tolist()]))
"""
    (tmp_path / "work.py").write_text(work)
    command = [sys.executable, *TORCHRUN, "2", "work.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    require_success(done.returncode, done.stderr)
    both = sorted(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    alone = hb.certify_smoothed(*wavy(), sigma=0.25, draws=300, quiet=True).counts.tolist()
    assert both == [[0, alone], [1, alone]]
    again = hb.certify_smoothed(*wavy(), sigma=0.25, draws=300, out=tmp_path / "out", quiet=True)
    assert again.counts.tolist() == alone
    assert len(list((tmp_path / "out").glob("certificates-*.jsonl"))) == 2


def test_the_callers_model_is_untouched(capsys):
    model = tiny_net(dropout=0.5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    state = torch.get_rng_state()
    hb.certify_smoothed(model, (x, y), sigma=SIGMA, draws=50, quiet=True)
    hb.predict_smoothed(model, x, sigma=SIGMA, draws=50)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr() == ("", "")


def test_outputs_that_are_not_finite_count_for_no_class():
    class Sometimes(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > 0.5, torch.nan, torch.tensor([[1.0, 0.0]], dtype=x.dtype))

    found = hb.certify_smoothed(
        Sometimes(),
        (torch.tensor([[0.5 - SIGMA], [0.499]]), torch.zeros(2, dtype=torch.int64)),
        sigma=SIGMA,
        draws=5000,
        quiet=True,
    )
    assert found.counts[0] / 5000 == pytest.approx(norm.cdf(1), abs=0.02)
    assert found.abstained.tolist() == [False, True]


def test_floating_point_does_not_tell_the_network_where_it_is():
    """A network that knows x by the floats that x + σn can be (Voráček and Hein 2023) fools plain sums, and not ours."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 64, generator=generator)
    near = x + 0.02 * torch.randn(1, 64, generator=generator)

    class Knows(nn.Module):
        def forward(self, noisy):
            here = ((noisy - x) + x == noisy).all(1).float()
            return torch.stack([1 - here, here], 1)

    assert float((near - x).norm()) < SIGMA
    plain = [
        Knows()(point + SIGMA * torch.randn(1000, 64, generator=generator)).argmax(1).float().mean() for point in (x, near)
    ]
    assert plain[0] == 1.0  # certified within 2.4 σ and more
    assert plain[1] < 0.5  # and yet another class
    found = hb.certify_smoothed(Knows(), (x, torch.ones(1, dtype=torch.int64)), sigma=SIGMA, draws=1000, quiet=True)
    if found.radius[0] > float((near - x).norm()):
        assert hb.predict_smoothed(Knows(), near, sigma=SIGMA).item() == found.predicted[0]
    seen = [hb.predict_smoothed(Knows(), point, sigma=SIGMA).item() for point in (x, near)]
    assert seen[0] == seen[1]


def test_noise_is_gaussian_rounded_to_a_grid():
    step, m = grid_step(SIGMA), 200_000
    assert SIGMA / 256 < step <= SIGMA / 128
    assert grid_step(0.3) == grid_step(SIGMA)
    x = torch.full((m, 1), 0.3)
    noisy = noisy_inputs(x, SIGMA, ExampleRng(0, torch.zeros(m)), torch.arange(m))
    assert torch.equal(noisy, (noisy / step).round() * step)
    edges = np.arange(-1.0, 1.6, 16 * step) - step / 2
    found, _ = np.histogram(noisy[:, 0].numpy(), edges)
    expected = m * np.diff(norm.cdf((edges - float(x[0])) / SIGMA))
    some = expected > 20
    chi = ((found - expected) ** 2 / expected)[some].sum()
    assert chi < some.sum() + 4 * np.sqrt(2 * some.sum())
    assert 0 < float(sampling_error(torch.rand(2, 3, 224, 224), SIGMA).max()) < 1e-6
    images = sampling_error(torch.rand(2, 3, 32, 32), SIGMA)
    assert images.shape == (2,)
    assert float(images.max()) < 2e-8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"alpha": 1.0}, "alpha must be between 0 and 1"),
        ({"draws": 0}, "draws must be positive"),
        ({"selection_draws": 0}, "selection_draws must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"n": 4}, "n must be 1 to 3"),
        ({"sigma": "a"}, "sigma must be a finite number"),
        ({"test_set": (torch.full((3, 8), torch.nan), torch.zeros(3, dtype=torch.int64))}, "NaN or infinite"),
        ({"model": nn.Linear(5, 2)}, "cannot take inputs of shape"),
        ({"model": nn.Linear(8, 1).double()}, "at least 2 classes"),
    ],
)
def test_mistakes_get_one_clear_line(changes, says):
    model, x, y = half_space(3)
    arguments = {"model": model, "test_set": (x, y), "sigma": SIGMA, "draws": 100, "quiet": True} | changes
    with pytest.raises(hb.UserError, match=says):
        hb.certify_smoothed(**arguments)


def test_a_network_trained_with_noise_is_certified(digits):
    run = hb.train(
        "mlp", digits["train"], method="standard", threat=hb.L2(0.5), epochs=long_or(2, 10), val_size=0, threads=1, quiet=True
    )
    found = hb.certify_smoothed(run.model, digits["test"], sigma=SIGMA, draws=500, n=60, quiet=True)
    assert found.certified_accuracy(0) > 0.5
    answers = hb.predict_smoothed(run.model, digits["test"].fetch(torch.arange(60))[0], sigma=SIGMA, draws=500)
    both = (found.predicted >= 0) & (answers.numpy() >= 0)
    assert both.mean() > 0.5
    assert (found.predicted[both] == answers.numpy()[both]).all()
