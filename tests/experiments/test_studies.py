"""Every study at its smallest size: what it says must follow from what it measured."""

import json
import re
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.cli import main
from hauberk.experiments import Experiment
from hauberk.experiments.figures import FIGURE_FORMATS, figure_file, new_figure
from hauberk.experiments.options import ModelOptions, SubsetOptions
from hauberk.experiments.studies import STUDIES, StudyContext, StudyResult, find_study
from hauberk.experiments.studies.mail_weights import _effective_parts
from hauberk.experiments.studies.masks import RobustMasks
from hauberk.experiments.studies.method_variants import MART_LOSSES, split_method
from hauberk.experiments.studies.misclassified import split_by_correctness
from hauberk.experiments.studies.study import judged
from hauberk.experiments.studies.trade_off import _best_less_worst
from hauberk.experiments.studies.verdict import difference_of, mean_and_error, sentence
from hauberk.training.plan import hold_out
from helpers import tiny_batch, tiny_net

MLP = ModelOptions("mlp")
SMALL = Experiment("at", 0, model=MLP, subset=SubsetOptions(300, 60), settings={"epochs": 3, "val_size": 30, "lr": 0.05})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def strict(text):
    """Read JSON as jq, browsers and other languages do."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_written_down_with_its_picture(name, shared):
    study, told = find_study(name), []
    found = study.run(StudyContext(SMALL, shared, threads=1, trials=1, say=told.append))
    assert found.study == name
    assert len(study.claim) > 50
    assert any(digit in found.found for digit in "0123456789")
    found.save(shared, study.draw)
    stored = strict((shared / f"{name}.json").read_text())
    assert stored["rows"] == json.loads(json.dumps(found.rows))
    assert (shared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (shared / f"{name}.svg").read_bytes()[:2000]
    assert (shared / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    written = (shared / f"{name}.md").read_text()
    assert found.claim in written
    assert all(one["sentence"] in written for one in found.sentences)
    assert "nan" not in re.findall(r"[a-z]+", written + (shared / f"{name}.csv").read_text())
    assert len((shared / f"{name}.csv").read_text().splitlines()) == 1 + len(found.rows)
    # A report draws what it reads, with the errors beside the numbers where there are some.
    known = {key: 1.5 for key in stored["rows"][0] if key.endswith("±")}
    series = stored["series"] | ({"robust ±": [1.5] * 5} if name == "ablation" else {})
    drawn = study.draw(StudyResult(**stored | {"rows": [row | known for row in stored["rows"]], "series": series}))
    bars = [one for axes in drawn.axes for one in axes.containers]
    shown = any(getattr(one, kind, None) for one in bars for kind in ("has_xerr", "has_yerr", "errorbar"))
    assert shown == (name in ("subsets", "ablation", "beta-sensitivity", "weights", "burn-in", "trade-off"))
    # It says which of how many networks it is at.
    counts = [re.search(r"network (\d+) of (\d+): .*, seed 0$", text).groups() for text in told]
    assert [int(k) for k, _ in counts][:2] == [1, 2][: len(counts)]
    assert counts[-1][0] == counts[-1][1]
    # One seed never tells.
    assert found.verdict == "cannot be told"
    assert {one["verdict"] for one in found.sentences} == {"cannot be told"}
    assert {one["±"] for one in found.sentences} == {None}


UNLEARNT = Experiment("at", 0, model=MLP, subset=SubsetOptions(60, 30), settings={"epochs": 3, "val_size": 10, "lr": 1e-6})


@pytest.mark.parametrize("name", STUDIES)
def test_no_verdict_rests_on_networks_that_have_learnt_nothing(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "unlearnt"  # networks are shared
    trials = 2 if name == "saliency" else 1
    found = find_study(name).run(StudyContext(UNLEARNT, folder, threads=1, trials=trials))
    assert found.verdict == "cannot be told"
    assert {one["verdict"] for one in found.sentences} == {"cannot be told"}
    said = r"\d+ of the \d+ networks it rests on are no better than chance \(.*: \d+ % of 10 classes\); train longer"
    assert re.match(said, found.found)
    assert found.found.count("Measured: ") == 1
    assert "nan" not in re.findall(r"[a-z]+", found.to_markdown())


AGREES = {"sentence": "s", "difference": 1.0, "±": 0.1, "unit": "points", "verdict": "agrees"}


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["agrees", "agrees"], "agrees"),
        (["agrees", "cannot be told"], "cannot be told"),
        (["agrees", "cannot be told", "does not agree"], "does not agree"),
        ([], "cannot be told"),
    ],
)
def test_a_claim_agrees_if_all_its_sentences_do(verdicts, whole):
    context = StudyContext(Experiment("at", 0, subset=SubsetOptions(test_size=50)), None)
    found = StudyResult("1 of 2", [AGREES | {"verdict": verdict} for verdict in verdicts], [])
    assert judged(found, context).verdict == whole


def test_a_verdict_stands_where_the_networks_that_it_rests_on_have_learnt():
    found = StudyResult("1 of 2", [AGREES], [])
    context = StudyContext(Experiment("at", 0, subset=SubsetOptions(test_size=50)), None)

    def right(share):
        return torch.arange(50) < 50 * share

    context.right.update({"at": [right(0.5), right(0.6)], "mart": [right(0.9)]})
    assert judged(found, context).verdict == "agrees"
    assert judged(found, context).found == "1 of 2"
    context.right["trades"] = [right(0.9), right(0.18)]  # one seed of two
    assert judged(found, context).verdict == "cannot be told"
    reason = "1 of the 3 networks it rests on are no better than chance (trades: 18 % of 10 classes)"
    assert reason in judged(found, context).found
    context.right["trades"] = [right(0.24)]  # more than twice as often as guessing, but not by two standard errors
    assert "(trades: 24 %" in judged(found, context).found


def test_networks_that_are_only_shown_hold_no_verdict_back(tmp_path, monkeypatch):
    def at_chance_but_for(self, name, *, decides=True, **choices):
        if decides:
            self.right.setdefault(name, []).append(torch.ones(8, dtype=torch.bool))
        return tiny_net((1, 8, 8), 10).eval()

    monkeypatch.setattr(StudyContext, "trained", at_chance_but_for)
    context = StudyContext(replace(SMALL, subset=SubsetOptions(300, 8)), tmp_path, threads=1, trials=1)
    found = find_study("trade-off").experiment(context)
    assert len(found.rows) > len(context.right)
    assert set(context.right) == {"standard", "at", "trades"}
    assert "chance" not in judged(found, context).found


@pytest.mark.parametrize("name", ["lps-vs-pm", "saliency", "burn-in"])
def test_a_study_repeats(name, shared):
    study, context = find_study(name), StudyContext(SMALL, shared, threads=1, trials=1)
    first, again = study.run(context), study.run(context)
    assert again.rows == first.rows
    assert again.found == first.found


def test_path_dependence_counts_what_the_attacks_did(shared):
    context = StudyContext(SMALL, shared, threads=1, trials=1)
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
    curves = find_study("path-dependence").draw(found).axes[0]
    assert [list(line.get_xdata())[:2] for line in curves.get_lines()] == [[1, 2], [1, 2]]  # after the first step, the second


@pytest.fixture
def made_up(monkeypatch):
    """Context of two seeds whose networks are those of a function of name and seed, on eight digits, as if they had learnt."""

    def with_networks(build, test_size=8):
        def trained(self, name, **choices):
            self.right.setdefault(name, []).append(torch.ones(test_size, dtype=torch.bool))
            return build(name, self.seed).eval()

        monkeypatch.setattr(StudyContext, "trained", trained)
        return StudyContext(replace(SMALL, subset=SubsetOptions(300, test_size)), None, threads=1, trials=2)

    return with_networks


def linear(name, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed + 10 * len(name))
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def test_an_attack_that_is_stuck_nowhere_tells_nothing(made_up):
    found = find_study("path-dependence").run(made_up(linear, 30))
    stuck = found.sentences[1]
    assert stuck["difference"] == 0
    assert stuck["verdict"] == "cannot be told"
    assert found.verdict != "does not agree"


def test_restarts_compare_the_spread_of_both_networks(made_up):
    context = made_up(linear, 30)
    found = find_study("restarts").run(context)
    said = next(one for one in found.sentences if "vary less over starts" in one["sentence"])
    deviations = []
    for name in ("standard", "at"):
        for seed, (x, y) in ((k, context.examples()) for k in (0, 1)):
            net, losses = linear(name, seed), []
            for start in range(20):
                at = hb.attacks.pgd(net, x, y, context.threat, steps=40, return_last=True, seed=seed + 1000 * start).x_adv
                losses.append(F.cross_entropy(net(at), y, reduction="none").detach().double())
            deviations.append(torch.stack(losses).std(0))
    expected = torch.stack(deviations[:2]) - torch.stack(deviations[2:])
    assert said["difference"] == pytest.approx(float(expected.mean()), abs=1e-9)
    assert said["±"] == pytest.approx(mean_and_error(expected)[1], abs=1e-9)


def test_saliency_is_judged_by_roughness_too(made_up):
    def build(name, seed):
        net = linear(name, seed)
        if name != "standard":  # smooth and alike everywhere, but for the class: aligned with nothing in particular
            with torch.no_grad():
                net[1].weight.copy_(torch.linspace(-1, 1, 10)[:, None].expand(10, 64))
        return net

    found = find_study("saliency").run(made_up(build, 60))
    rough = found.sentences[1]
    assert "rough" in rough["sentence"]
    assert rough["verdict"] == "agrees"  # constant gradients have no roughness at all
    assert rough["difference"] == pytest.approx(found.rows[0]["roughness"] - found.rows[1]["roughness"], abs=1e-6)


def test_subsets_test_every_sentence(monkeypatch):
    shares = {"at": 0.6, "S- unperturbed": 0.3, "S+ unperturbed": 0.6, "S+ FGSM": 0.6, "S- FGSM": 0.6, "S+ regularised": 0.7}

    def made(context, variants):
        assert next(variant.custom(context).name for variant in variants.values() if variant.custom) == "at S+ unperturbed"
        masks = {name: (torch.arange(500) < 500 * shares.get(name, 0.8)).expand(3, 500) for name in variants}
        return {name: RobustMasks(mask, mask, mask) for name, mask in masks.items()}

    where = "hauberk.experiments.studies.misclassified"
    monkeypatch.setattr(f"{where}.trained_masks", made)
    monkeypatch.setattr(StudyContext, "trained", lambda *words, **more: None)
    monkeypatch.setattr(f"{where}.split_by_correctness", lambda *words: dict.fromkeys(("S+", "S-"), torch.arange(27)))
    found = find_study("subsets").experiment(StudyContext(SMALL, None))
    assert "S- is 10.0 % of the training examples" in found.found
    verdicts = {one["sentence"]: one["verdict"] for one in found.sentences}
    assert verdicts.pop("a weak attack on S+ costs robustness") == "cannot be told"  # it does not, here
    assert set(verdicts.values()) == {"agrees"}


def test_lps_vs_pm_splits_the_variance(shared):
    context = StudyContext(SMALL, shared, threads=1, trials=1)
    found = find_study("lps-vs-pm").run(context)
    lps, margins = torch.tensor(found.series["lps"]), torch.tensor(found.series["PM nat"], dtype=torch.float64)
    assert sum(row["examples"] for row in found.rows) == len(lps) == 60
    means = torch.stack([margins[lps == value].mean() for value in lps])
    explained = float(means.var(correction=0) / margins.var(correction=0))
    assert f"LPS explains {100 * explained:.0f} %" in found.found
    assert not torch.tensor(found.series["critical"])[lps < 10].any()
    within = {
        int(re.search(r"within LPS (\d+)", one["sentence"])[1]): one
        for one in found.sentences
        if "within LPS" in one["sentence"]
    }
    assert set(within) == {value for value in range(11) if (lps == value).sum() >= 10}
    for value, one in within.items():
        spread = (margins[lps == value].var(correction=0) / margins.var(correction=0)).item() - 0.5
        assert one["difference"] == pytest.approx(100 * spread)


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
    context = StudyContext(SMALL, shared, threads=1, trials=1)
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


def test_the_error_of_a_difference_is_of_seeds_and_examples():
    """Against the formula, and against how far means of repeated experiments scatter."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    mean, error = mean_and_error(values)
    by_seed, by_example = values.mean(1), values.mean(0)
    assert mean == pytest.approx(float(values.mean()))
    assert error == pytest.approx(float((by_seed.var() / 3 + by_example.var() / 50).sqrt()))
    means, errors = [], []
    for _ in range(400):
        seeds, examples = (torch.randn(*size, generator=generator) for size in ((20, 1), (1, 40)))
        found = mean_and_error(0.5 * seeds + 2.0 * examples + torch.randn(20, 40, generator=generator))
        means.append(found[0])
        errors.append(found[1] ** 2)
    scatter = torch.tensor(means).var().sqrt()
    assert torch.tensor(errors).mean().sqrt().item() == pytest.approx(scatter.item(), rel=0.1)


def test_an_error_leaves_out_examples_that_have_no_value():
    values = torch.tensor([[1.0, 3.0, float("nan"), 2.0], [4.0, float("nan"), 2.0, 0.0]])
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(2.0)
    moved = torch.tensor([-1.0 + 2.0, 1.0 + 0.0, 0.0 + 0.0, 0.0 - 2.0]) * 4 / 3 / 2  # each seed has 3 of 4, with the mean 2
    assert error == pytest.approx(float((moved.var() / 4).sqrt()))
    assert mean_and_error(difference_of(values, values[:, :1].expand(2, 4)))[0] == pytest.approx(-0.5)
    nothing = sentence("x", torch.tensor([[float("nan")] * 3, [1.0, 2.0, 3.0]]))
    assert (nothing["difference"], nothing["±"], nothing["verdict"]) == (None, None, "cannot be told")


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([20, 20, 20], "agrees"),
        ([-20, -20, -20], "does not agree"),
        ([20, 1, -15], "cannot be told"),  # of which test examples of one seed alone would say that it is there
        ([1, 1, 1], "cannot be told"),
        ([20], "cannot be told"),
        ([0, 0, 0], "cannot be told"),
    ],
)
def test_a_sentence_is_judged_by_two_standard_errors(gains, verdict):
    signs = torch.tensor(gains).sign()[:, None]
    values = torch.where(torch.arange(200) < 2 * abs(torch.tensor(gains))[:, None], signs, 0).double()
    found = sentence("ours are right more often", values)
    assert found["difference"] == pytest.approx(sum(gains) / len(gains))
    assert found["verdict"] == verdict


def test_a_share_of_few_examples_is_not_taken_for_certain():
    assert sentence("below 1 %", torch.full((3, 60), 0.01))["verdict"] == "cannot be told"
    assert sentence("below 1 %", torch.full((3, 600), 0.01))["verdict"] == "agrees"


def test_numbers_that_are_no_means_are_those_of_their_parts():
    """Best less worst, and the effective size with what each example moves it by."""
    masks = torch.rand(4, 2, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    shares = masks.double().mean(2)
    torch.testing.assert_close(_best_less_worst(masks).mean(1), shares.amax(0) - shares.amin(0))
    weights = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = _effective_parts(weights.detach())
    size = weights.sum() ** 2 / (40 * (weights**2).sum())
    assert parts.mean().item() == pytest.approx(size.item())
    counted = torch.ones(40, dtype=torch.float64, requires_grad=True)  # how often each example is there
    moved = (counted * weights.detach()).sum() ** 2 / (counted.sum() * (counted * weights.detach() ** 2).sum())
    (slope,) = torch.autograd.grad(moved, counted)
    torch.testing.assert_close(parts - size.detach(), 40 * slope)


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
    words += ["--threads", "1", "--out", str(shared), "--trials", "1"]  # where the networks of the tests above are
    assert main(["study", "lps-vs-pm", *words]) == 0
    said = capsys.readouterr()
    assert "Claim: LPS takes few values" in said.out
    assert "20 of them looked at" in said.out
    assert "lps-vs-pm: network 1 of 1: at, seed 0\n" in said.err
    assert main(["study", "lps-vs-pm", *words, "--quiet"]) == 0
    assert "network" not in capsys.readouterr().err
    assert main(["study", "lps-vs-pm", "--trials", "0"]) == 2


def test_a_network_without_any_loss_makes_no_number_of_nothing(made_up, tmp_path):
    class Sure(torch.nn.Module):
        def forward(self, x):
            return 1000.0 * F.one_hot(self.label, 10).float() + 0.0 * x.sum()

    context = made_up(lambda name, seed: net)
    net = Sure()
    net.label = context.examples()[1]
    study = find_study("restarts")
    found = study.run(context)
    assert [row["median loss"] for row in found.rows] == [0.0, 0.0]
    assert [row["deviation over mean loss, median"] for row in found.rows] == [None, None]
    found.save(tmp_path, study.draw)
    assert strict((tmp_path / "restarts.json").read_text())["rows"] == found.rows
    assert "nan" not in (found.to_markdown() + found.table.to_csv()).lower()
    assert "| - |" in found.to_markdown()


def test_a_finding_with_numbers_that_are_none_is_json_and_says_so_in_the_table(tmp_path):
    rows = [{"network": "at", "ratio": float("nan"), "other": float("inf"), "whole": 1.5}]
    study = find_study("restarts")
    series = {"standard": [[1.0]], "at": [[1.0]]}
    found = StudyResult("found", [], rows, series, "about", "restarts", "claim", "cannot be told")
    found.save(tmp_path, study.draw)
    assert strict((tmp_path / "restarts.json").read_text())["rows"] == [{**rows[0], "ratio": None, "other": None}]
    assert "| at | - | - | 1.5 |" in (tmp_path / "restarts.md").read_text()
    assert (tmp_path / "restarts.csv").read_text().splitlines()[1] == "at,,,1.5"
    assert main(["report", str(tmp_path / "restarts.json")]) == 0


def test_a_study_of_ones_own_is_reported_without_its_picture(tmp_path):
    found = StudyResult(
        "found", [AGREES | {"sentence": "more is better"}], [{"strong, %": 1.5}], {}, "about", "mine", "claim", "agrees"
    )
    found.save(tmp_path, lambda result: new_figure()[0])
    assert main(["report", str(tmp_path / "mine.json")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Claim: claim" in html
    assert "more is better" in html
    assert "+1.0 ± 0.1 points" in html
    assert "strong: right under APGD" in html  # what the word means
    assert "<td>1.5</td>" in html or ">1.5</th>" in html
    assert "<figure" not in html
