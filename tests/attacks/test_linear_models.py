"""Attacks on linear models, whose best perturbation is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import hauberk as hb
from helpers import linear

NORMS = {"Linf": hb.Linf, "L2": hb.L2, "L1": hb.L1}


def best_gain(w, lo, hi, norm, radius):
    """``max w·δ`` over ``lo ≤ δ ≤ hi`` and ``‖δ/radius‖_p ≤ 1``, by solvers that share nothing with the library."""
    if norm == "Linf":
        return np.where(w > 0, w * np.minimum(hi, radius), w * np.maximum(lo, -radius)).sum()
    if norm == "L1":  # δ = a - b with a, b ≥ 0
        free = radius > 0
        costs = np.concatenate([-w, w])
        budget = np.where(free, 1 / np.where(free, radius, 1), 0)
        bounds = [(0, h if f else 0) for h, f in zip(hi, free, strict=True)]
        bounds += [(0, -low if f else 0) for low, f in zip(lo, free, strict=True)]
        return -linprog(costs, A_ub=np.concatenate([budget, budget])[None], b_ub=[1], bounds=bounds).fun

    def point(t):  # KKT: δ_j = clip(t w_j r_j², bounds)
        return np.clip(t * w * radius**2, np.where(radius > 0, lo, 0), np.where(radius > 0, hi, 0))

    low, high = 0.0, 1e12
    scale = np.where(radius > 0, radius, 1)
    if np.linalg.norm(point(high) / scale) <= 1:
        return w @ point(high)
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (low, middle) if np.linalg.norm(point(middle) / scale) > 1 else (middle, high)
    return w @ point(low)


def cases():
    rng = np.random.default_rng(0)
    for norm in NORMS:
        for kind in ("plain", "per-feature", "frozen", "box"):
            w = rng.normal(size=8)
            x = rng.uniform(0.4, 0.6, size=8)
            eps = {"Linf": 0.1, "L2": 0.2, "L1": 0.3}[norm]
            radius, frozen = np.full(8, eps), None
            if kind == "per-feature":
                radius = eps * rng.uniform(0.2, 1, size=8)
            if kind == "frozen":
                frozen = [0, 3]
            if kind == "box":  # so close to the bounds that they cut the ball
                x = np.where(rng.random(8) < 0.5, 0.03, 0.97)
            yield pytest.param(norm, w, x, radius, frozen, id=f"{norm}-{kind}")


@pytest.mark.parametrize(("norm", "w", "x", "radius", "frozen"), list(cases()))
@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_pgd_reaches_the_optimum(norm, w, x, radius, frozen, loss, device):
    eps = float(radius[0]) if np.ptp(radius) == 0 else torch.from_numpy(radius)
    threat = NORMS[norm](eps, frozen=frozen)
    model = linear(torch.from_numpy(w)).to(device)
    clean = torch.from_numpy(x)[None].to(device)
    y = torch.tensor([0], device=device)  # raising w·x hurts
    found = hb.attacks.pgd(model, clean, y, threat, steps=400, step_size="eps/50", loss=loss, confidence=1e3)
    gain = float((found.x_adv - clean)[0].cpu() @ torch.from_numpy(w))
    reach = radius.copy()
    if frozen:
        reach[frozen] = 0
    best = best_gain(w, -x, 1 - x, norm, reach)
    assert gain <= best * (1 + 1e-9)
    assert gain >= best * (1 - 2e-3)
    assert threat.contains(found.x_adv, clean).all()


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_exact_where_the_box_is_far(norm):
    w = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    found = hb.attacks.fgsm(linear(w), x, torch.tensor([0]), NORMS[norm](0.1))
    exact = {"Linf": w.abs().sum(), "L2": w.norm(), "L1": w.abs().max()}[norm] * 0.1
    assert float((found.x_adv - x)[0] @ w) == pytest.approx(float(exact), rel=1e-9)


def test_certified_radius_is_never_broken():
    """The margin of a linear model divided by the dual norm is the exact distance to the boundary."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(20, generator=generator, dtype=torch.float64)
    x = torch.rand(200, 20, generator=generator, dtype=torch.float64)
    model = linear(w)
    y = (x @ w > 0).long()
    for norm, dual in (("Linf", 1), ("L2", 2), ("L1", torch.inf)):
        distance = (x @ w).abs() / w.norm(p=dual)
        eps = float(distance.median())
        threat = NORMS[norm](eps, low=-10, high=10)
        found = hb.attacks.pgd(model, x, y, threat, steps=60, step_size="eps/4", restarts=2)
        assert not found.success[distance > eps * (1 + 1e-9)].any()
        assert found.success[distance < eps * 0.99].all()
