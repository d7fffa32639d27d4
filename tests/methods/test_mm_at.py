import pytest
import torch

import hauberk as hb
from hauberk.core.random import ExampleRng
from helpers import tiny_batch, tiny_net

EPS = 0.2


@pytest.mark.parametrize("n_targets", [1, 3, 9])
def test_the_point_is_that_of_the_least_margin_as_in_the_public_code(n_targets):
    """mmu_at_train of Sjtubrian/MM-attack, written out: one start, PGD on z_t - z_y, the largest at the last points."""
    model, (x, y) = tiny_net().double().eval(), tiny_batch(40, dtype=torch.float64)
    rng, rows = ExampleRng(0, torch.arange(40)), torch.arange(40)
    start = (x + EPS * (2 * rng.uniform(x, 0) - 1)).clamp(0, 1)
    order = model(x).masked_fill(torch.nn.functional.one_hot(y, 5).bool(), -torch.inf).argsort(1, descending=True)
    points, margins = [], []
    for turn in range(min(n_targets, 4)):
        point, target = start.clone(), order[:, turn]
        for _ in range(4):
            point.requires_grad_()
            logits = model(point)
            grad = torch.autograd.grad((logits[rows, target] - logits[rows, y]).sum(), point)[0]
            point = (point.detach() + EPS / 4 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        logits = model(point)
        points.append(point)
        margins.append(logits[rows, target] - logits[rows, y])
    best = torch.stack(margins).argmax(0)
    out = hb.method("mm-at", hb.Linf(EPS), steps=4, n_targets=n_targets)(model, x, y, rng=rng)
    assert torch.allclose(out.x_adv, torch.stack(points)[best, rows], rtol=0, atol=1e-14)
    if n_targets > 1:
        assert len(best.unique()) > 1
    assert (out.forwards, out.backwards) == (2 + 5 * min(n_targets, 4), 4 * min(n_targets, 4))


def test_what_is_reported_is_of_the_point_that_was_chosen():
    model, (x, y) = tiny_net().eval(), tiny_batch(16)
    method = hb.method("mm-at", hb.Linf(EPS))
    out = method(model, x, y)
    assert torch.allclose(out.logits_adv, model(out.x_adv), atol=1e-5)
    weighted = hb.method("mm-at", hb.Linf(EPS), measure="kappa", burn_in=0)(model, x, y)
    assert float(weighted.weights.mean()) == pytest.approx(1.0)
    with pytest.raises(hb.UserError, match="at least 1 target"):
        hb.method("mm-at", hb.Linf(EPS), n_targets=0)
