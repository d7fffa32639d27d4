"""What mistakes cost: the dearest prediction within reach of each example, against all points of a grid."""

import json

import pytest
import torch

import hauberk as hb
from hauberk.evaluation import measure_cost
from hauberk.objectives import ExpectedCost
from hauberk.objectives.functional import fooled
from hauberk.report.costs_over_time import costs_over_time

COSTS = [[0, 1, 10], [2, 0, 1], [5, 30, 0]]
THREAT = hb.Linf([0.25, 0.15])


class Bowl(torch.nn.Module):
    """Three classes in the plane, the third in a disc in the middle."""

    def forward(self, x):
        a, b = x.double().unbind(1)
        z = torch.stack([3 * a, 3 * b, 2.6 - 9 * ((a - 0.5) ** 2 + (b - 0.5) ** 2)], 1)
        return 4 * z.to(x.dtype)


def points():
    x = torch.rand(150, 2, generator=torch.Generator().manual_seed(0))
    y = Bowl()(x).argmax(1)
    y[:10] = (y[:10] + 1) % 3  # some are wrong already
    return x, y


def dearest(x, y):
    """The highest cost of any point of a fine grid around each example."""
    costs, region = torch.tensor(COSTS, dtype=torch.float64), THREAT.around(x)
    steps = torch.cartesian_prod(*[torch.linspace(-1, 1, 61)] * 2) * torch.tensor(THREAT.eps)
    return torch.stack([costs[y, Bowl()(region.project(x + step)).argmax(1)] for step in steps]).amax(0)


def test_the_dearest_prediction_is_found_for_each_example():
    x, y = points()
    cost, true = measure_cost(Bowl(), (x, y), threat=THREAT, costs=COSTS), dearest(x, y)
    clean, found = cost.by_example
    assert torch.equal(clean, torch.tensor(COSTS, dtype=torch.float64)[y, Bowl()(x).argmax(1)])
    assert (found >= clean).all()
    assert ((found - true).abs() > 1e-9).sum() <= 2  # a corner that the grid or the attack misses
    errors = hb.attacks.pgd(Bowl(), x, y, THREAT, steps=50, step_size="eps/10", restarts=3)
    any_error = torch.tensor(COSTS, dtype=torch.float64)[y, Bowl()(errors.x_adv).argmax(1)]
    assert any_error.mean() < 0.9 * cost.mean_attacked  # an attack that is content with any mistake does less harm
    assert (found > any_error).sum() > 5
    before, after = cost.confusion()
    assert before.sum() == after.sum() == 150
    assert before[0, 0] == ((y == 0) & (Bowl()(x).argmax(1) == 0)).sum()


def test_a_model_without_gradients_is_attacked_by_its_answers():
    class Answers(Bowl):
        has_gradient = False

        def forward(self, x):
            assert not (x.requires_grad and torch.is_grad_enabled())
            return super().forward(x)

    x, y = (part[:40] for part in points())
    attack = hb.attacks.Square(150)
    cost = measure_cost(Answers(), (x, y), threat=THREAT, costs=COSTS, attacks=[attack])
    assert cost.mean_attacked > 0.9 * float(dearest(x, y).mean())


def test_expected_cost_is_what_the_formula_says():
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y, loss = torch.tensor([0, 1, 2, 2, 1, 0]), ExpectedCost(COSTS)
    by_hand = [sum(p * c for p, c in zip(row, COSTS[k], strict=True)) for row, k in zip(z.softmax(1).tolist(), y, strict=True)]
    assert loss(z, y).tolist() == pytest.approx(by_hand)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), z)
    x, labels = points()
    found = hb.attacks.PGD(20, loss=loss)(Bowl(), x, labels, THREAT)
    plain = loss(Bowl()(x), labels)
    assert (loss(Bowl()(found.x_adv), labels) >= plain - 1e-6)[~fooled(Bowl()(x), labels)].all()


def test_an_evaluation_has_the_cost(tmp_path):
    x, y = points()
    ev = hb.evaluate(Bowl(), (x, y), threat=THREAT, attacks=["pgd-10"], costs=COSTS, n=60, diagnostics=[], quiet=True)
    assert torch.equal(ev.cost.worst, measure_cost(Bowl(), (x[:60], y[:60]), threat=THREAT, costs=COSTS).worst)
    ev.save(tmp_path / "evaluation.json")
    saved = json.loads((tmp_path / "evaluation.json").read_text())["cost"]
    assert saved["cost_attacked"] == ev.cost.mean_attacked > saved["cost"] == ev.cost.mean
    assert str(ev.cost).startswith(f"cost {ev.cost.mean:.4g} -> ")
    months = ["2026-01"] * 20 + ["2026-02"] * 40
    first, second = ev.cost.over(months)
    assert (first["period"], second["n"]) == ("2026-01", 40)
    assert (20 * first["cost_attacked"] + 40 * second["cost_attacked"]) / 60 == pytest.approx(ev.cost.mean_attacked)
    with pytest.raises(hb.UserError, match="60 examples, and periods of shape"):
        ev.cost.over(months[1:])


def test_costs_of_a_test_set_in_order_of_time_are_shown_for_ten_parts_of_it():
    test_set = hb.data.as_dataset(tuple(part[:55] for part in points()))
    how = {"threat": THREAT, "attacks": ["fgsm"], "costs": COSTS, "diagnostics": [], "quiet": True}
    without = hb.evaluate(Bowl(), test_set, **how).to_dict()
    assert "over_time" not in without["cost"]
    assert costs_over_time(without) is None
    test_set.in_time_order = True
    found = hb.evaluate(Bowl(), test_set, **how)
    parts = found.to_dict()["cost"]["over_time"]
    assert [part["period"] for part in parts] == list(range(1, 11))
    assert sum(part["n"] for part in parts) == 55
    assert {part["n"] for part in parts} == {5, 6}
    assert sum(part["n"] * part["cost_attacked"] for part in parts) / 55 == pytest.approx(found.cost.mean_attacked)
    assert parts[0]["cost"] == pytest.approx(float(found.cost.by_example[0][:6].mean()))
    assert len(costs_over_time(found.to_dict()).rows) == 10


def test_under_several_threat_models_an_example_costs_what_it_costs_under_the_dearest(monkeypatch):
    monkeypatch.setattr("hauberk.evaluation.cost._DEFAULT", (hb.attacks.PGD(5, "eps/2"),))
    threats = hb.Linf(0.05), hb.L2(0.2)
    how = {"attacks": ["fgsm"], "costs": COSTS, "n": 60, "diagnostics": [], "quiet": True}
    ev = hb.evaluate(Bowl(), points(), threat=threats, **how)
    each = [result.cost.by_example[1] for result in ev.results.values()]
    assert torch.equal(ev.cost.by_example[1], torch.maximum(*each))
    assert ev.cost.mean_attacked > float(each[0].mean())
    assert ev.to_dict()["cost"]["cost_attacked"] == ev.cost.mean_attacked


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([[0, 1], [1, 0]], "costs are of 2 classes, the model has 3"),
        ([[0, -1], [1, 0]], "square matrix"),
        ([[1, 1], [1, 0]], "0 on the diagonal"),
        ([0, 1], "square matrix"),
        ("dear", "matrix of numbers"),
    ],
)
def test_costs_that_make_no_sense_are_refused(costs, said):
    x, y = points()
    for call in (measure_cost, hb.evaluate):
        with pytest.raises(hb.UserError, match=said):
            call(Bowl(), (x, y), threat=THREAT, costs=costs, **({"quiet": True} if call is hb.evaluate else {}))
