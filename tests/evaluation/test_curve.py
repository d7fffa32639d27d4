"""The curve of robust accuracy against ε."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.core.figures import figure_file
from hauberk.core.io import read_json
from hauberk.report.curve import curve_of
from hauberk.report.report import make_report
from helpers import Signalling, linear, sound

QUICK = {"threat": hb.Linf("8/255"), "attacks": [hb.attacks.FMN(30)], "within": ["pgd-20"], "quiet": True}


def some_linear(n=20, dims=12):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(dims, generator=generator, dtype=torch.float64)
    x = torch.rand(n, dims, generator=generator, dtype=torch.float64)
    return linear(w), x, (x @ w > 0).long(), w


@pytest.mark.parametrize(("make", "dual"), [(hb.Linf, 1), (hb.L2, 2), (hb.L1, math.inf)])
def test_distances_are_those_to_the_boundary_of_a_linear_model(make, dual):
    model, x, y, w = some_linear()
    exact = ((x @ w).abs() / w.norm(p=dual)).numpy()
    threat = make(float(np.median(exact)), low=-9, high=9)
    curve = hb.robustness_curve(model, (x, y), threat=threat, within=["pgd-10"], quiet=True, batch_size=16)
    assert (curve.distances >= exact * (1 - 1e-6)).all()
    assert (curve.distances <= exact * 1.02 + 1e-3).all()
    for eps in curve.eps:
        assert curve.robust_accuracy(eps) == pytest.approx((exact > eps).mean(), abs=0.051)
    assert curve.interval(curve.eps[3]) == hb.evaluation.wilson_interval(round(20 * curve.robust_accuracy(curve.eps[3])), 20)


@pytest.mark.parametrize("threat", [hb.Linf("8/255"), hb.L2(0.4), hb.L1(2), hb.L0(2)], ids=str)
def test_attacks_of_a_given_eps_find_no_more(threat):
    model, x, y = sound(20)
    y = y.clone()
    y[:2] = (y[:2] + 1) % 5  # misclassified as they are
    before = {key: value.clone() for key, value in model.state_dict().items()}
    how = {"threat": threat, "eps": [threat.eps / 2, threat.eps, 1.5 * threat.eps], "quiet": True}
    curve = hb.robustness_curve(model, (x, y), **how)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (curve.distances[:2] == 0).all()
    assert curve.clean_accuracy == pytest.approx(0.9)
    for eps in curve.eps:
        attack = hb.attacks.pgd if threat.norm.p == 0 else hb.attacks.apgd
        within = threat.scaled(eps / float(threat.eps))
        broken = attack(model, x, y, within, seed=5).success | torch.from_numpy(curve.distances == 0)
        assert curve.robust_accuracy(eps) <= 1 - float(broken.double().mean()) + 0.051


def test_attacks_of_a_given_eps_go_on_where_the_nearest_was_not_found():
    """A minimum-norm attack of one step finds nothing; the others bring each example down to the grid."""
    model, x, y, w = some_linear()
    exact = ((x @ w).abs() / w.norm(p=1)).numpy()
    threat = hb.Linf(float(np.median(exact)), low=-9, high=9)
    curve = hb.robustness_curve(model, (x, y), threat=threat, attacks=[hb.attacks.FMN(steps=1)], within=["pgd-10"], quiet=True)
    grid = np.array(curve.eps)
    reached = np.array([grid[grid > one][0] if (grid > one).any() else np.inf for one in exact])
    assert (curve.distances <= reached * (1 + 1e-9)).all()
    assert (curve.distances >= exact * (1 - 1e-6)).all()


def test_order_and_batches_do_not_matter():
    model, x, y = sound(15)
    whole = hb.robustness_curve(model, (x, y), **QUICK)
    turned = hb.robustness_curve(model, (x.flip(0), y.flip(0)), batch_size=4, **QUICK)
    assert np.allclose(whole.distances, turned.distances[::-1], rtol=1e-3)


def test_it_goes_on_where_it_was_stopped(tmp_path):
    model, x, y = sound(15)
    how = {"batch_size": 4, "n": 12, **QUICK}
    whole = hb.robustness_curve(model, (x, y), **how)
    with pytest.raises(KeyboardInterrupt):
        hb.robustness_curve(model, Signalling((x, y), 12), out=tmp_path / "a", **how)
    hb.robustness_curve(model, (x, y), out=tmp_path / "b", **how)
    kept = (tmp_path / "b" / "verdicts-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "verdicts-0.jsonl").write_text("".join(kept[:12]))
    again = hb.robustness_curve(model, (x, y), out=tmp_path / "b", **how)
    assert np.array_equal(whole.distances, again.distances)
    assert again.found_by == whole.found_by
    with pytest.raises(hb.UserError, match="another evaluation"):
        hb.robustness_curve(model, (x, y), out=tmp_path / "b", **how | {"seed": 1})


def test_a_claim_that_does_not_hold_does_not_count():
    """A model whose answer depends on chance would be broken nearer at each look."""

    class Moody(nn.Module):
        def forward(self, x):
            logits = torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)
            return logits * torch.where(torch.rand(()) < 0.5, -1.0, 1.0) + 10 * torch.tensor([1.0, 0.0])

    x = 0.5 + torch.rand(6, 4) / 4
    with torch.random.fork_rng(devices=[]):
        curve = hb.robustness_curve(Moody(), (x, torch.zeros(6, dtype=torch.long)), **QUICK | {"threat": hb.Linf(0.1)})
    assert set(curve.found_by) <= {None, "clean"}


def test_what_is_kept_and_shown(tmp_path):
    model, x, y = sound(20)
    curve = hb.robustness_curve(model, (x, y), eps=["2/255", "4/255", 0.2], out=tmp_path, **QUICK)
    saved = read_json(tmp_path / "curve.json")
    assert saved["bound"] == "upper"
    assert [point["robust_accuracy"] for point in saved["curve"]] == [curve.robust_accuracy(eps) for eps in curve.eps]
    assert curve.robust_accuracy("2/255") == saved["curve"][0]["robust_accuracy"]
    assert curve.table().row_count == 3
    assert "2/255" in str(curve)
    picture, n = curve.figure(), "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}20"
    assert b"<svg" in figure_file(picture, "svg")
    assert f"Linf(8/255), {n} (all), seed 0" in picture.get_supxlabel().replace("\n", " ")
    again = curve_of(saved)
    assert again.to_dict() == curve.to_dict()
    assert again.eps_name(0.2) == curve.eps_name(0.2)  # written as it was given
    figures = tmp_path / "figures"
    page = make_report(tmp_path, figures=figures).read_text()
    assert "Robust accuracy at every ε" in page
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg", ".pdf", ".md", ".tex", ".csv"}
    assert len((figures / "curve.csv").read_text().splitlines()) == 1 + 1 + 3  # from 0 on
    caption = " ".join(re.findall("<!-- (.*?) -->", (figures / "curve.svg").read_text()))
    assert "Linf(8/255)" in caption
    assert "seed 0" in caption
    assert curve.robust_accuracy(0) == curve.clean_accuracy


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"attacks": ["pgd-20"]}, "no minimum-norm attack"),
        ({"attacks": ["ddn-100"]}, "not defined in Linf"),
        ({"eps": [0.0, 0.1]}, "above 0"),
        ({"n": 100}, "1 to 20"),
    ],
)
def test_what_makes_no_sense_is_refused(how, says):
    model, x, y = sound(20)
    with pytest.raises(hb.UserError, match=says):
        hb.robustness_curve(model, (x, y), threat=hb.Linf("8/255"), quiet=True, **how)


def test_attacks_that_are_called_alike_are_all_tried():
    model, x, y = sound(20)
    within = [hb.attacks.PGD(2, loss=lambda logits, y: logits.sum(1)), hb.attacks.PGD(2, loss=lambda logits, y: -logits.sum(1))]
    curve = hb.robustness_curve(model, (x, y), **QUICK | {"within": within})
    assert [name for name in curve.provenance["attacks"] if name.endswith("#2")] == [f"{within[0]} #2"]
