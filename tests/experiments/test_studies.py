"""Every study at its smallest size: what it says must follow from what it measured."""

import json
import re
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.cli import main
from hauberk.experiments import Experiment
from hauberk.experiments.figures import FIGURE_FORMATS, figure_file, new_figure
from hauberk.experiments.options import ModelOptions, SubsetOptions
from hauberk.experiments.studies import STUDIES, StudyContext, StudyResult, find_study
from hauberk.experiments.studies.attacks import typical_ratio
from hauberk.experiments.studies.base import all_better, paired_difference, without_chance_verdict
from hauberk.experiments.studies.training import MART_LOSSES, split_by_correctness, split_method
from hauberk.training.plan import hold_out
from helpers import tiny_batch, tiny_net

MLP = ModelOptions("mlp")
SMALL = Experiment("at", 0, model=MLP, subset=SubsetOptions(300, 60), settings={"epochs": 3, "val_size": 30, "lr": 0.05})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_written_down_with_its_picture(name, shared):
    study = find_study(name)
    found = study.run(StudyContext(SMALL, shared, threads=1))
    assert found.study == name
    assert len(study.claim) > 50
    assert any(digit in found.found for digit in "0123456789")
    found.save(shared, study.draw)
    stored = json.loads((shared / f"{name}.json").read_text())
    assert stored["rows"] == json.loads(json.dumps(found.rows))
    assert (shared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (shared / f"{name}.svg").read_bytes()[:2000]
    assert (shared / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert found.claim in (shared / f"{name}.md").read_text()
    assert len((shared / f"{name}.csv").read_text().splitlines()) == 1 + len(found.rows)


UNLEARNT = Experiment("at", 0, model=MLP, subset=SubsetOptions(60, 30), settings={"epochs": 3, "val_size": 10, "lr": 1e-6})


@pytest.mark.parametrize("name", STUDIES)
def test_no_verdict_rests_on_networks_that_have_learnt_nothing(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "unlearnt"  # networks are shared
    found = find_study(name).run(StudyContext(UNLEARNT, folder, threads=1))
    assert found.agrees is None
    assert found.verdict == "cannot be told"
    said = r"\d+ of the \d+ networks it rests on are no better than chance \(.*: \d+ % of 10 classes\); train longer"
    assert re.match(said, found.found)
    assert found.found.count("Measured: ") == 1


def test_a_verdict_stands_where_the_networks_that_it_rests_on_have_learnt():
    found = StudyResult("1 of 2", True, [])
    context = StudyContext(Experiment("at", 0, subset=SubsetOptions(test_size=50)), None)
    context.clean_accuracy.update({"at": 0.2, "mart": 0.9})
    assert without_chance_verdict(found, context) is found
    context.clean_accuracy["trades"] = 0.19
    assert without_chance_verdict(found, context).agrees is None
    reason = "1 of the 3 networks it rests on are no better than chance (trades: 19 % of 10 classes)"
    assert reason in without_chance_verdict(found, context).found


def test_networks_that_are_only_shown_hold_no_verdict_back(tmp_path, monkeypatch):
    def at_chance_but_for(self, name, *, decides=True, **choices):
        if decides:
            self.clean_accuracy[name] = 0.9
        return tiny_net((1, 8, 8), 10).eval()

    monkeypatch.setattr(StudyContext, "trained", at_chance_but_for)
    context = StudyContext(replace(SMALL, subset=SubsetOptions(300, 8)), tmp_path, threads=1)
    found = find_study("trade-off").experiment(context)
    assert len(found.rows) > len(context.clean_accuracy)
    assert set(context.clean_accuracy) == {"standard", "at", "trades"}
    assert without_chance_verdict(found, context) is found


@pytest.mark.parametrize("name", ["lps-vs-pm", "saliency", "burn-in"])
def test_a_study_repeats(name, shared):
    study, context = find_study(name), StudyContext(SMALL, shared, threads=1)
    first, again = study.run(context), study.run(context)
    assert again.rows == first.rows
    assert again.found == first.found


def test_path_dependence_counts_what_the_attacks_did(shared):
    context = StudyContext(SMALL, shared, threads=1)
    found = find_study("path-dependence").run(context)
    model, (x, y) = context.trained("at"), context.examples()
    right = model(x).argmax(1) == y
    for row, attack in zip(found.rows, (hb.attacks.pgd, hb.attacks.lm_pgd), strict=True):
        seen = attack(model, x, y, context.threat, steps=50, seed=0)
        assert row["broken, %"] == pytest.approx(100 * float((seen.first_success[right] >= 0).double().mean()))
        curve = found.series["losses"]["PGD" if attack is hb.attacks.pgd else "LM-PGD"]
        shown = found.series["shown"]
        end = attack(model, x, y, context.threat, steps=50, seed=0, return_last=True).x_adv[shown : shown + 1]
        assert curve[-1] == pytest.approx(F.cross_entropy(model(end), y[shown : shown + 1]).item(), abs=1e-5)


def test_lps_vs_pm_splits_the_variance(shared):
    context = StudyContext(SMALL, shared, threads=1)
    found = find_study("lps-vs-pm").run(context)
    lps, margins = torch.tensor(found.series["lps"]), torch.tensor(found.series["PM nat"], dtype=torch.float64)
    assert sum(row["examples"] for row in found.rows) == len(lps) == 60
    means = torch.stack([margins[lps == value].mean() for value in lps])
    explained = float(means.var(correction=0) / margins.var(correction=0))
    assert f"LPS explains {100 * explained:.0f} %" in found.found
    assert not torch.tensor(found.series["critical"])[lps < 10].any()


def test_a_split_of_equal_parts_is_the_method_itself():
    x, y = tiny_batch(6, dtype=torch.float64)
    net, threat = tiny_net().double().train(), hb.Linf("8/255")
    mart = hb.method("mart", threat, start="clean")
    split = split_method("both", mart, mart, torch.tensor([1, 4]))
    ours, whole = split(deepcopy(net), x, y, index=torch.arange(6)), mart(deepcopy(net), x, y)
    torch.testing.assert_close(ours.loss, whole.loss)
    torch.testing.assert_close(ours.x_adv, whole.x_adv)


def test_a_split_treats_the_chosen_in_their_way():
    x, y = tiny_batch(6)
    net, threat = tiny_net().eval(), hb.Linf("8/255")
    split = split_method("S-", hb.method("standard", threat), hb.method("at", threat), torch.tensor([11, 14]))
    out = split(net, x, y, index=torch.arange(10, 16))
    moved = (out.x_adv != x).flatten(1).any(1)
    assert moved.tolist() == [True, False, True, True, False, True]
    torch.testing.assert_close(out.loss, F.cross_entropy(net(out.x_adv), y))
    with pytest.raises(hb.UserError, match="index"):
        split(net, x, y)


def test_the_variants_of_mart_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    clean, adv = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    p, q = clean.softmax(1), adv.softmax(1)
    rows = torch.arange(7)

    def boosted(p):
        others = p.clone()
        others[rows, y] = 0
        return -p[rows, y].log() - (1 - others.amax(1)).log()

    kl, wrong = (p * (p / q).log()).sum(1), 1 - p[rows, y]
    expected = {
        "without 1-p": boosted(q) + 5 * kl,
        "without KL": boosted(q) + 5 * wrong,
        "without both": boosted(q),
        "CE for BCE": -q[rows, y].log() + 5 * kl * wrong,
        "BCE on clean inputs": boosted(p) + 5 * kl * wrong,
    }
    assert list(MART_LOSSES) == list(expected)
    for name, terms in MART_LOSSES.items():
        robust, regular = terms(clean, adv, y)
        torch.testing.assert_close(robust + regular, expected[name], msg=name)


def test_subsets_are_what_the_first_network_has_wrong_and_as_many_others(shared):
    context = StudyContext(SMALL, shared, threads=1)
    first = context.trained("at")
    parts = split_by_correctness(context, first)
    x, y = context.train_part.fetch(torch.arange(len(context.train_part)))
    assert parts["S-"].tolist() == (first(x).argmax(1) != y).nonzero().squeeze(1).tolist()
    assert not set(parts["S+"].tolist()) & set(parts["S-"].tolist())
    assert len(parts["S+"]) == min(len(parts["S-"]), len(y) - len(parts["S-"]))
    assert len(y) == 270


def test_studies_look_at_what_networks_of_their_seed_are_trained_on():
    context = StudyContext(replace(SMALL, seed=3), None)
    trained_on = hold_out(context.base.load_data("train"), replace(context.base.resolved.config, seed=3))[0]
    assert torch.equal(context.train_part.indices, trained_on.indices)


def test_a_claim_is_judged_by_two_standard_errors():
    better, worse = torch.tensor([True] * 90 + [False] * 10), torch.tensor([True] * 70 + [False] * 30)
    points, error = paired_difference(better, worse)
    assert points == pytest.approx(20)
    assert error == pytest.approx(100 * (0.2 * 0.8 * 100 / 99 / 100) ** 0.5)
    assert all_better([(better, worse)]) is True
    assert all_better([(better, worse), (worse, better)]) is False
    assert all_better([(better, worse), (better, better)]) is None


def test_studies_are_listed_without_torch():
    code = "import sys\nfrom hauberk.cli import main\nassert main(['study']) == 0\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_picture_is_the_same_whenever_it_is_drawn(monkeypatch):
    def files():
        figure, (axes,) = new_figure()
        axes.plot([1, 2], [2, 1], label="a")
        axes.legend()
        return {ending: figure_file(figure, ending) for ending in FIGURE_FORMATS}

    first = files()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert files() == first
    assert first["svg"].startswith(b"<?xml")
    assert b"#0072B2".lower() in first["svg"].lower()


def test_the_command(shared, capsys):
    assert main(["study"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert main(["study", "restart"]) == 2
    assert "did you mean 'restarts'" in capsys.readouterr().err
    words = ["--model", "mlp", "--train-size", "300", "--test-size", "20", "--epochs", "3", "--val-size", "30", "--lr", "0.05"]
    words += ["--threads", "1", "--out", str(shared)]  # where the networks of the tests above are
    assert main(["study", "lps-vs-pm", *words]) == 0
    said = capsys.readouterr().out
    assert "Claim: LPS takes few values" in said
    assert "20 of them looked at" in said


def strict(text):
    """Read JSON as jq, browsers and other languages do."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_network_without_any_loss_makes_no_number_of_nothing(tmp_path):
    class Sure(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0.0 + torch.tensor([1000.0, 0.0, 0.0])

    examples = (torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))
    context = SimpleNamespace(examples=lambda: examples, trained=lambda name: Sure(), threat=hb.Linf(0.1), seed=0)
    study = find_study("restarts")
    found = replace(study.experiment(context), study="restarts")
    column = "largest over median loss of an example, median"
    assert [row["median loss"] for row in found.rows] == [0.0, 0.0]
    assert [row[column] for row in found.rows] == [None, None]
    found.save(tmp_path, study.draw)
    assert strict((tmp_path / "restarts.json").read_text())["rows"] == found.rows
    assert "nan" not in (found.to_markdown() + found.table.to_csv()).lower()
    assert "| - |" in found.to_markdown()


def test_the_largest_loss_over_the_median_one_leaves_out_examples_without_any_loss():
    losses = torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, 2.0], [4.0, 0.0, 2.0]])  # ratios 2, none, 1
    assert typical_ratio(losses) == 1.0  # the lower of two, as everywhere in torch
    assert typical_ratio(losses[:, 1:2]) is None
    assert typical_ratio(torch.tensor([[0.0], [0.0], [5.0]])) is None  # infinitely many times


def test_a_finding_with_numbers_that_are_none_is_json_and_says_so_in_the_table(tmp_path):
    rows = [{"network": "at", "ratio": float("nan"), "other": float("inf"), "whole": 1.5}]
    study = find_study("restarts")
    series = {"standard": [[1.0]], "at": [[1.0]]}
    found = StudyResult("found", None, rows, series, "about", "restarts", "claim")
    found.save(tmp_path, study.draw)
    assert strict((tmp_path / "restarts.json").read_text())["rows"] == [{**rows[0], "ratio": None, "other": None}]
    assert "| at | - | - | 1.5 |" in (tmp_path / "restarts.md").read_text()
    assert (tmp_path / "restarts.csv").read_text().splitlines()[1] == "at,,,1.5"
    assert main(["report", str(tmp_path / "restarts.json")]) == 0


def test_a_study_of_ones_own_is_reported_without_its_picture(tmp_path):
    StudyResult("found", None, [{"a": 1.5}], {}, "about", "mine", "claim").save(tmp_path, lambda result: new_figure()[0])
    assert main(["report", str(tmp_path / "mine.json")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Claim: claim" in html
    assert "<td>1.5</td>" in html or ">1.5</th>" in html
    assert "<figure" not in html
