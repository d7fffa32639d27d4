"""Bounds against numbers of others, formulas written out by hand, linear programs, and the truth."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds as Limits
from scipy.optimize import LinearConstraint, linprog, milp, minimize
from torch import nn

import hauberk as hb
from hauberk.certification import branch_and_bound
from hauberk.certification.bounds.crown import crown_bounds, interval_bound, interval_bounds, lower_bound
from hauberk.certification.bounds.optimised import optimised_bound
from hauberk.certification.bounds.region import Region
from hauberk.certification.bounds.trace import trace
from hauberk.threat import NORMS
from helpers import long_or

NETS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)
    ),
    "leaky": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.LeakyReLU(0.1), nn.Linear(12, 4)),
    "sigmoid": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Sigmoid(), nn.Linear(8, 4)),
}
THREATS = {"Linf": hb.Linf(0.05, -9.0, 9.0), "L2": hb.L2(0.3, -9.0, 9.0), "L1": hb.L1(0.8, -9.0, 9.0)}
# What auto_LiRPA 0.3 (with its import lines brought up to date) says in float64 of z_0 - z_k for k = 1, 2, 3 and two inputs.
AUTO_LIRPA = {
    ("mlp", "Linf", "ibp"): [[-1.1915978, -4.0387196, 0.3785435], [-1.2174274, -4.0254141, 0.3799742]],
    ("mlp", "Linf", "crown-ibp"): [[-0.0568149, -2.2118999, 0.4902413], [-0.0274551, -2.161026, 0.4940349]],
    ("mlp", "Linf", "crown"): [[0.014793, -2.1059553, 0.5109795], [0.0935431, -2.0825485, 0.5161012]],
    ("mlp", "L2", "ibp"): [[-1.4864302, -4.4366161, 0.3501837], [-1.5557575, -4.4761386, 0.3474555]],
    ("mlp", "L2", "crown-ibp"): [[-0.098791, -2.2508833, 0.4823576], [-0.1256671, -2.2478618, 0.4841971]],
    ("mlp", "L2", "crown"): [[-0.0542337, -2.1409578, 0.5071139], [0.0595082, -2.1090996, 0.5123012]],
    ("mlp", "L1", "ibp"): [[-0.8569183, -3.5717972, 0.4129538], [-0.880052, -3.5516236, 0.4149333]],
    ("mlp", "L1", "crown-ibp"): [[-0.0500742, -2.1504263, 0.4992963], [0.0055375, -2.1292752, 0.503363]],
    ("mlp", "L1", "crown"): [[0.0713338, -2.0700896, 0.51493], [0.1249441, -2.0512612, 0.5200626]],
    ("cnn", "Linf", "ibp"): [[-0.2640271, -0.7358904, -1.3271763], [-0.3497405, -0.9003691, -1.5506119]],
    ("cnn", "Linf", "crown-ibp"): [[-0.2541153, -0.7138255, -1.2868029], [-0.2976222, -0.8078832, -1.4302321]],
    ("cnn", "Linf", "crown"): [[-0.2541153, -0.7138255, -1.2868029], [-0.2976222, -0.8078832, -1.4302321]],
    ("leaky", "Linf", "ibp"): [[0.3974737, -0.1673512, -1.5044046], [0.3603177, -0.1972864, -1.4903152]],
    ("leaky", "Linf", "crown-ibp"): [[0.946722, 0.7113324, -0.6426975], [0.9112235, 0.6940018, -0.6101971]],
    ("leaky", "Linf", "crown"): [[0.946722, 0.7113324, -0.6426975], [0.9112235, 0.6940018, -0.6101971]],
    ("leaky", "L2", "ibp"): [[0.2785625, -0.3480334, -1.6890873], [0.2377336, -0.4022553, -1.7104729]],
    ("leaky", "L2", "crown-ibp"): [[0.9242643, 0.6622087, -0.7148215], [0.8887635, 0.6448781, -0.6823211]],
    ("leaky", "L2", "crown"): [[0.9242643, 0.6622087, -0.7148215], [0.8887635, 0.6448781, -0.6823211]],
    ("leaky", "L1", "ibp"): [[0.5410581, 0.0757874, -1.2474368], [0.5048421, 0.0584568, -1.2149365]],
    ("leaky", "L1", "crown-ibp"): [[0.9762368, 0.7654525, -0.5773058], [0.9400208, 0.7481219, -0.5448054]],
    ("leaky", "L1", "crown"): [[0.9762368, 0.7654525, -0.5773058], [0.9400208, 0.7481219, -0.5448054]],
    ("sigmoid", "Linf", "ibp"): [[1.1509869, -0.563014, 1.2317927], [1.1409472, -0.5566093, 1.2174203]],
    ("sigmoid", "Linf", "crown-ibp"): [[1.3972491, -0.5077921, 1.4527553], [1.3877598, -0.5020953, 1.4386056]],
    ("sigmoid", "Linf", "crown"): [[1.3972491, -0.5077921, 1.4527553], [1.3877598, -0.5020953, 1.4386056]],
    ("sigmoid", "L2", "ibp"): [[1.1007044, -0.5774431, 1.1858668], [1.0911342, -0.5709913, 1.1720687]],
    ("sigmoid", "L2", "crown-ibp"): [[1.3882344, -0.513618, 1.44395], [1.3791592, -0.5080147, 1.4304463]],
    ("sigmoid", "L2", "crown"): [[1.3882344, -0.513618, 1.44395], [1.3791592, -0.5080147, 1.4304463]],
    ("sigmoid", "L1", "ibp"): [[1.2132325, -0.5446881, 1.2877013], [1.2024816, -0.5383732, 1.2725066]],
    ("sigmoid", "L1", "crown-ibp"): [[1.4098532, -0.5024553, 1.4649455], [1.3992769, -0.4967038, 1.4503209]],
    ("sigmoid", "L1", "crown"): [[1.4098532, -0.5024553, 1.4649455], [1.3992769, -0.4967038, 1.4503209]],
}


def filled(net):
    """A network whose weights are values of a sine."""
    number = 0
    with torch.no_grad():
        for p in net.parameters():
            n = torch.arange(number, number := number + p.numel(), dtype=torch.float64)
            fan = p[0].numel() if p.ndim > 1 else 4
            p.copy_((torch.sin(12.9898 * n + 1.0) * 1.5 / math.sqrt(fan)).view_as(p))
    return net


@pytest.mark.parametrize(("name", "kind", "method"), AUTO_LIRPA)
def test_bounds_are_those_of_auto_lirpa(name, kind, method):
    net = NETS[name]().double().eval()
    filled(net)
    x = (torch.sin(7.7 * torch.arange(64, dtype=torch.float64)) / 2 + 0.5).view(2, 2, 4, 4)
    eye = torch.eye(4, dtype=torch.float64)
    c = (eye[:1] - eye[1:])[None].expand(2, -1, -1).contiguous()
    region = Region(THREATS[kind].around(x))
    with torch.no_grad():
        graph = trace(net, x)
        bounds = (crown_bounds if method == "crown" else interval_bounds)(graph, region)
        found = interval_bound(graph, bounds, c) if method == "ibp" else lower_bound(graph, bounds, region, graph.output, c)
    expected = torch.tensor(AUTO_LIRPA[name, kind, method], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def mlp(seed, sizes=(4, 6, 5, 3), scale=1.0):
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    return net


def crown_by_hand(net, low, high):
    """CROWN of a ReLU network of two hidden layers on a box, as the paper writes it, in NumPy: bounds of all z_0 - z_k."""
    layers = [(p.weight.detach().numpy(), p.bias.detach().numpy()) for p in net if isinstance(p, nn.Linear)]
    middle, half = (low + high) / 2, (high - low) / 2
    (w1, b1), (w2, b2), (w3, b3) = layers
    l1, u1 = w1 @ middle + b1 - abs(w1) @ half, w1 @ middle + b1 + abs(w1) @ half

    def lines(low, high):
        upper = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / np.where(high > low, high - low, 1)))
        end = np.where((low < 0) & (high > 0), -upper * low, 0.0)
        lower = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, (high > -low).astype(float)))
        return lower, upper, end

    def back(a, constant, relaxed):
        """Through ReLU and the layer before it, one row a."""
        for (lower, upper, end), (w, b) in relaxed:
            constant = constant + np.minimum(a, 0) @ end
            a = np.where(a > 0, a * lower, a * upper)
            constant, a = constant + a @ b, a @ w
        return constant + a @ middle - abs(a) @ half

    first = lines(l1, u1), (w1, b1)
    l2 = np.array([back(row, bias, [first]) for row, bias in zip(w2, b2, strict=True)])
    u2 = np.array([-back(-row, -bias, [first]) for row, bias in zip(w2, b2, strict=True)])
    second = lines(l2, u2), (w2, b2)
    return np.array([back(w3[0] - w3[k], b3[0] - b3[k], [second, first]) for k in range(1, len(b3))]), (l1, u1, l2, u2)


def program(net, low, high, bounds, k, integer):
    """The least z_0 - z_k of the triangle relaxation (a linear program), or of the network itself (with binaries)."""
    (w1, b1), (w2, b2), (w3, b3) = [
        (p.weight.detach().numpy(), p.bias.detach().numpy()) for p in net if isinstance(p, nn.Linear)
    ]
    n, h1, h2 = w1.shape[1], len(b1), len(b2)
    # Variables: x, activations of both layers, and a binary for each neuron.
    total = n + 2 * (h1 + h2)
    rows, least, most = [], [], []
    lower, upper = np.full(total, -np.inf), np.full(total, np.inf)
    lower[:n], upper[:n] = low, high
    lower[n + h1 + h2 :], upper[n + h1 + h2 :] = 0, 1
    l1, u1, l2, u2 = bounds
    for w, b, start, at, lo, up in ((w1, b1, 0, n, l1, u1), (w2, b2, n, n + h1, l2, u2)):
        for i in range(len(b)):
            z = np.zeros(total)
            z[start : start + w.shape[1]] = w[i]
            a, d = at + i, at + h1 + h2 + i
            lower[a], upper[a] = max(lo[i], 0), max(up[i], 0)
            if up[i] <= 0:
                continue
            row = -z
            row[a] += 1
            rows.append(row.copy())  # a >= z + b
            least.append(b[i])
            most.append(b[i] if lo[i] >= 0 else np.inf)
            if lo[i] < 0:
                row[d] += -lo[i]  # a <= z + b - l (1 - d)
                rows.append(row.copy())
                least.append(-np.inf)
                most.append(b[i] - lo[i])
                row = np.zeros(total)
                row[a], row[d] = 1, -up[i]  # a <= u d
                rows.append(row)
                least.append(-np.inf)
                most.append(0)
    cost = np.zeros(total)
    cost[n + h1 : n + h1 + h2] = w3[0] - w3[k]
    kinds = np.zeros(total)
    kinds[n + h1 + h2 :] = integer
    found = milp(
        cost, constraints=LinearConstraint(np.array(rows), least, most), bounds=Limits(lower, upper), integrality=kinds
    )
    assert found.success
    return found.fun + b3[0] - b3[k]


@pytest.mark.parametrize("seed", range(long_or(12, 200)))
def test_bounds_are_crowns_definition_and_below_the_linear_program_and_the_truth(seed):
    net = mlp(seed, scale=1.0 + seed % 3)
    eps = (0.02, 0.1, 0.4)[seed % 3]
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]], dtype=torch.float64)
    region = hb.Linf(eps).around(x)
    sets = Region(region)
    low, high = region.lower[0].numpy(), region.upper[0].numpy()
    by_hand, bounds_by_hand = crown_by_hand(net, low, high)
    with torch.no_grad():
        graph = trace(net, x.expand(2, -1))
        ours = crown_bounds(graph, sets)
        crown = lower_bound(graph, ours, sets, graph.output, c)[0].numpy()
        alpha = optimised_bound(graph, ours, sets, c, 30)[0].numpy()
    intervals = interval_bound(graph, interval_bounds(graph, sets), c)[0].numpy()
    assert (crown >= by_hand - 1e-8).all()
    # Ours are also at least those of intervals, so that they may be better; where they are not, they are the same.
    bounds = [end[0].numpy() for number in (1, 3) for end in ours.intervals[number]]
    if all(np.allclose(one, other, atol=1e-9) for one, other in zip(bounds, bounds_by_hand, strict=True)):
        np.testing.assert_allclose(crown, by_hand, atol=1e-8)
    for k in (1, 2):
        triangle, truth = (program(net, low, high, bounds, k, integer) for integer in (0, 1))
        assert alpha[k - 1] <= triangle + 1e-6
        assert triangle <= truth + 1e-6
        assert max(crown[k - 1], intervals[k - 1]) <= truth + 1e-6
        assert alpha[k - 1] >= crown[k - 1]


def test_with_the_best_slopes_one_hidden_layer_is_bounded_as_the_linear_program_does():
    """For one hidden layer α-CROWN's dual has no gap (Salman et al. 2019)."""
    net, x = mlp(3, (4, 8, 8, 3), 2.0), torch.full((1, 4), 0.5, dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias[0] -= 9  # so that no bound is positive, where the optimisation would end
    region = hb.Linf(0.3).around(x)
    sets = Region(region)
    c = torch.tensor([[[1.0, -1.0, 0.0]]], dtype=torch.float64)
    with torch.no_grad():
        graph = trace(net, x.expand(2, -1))
        ours = crown_bounds(graph, sets)
        crown = float(lower_bound(graph, ours, sets, graph.output, c))
        alpha = float(optimised_bound(graph, ours, sets, c, 300))
    bounds = [end[0].numpy() for number in (1, 3) for end in ours.intervals[number]]
    triangle = program(net, region.lower[0].numpy(), region.upper[0].numpy(), bounds, 1, 0)
    assert crown < alpha - 1e-3
    assert triangle - alpha < 0.02 * (triangle - crown)


def least_in_l2(slope, down, up):
    """By a general solver, scaled so that its tolerances fit."""
    size = np.linalg.norm(slope)
    direction = slope / size
    inside = {"type": "ineq", "fun": lambda d: 1 - d @ d, "jac": lambda d: -2 * d}
    best = minimize(
        lambda d: direction @ d, np.clip(-direction, down, up), jac=lambda d: direction, method="SLSQP", constraints=inside,
        bounds=list(zip(down, up, strict=True)), options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return best.fun * size


@pytest.mark.parametrize("kind", ["Linf", "L2", "L1"])
def test_the_least_value_of_a_linear_function_on_ball_and_box_is_exact(kind):
    generator = np.random.default_rng(0)
    norm = NORMS[kind]
    for _ in range(long_or(40, 2000)):
        slope = generator.normal(size=5) * 10.0 ** generator.integers(-3, 3)
        down, up = -(generator.random(5) ** 3), generator.random(5) ** 3
        down[generator.random(5) < 0.2], up[generator.random(5) < 0.2] = 0, 0
        found = float(norm.lowest_linear(*(torch.from_numpy(v) for v in (slope, down, up))))
        if kind == "Linf":
            expected = np.minimum(slope * down, slope * up).sum()
        elif kind == "L1":
            a = np.concatenate([np.ones(5), np.ones(5)])[None]
            parts = linprog(np.concatenate([slope, -slope]), a, [1], bounds=[*((0, u) for u in up), *((0, -d) for d in down)])
            expected = parts.fun
        else:
            expected = least_in_l2(slope, down, up)
        scale = np.abs(slope).sum()
        assert found <= expected + 1e-7 * scale
        assert found >= expected - 1e-6 * scale


@pytest.mark.parametrize("by", ["boxes", "signs"])
def test_branch_and_bound_decides_as_the_integer_program_does(by, monkeypatch):
    if by == "signs":
        monkeypatch.setattr(branch_and_bound, "_FEW_FEATURES", 0)
    decided, proved, needed, nets = 0, 0, 0, long_or(20, 200)
    for seed in range(nets):
        net = mlp(seed, (4, 8, 8, 2), 1.0 + seed % 3)
        x = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        threat = hb.Linf((0.05, 0.1, 0.3)[seed % 3])
        with torch.no_grad():
            y = net(x).argmax(1)
        if y == 1:
            with torch.no_grad():  # the integer program is of class 0
                net[-1].weight.copy_(net[-1].weight.flip(0)), net[-1].bias.copy_(net[-1].bias.flip(0))
            y = 1 - y
        region = threat.around(x)
        low, high = region.lower[0].numpy(), region.upper[0].numpy()
        _, bounds = crown_by_hand(net, low, high)
        truth = program(net, low, high, bounds, 1, 1)
        if abs(truth) < 1e-4:
            continue
        alone = hb.certify(net, (x, y), threat=threat, quiet=True)
        found = hb.certify(net, (x, y), threat=threat, methods=["crown", "branch-and-bound"], branches=400, quiet=True)
        assert found.certified[0] <= (truth > 0), seed
        assert not alone.certified[0] or found.certified[0]
        assert found.bound[0] <= truth + 1e-6
        decided += int(found.certified[0] == (truth > 0))
        proved += int(found.certified[0])
        needed += int(found.certified[0] and not alone.certified[0])
    assert decided >= 0.95 * nets
    assert proved >= 0.3 * nets
    assert needed > 0
