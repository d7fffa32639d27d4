"""Every study at its smallest size: what it says must follow from what it measured."""

import json
import random
import re
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.cli import main
from hauberk.core.figures import COLUMN, FIGURE_FORMATS, figure_file, new_figure
from hauberk.experiments import Experiment, progress
from hauberk.experiments.options import DataOptions, ModelOptions, SubsetOptions
from hauberk.experiments.studies import STUDIES, StudyContext, StudyResult, Variant, find_study
from hauberk.experiments.studies.amounts import same_steps, widths
from hauberk.experiments.studies.epochs import draw_epochs, epoch_curves
from hauberk.experiments.studies.mail_weights import _effective_parts
from hauberk.experiments.studies.masks import RobustMasks, strong_losses, strong_words
from hauberk.experiments.studies.method_variants import MART_LOSSES, split_method
from hauberk.experiments.studies.misclassified import split_by_correctness
from hauberk.experiments.studies.plan import plan_studies, planned_variants, planning
from hauberk.experiments.studies.reweighting import kept_epochs, kept_every
from hauberk.experiments.studies.side_by_side import train_side_by_side
from hauberk.experiments.studies.study import Study, judged
from hauberk.experiments.studies.trade_off import _best_less_worst
from hauberk.experiments.studies.verdict import difference_of, mean_and_error, sentence
from hauberk.models import ModelSpec
from hauberk.training.callbacks import read_metrics
from hauberk.training.config import TrainConfig
from hauberk.training.metrics import TrainingDiverged
from hauberk.training.plan import hold_out
from helpers import tiny_batch, tiny_net

MLP = ModelOptions("mlp")
SMALL = Experiment("at", 0, model=MLP, subset=SubsetOptions(300, 60), settings={"epochs": 3, "val_size": 30, "lr": 0.05})
TINY = replace(SMALL, subset=SubsetOptions(160, 40), settings={"epochs": 2, "val_size": 20, "lr": 0.05})
WITH_CURVES = {"subsets", "ablation", "beta-sensitivity", "weights", "burn-in", "reweighting-and-attacks", "fgsm-training"}
WITH_CURVES |= {"memorising", "epsilon", "capacity", "examples", "unlabelled", "difficulty"}
WITHOUT_ERRORS = {"path-dependence", "lps-vs-pm", "restarts", "large-epsilon", "saliency", "transfer", "margins"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def strict(text):
    """Read JSON as jq, browsers and other languages do."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def short_attacks(monkeypatch):
    """Fewer steps and starts: what is looked at is how a study is put together, not what it finds."""
    monkeypatch.setattr("hauberk.experiments.studies.masks.apgd", partial(hb.attacks.apgd, steps=3))
    monkeypatch.setattr("hauberk.experiments.studies.margins.apgd", partial(hb.attacks.apgd, steps=3))
    monkeypatch.setattr("hauberk.experiments.studies.reweighting.evaluate", partial(hb.evaluate, attacks=("fgsm",)))
    for name, value in {"MANY": 6, "STARTS": 2, "START_STEPS": 3, "PATH_STEPS": 6}.items():
        monkeypatch.setattr(f"hauberk.experiments.studies.attack_paths.{name}", value)


def test_a_network_that_collapses_is_looked_at_unless_it_is_to_stop(monkeypatch, tmp_path):
    """A claim is about what a training comes to; one of many networks does not end the study."""

    def collapsed(*seen):
        raise TrainingDiverged("robust accuracy fell")

    monkeypatch.setattr("hauberk.training.trainer.check_catastrophic_overfitting", collapsed)
    stopping = replace(TINY, settings={**TINY.settings, "on_divergence": "stop"})
    with pytest.raises(hb.UserError, match="robust accuracy fell"):
        StudyContext(stopping, tmp_path, trials=1).trained("standard")
    StudyContext(TINY, tmp_path, trials=1).trained("standard")  # goes on with that one
    assert len(read_metrics(next(tmp_path.rglob("metrics.jsonl")))) == 2


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_written_down_with_its_picture(name, tmp_path_factory, short_attacks):
    shared = tmp_path_factory.getbasetemp() / "tiny"  # networks are shared
    study, told = find_study(name), []
    found = study.run(StudyContext(TINY, shared, threads=1, trials=1, say=told.append))
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
    figure = study.picture(StudyResult(**with_errors(stored)))
    bars = [one for axes in figure.axes for one in axes.containers]
    shown = any(getattr(one, kind, None) for one in bars for kind in ("has_xerr", "has_yerr", "errorbar"))
    assert shown == (name not in WITHOUT_ERRORS)
    assert figure.get_figwidth() == pytest.approx(COLUMN)
    caption = " ".join(figure._supxlabel.get_text().split())
    assert caption.startswith(f"{name}: digits, mlp, Linf(0.1), 160 training examples, 2 epochs, seed 0, ")
    assert "40 " in caption
    curves = found.series.get("epochs", {})
    assert (name in WITH_CURVES) == bool(curves)
    assert all(len(seeds) == 1 and "PGD" in one for one in curves.values() for seeds in one.values())
    # It says which of how many networks it is at.
    counts = [re.search(r"network (\d+) of (\d+): .*, seed 0", text).groups() for text in told]
    assert [int(k) for k, _ in counts] == list(range(1, len(counts) + 1))
    assert {int(n) for _, n in counts} == {len(counts)}
    # One seed never tells.
    assert found.verdict == "cannot be told"
    assert {one["verdict"] for one in found.sentences} == {"cannot be told"}
    assert {one["±"] for one in found.sentences} == {None}


TABLE = """
train = "rows.csv"
label = "late"
eps = 0.25
[features.income]
[features.debt]
[features.job]
kind = "category"
values = ["clerk", "cook"]
"""
NOT_FOR_TABLES = {"saliency", "large-epsilon"}


def make_table(folder):
    """Write 120 rows of two classes, the last one rarer, and return the schema."""
    draw = random.Random(0)
    rows = []
    for _ in range(120):
        income, debt, job = draw.gauss(3, 1), draw.gauss(0, 1), draw.choice(["clerk", "cook"])
        rows.append(f"{income:.4f},{debt:.4f},{job},{int(debt - income / 2 + (job == 'cook') > -0.5)}")
    (folder / "rows.csv").write_text("\n".join(["income,debt,job,late", *rows]) + "\n")
    (folder / "loans.toml").write_text(TABLE)
    return str(folder / "loans.toml")


@pytest.fixture
def loans(tmp_path_factory):
    """A table of two classes, whose networks are shared by all studies."""
    folder = tmp_path_factory.getbasetemp() / "loans"
    if not folder.exists():
        folder.mkdir()
        make_table(folder)
    settings = {"epochs": 2, "val_size": 12, "lr": 0.05}
    data, subset, model = DataOptions(str(folder / "loans.toml")), SubsetOptions(60, 16), ModelOptions("mlp-8")
    return StudyContext(Experiment("at", 0, data, subset, model=model, settings=settings), folder, threads=1, trials=1)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_a_table_of_two_classes_is_made_or_refused_untrained(name, loans, short_attacks, monkeypatch):
    monkeypatch.setattr("hauberk.experiments.studies.result.FIGURE_FORMATS", ("png",))  # the others are as those of images
    study, told = find_study(name), []
    if name in NOT_FOR_TABLES:
        with pytest.raises(hb.UserError, match=f"study {name} needs images"):
            study.run(replace(loans, say=told.append))
        assert not told
        return
    found = study.run(loans)
    found.save(loans.out, study.draw)
    assert (loans.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = (loans.out / f"{name}.md").read_text()
    assert "nan" not in re.findall(r"[a-z]+", written)
    assert "DLR" not in written + found.caption
    assert ("the logit margin to the other class" in written) == any("strong" in key for key in found.rows[0])


def test_margins_say_which_rows_of_a_table_the_examples_are(loans, short_attacks):
    found = find_study("margins").run(loans)
    train = hb.data.read_table(loans.base.data.name).train
    x, y = train.fetch(torch.arange(16))
    assert [row["label"] for row in found.examples] == [("late = 0", "late = 1")[k] for k in y.tolist()]
    assert all({row["label"], row["nearest other class"]} == {"late = 0", "late = 1"} for row in found.examples)
    for name, values in train.values(x).items():
        assert [row[f"row.{name}"] for row in found.examples] == values


def test_the_stronger_attacks_of_few_classes_are_those_of_autoattack_there():
    few, many = "cw-targeted", "dlr-targeted"
    assert [strong_losses(classes)[1] for classes in (2, 3, 4, 10)] == [few, few, many, many]
    assert strong_words(3) == "APGD on cross-entropy, then on the logit margin to each other class"
    assert strong_words(10) == "APGD on cross-entropy, then on targeted DLR towards 3 classes"


def test_a_rarest_class_is_there_where_a_third_of_the_classes_is_none(loans, short_attacks, monkeypatch):
    found = find_study("imbalance").run(loans)
    assert found.sentences[0]["sentence"] == "MART helps the rarer class more than AT does"
    assert found.sentences[0]["difference"] is not None
    first, last = found.series["training"]
    assert f"the first class has {first} training examples, the last {last}" in found.found
    assert first > last
    swapped = Path(loans.base.data.name).with_name("swapped.toml")
    swapped.write_text(f'classes = ["1", "0"]\n{TABLE}')
    base = replace(loans.base, data=DataOptions(str(swapped)))
    monkeypatch.setattr("hauberk.experiments.studies.difficulty.RATIO", 1.0)
    with pytest.raises(hb.UserError, match="number the classes from the most frequent to the rarest"):
        find_study("imbalance").run(replace(loans, base=base))


def test_the_command_names_what_a_table_is_not_for_and_goes_on(loans, tmp_path, capsys, monkeypatch):
    kept = {name: STUDIES[name] for name in ("saliency", "lps-vs-pm")}
    monkeypatch.setattr("hauberk.experiments.studies.STUDIES", kept)
    words = ["--data", loans.base.data.name, "--model", "mlp-8", "--train-size", "60", "--test-size", "16", "--epochs", "2"]
    words += ["--val-size", "12", "--threads", "1", "--out", str(tmp_path / "out"), "--trials", "1"]
    assert main(["study", "saliency", *words]) == 2
    assert "study saliency needs images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["study", "--all", "--dry-run", *words]) == 0
    said = capsys.readouterr()
    assert "saliency: study saliency needs images" in said.err
    assert "1 of 1 networks to train" in said.out

    def refuse(self, folder, draw):
        raise hb.UserError("cannot be written")

    monkeypatch.setattr(StudyResult, "save", refuse)
    assert main(["study", "--all", *words, "--jobs", "1"]) == 0
    said = capsys.readouterr()
    assert "lps-vs-pm: cannot be written" in said.err
    assert "Left out: saliency, lps-vs-pm" in said.out


def with_errors(stored):
    """Fill in the standard errors that one seed does not have."""

    def known(key, value):
        return json.loads(json.dumps(value).replace("null", "1.5")) if key.endswith("±") else value

    rows = [{key: known(key, value) for key, value in row.items()} for row in stored["rows"]]
    return stored | {"rows": rows, "series": {key: known(key, value) for key, value in stored["series"].items()}}


UNLEARNT = Experiment("at", 0, model=MLP, subset=SubsetOptions(60, 30), settings={"epochs": 3, "val_size": 10, "lr": 1e-6})


@pytest.mark.parametrize("name", ["restarts", "saliency", "imbalance", "lps-vs-pm", "fgsm-training"])
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
    def at_chance_but_for(self, variant, which="best"):
        if variant.decides:
            self.right.setdefault(variant.method, []).append(torch.ones(8, dtype=torch.bool))
        return tiny_net((1, 8, 8), 10).eval()

    monkeypatch.setattr(StudyContext, "trained_variant", at_chance_but_for)
    context = StudyContext(replace(SMALL, subset=SubsetOptions(300, 8)), tmp_path, threads=1, trials=1)
    found = find_study("trade-off").experiment(context)
    assert len(found.rows) > len(context.right)
    assert set(context.right) == {"standard", "at", "trades"}
    assert "chance" not in judged(found, context).found


@pytest.mark.parametrize("name", ["lps-vs-pm", "memorising"])
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
    lines = [list(line.get_xdata()) for line in curves.get_lines()]
    assert [line[:2] for line in lines if len(line) > 1] == [[1, 2], [1, 2]]  # after the first step, the second
    broken = [step for step in found.series["steps"].values() if 0 < step < 50]
    assert [line for line in lines if len(line) == 1] == [[step] for step in broken]  # the ring where it is broken


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Context of two seeds whose networks are those of a function of name and seed, on eight digits, as if they had learnt."""

    def with_networks(build, test_size=8):
        def trained(self, variant, which="best"):
            self.right.setdefault(variant.method, []).append(torch.ones(test_size, dtype=torch.bool))
            return build(variant.method, self.seed).eval()

        monkeypatch.setattr(StudyContext, "trained_variant", trained)
        return StudyContext(replace(SMALL, subset=SubsetOptions(300, test_size)), tmp_path, threads=1, trials=2)

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
    monkeypatch.setattr(StudyContext, "trained_variant", lambda *words, **more: None)
    monkeypatch.setattr(f"{where}.epoch_curves", lambda *words: {})
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


def test_each_trial_of_a_study_has_a_seed_of_its_own(tmp_path, capsys):
    words = ["--model", "mlp", "--train-size", "100", "--test-size", "20", "--epochs", "1", "--val-size", "20", "--seed", "5"]
    words += ["--out", str(tmp_path), "--trials", "2", "--threads", "1", "--quiet"]
    assert main(["study", "lps-vs-pm", *words]) == 0
    runs = {int(path.parent.parent.name.removeprefix("seed-")): path for path in tmp_path.rglob("run.json")}
    assert {seed: json.loads(path.read_text())["settings"]["seed"] for seed, path in runs.items()} == {5: 5, 6: 6}
    assert (runs[5].parent / "last.safetensors").read_bytes() != (runs[6].parent / "last.safetensors").read_bytes()
    with pytest.raises(hb.UserError, match="the seed 5, and the experiment has 6"):
        replace(SMALL, seed=6, settings={"seed": 5})
    record = json.loads(runs[6].read_text())
    record["settings"]["seed"] = 5  # as when every trial was trained with the first one's
    runs[6].write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["study", "lps-vs-pm", *words]) == 2
    assert "was made with another seed" in capsys.readouterr().err


def test_a_network_without_any_loss_makes_no_number_of_nothing(made_up, tmp_path):
    class Sure(torch.nn.Module):
        def forward(self, x):
            label = self.labels[torch.cdist(x.flatten(1), self.inputs.flatten(1)).argmin(1)]
            return 1000.0 * F.one_hot(label, 10).float() + 0.0 * x.sum()

    context = made_up(lambda name, seed: net)
    net = Sure()
    net.inputs, net.labels = context.examples()
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
    found = replace(found, strong="APGD on cross-entropy")
    found.save(tmp_path, lambda result: new_figure()[0])
    assert main(["report", str(tmp_path / "mine.json")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Claim: claim" in html
    assert "more is better" in html
    assert "+1.0 ± 0.1 points" in html
    assert "strong: right under APGD on cross-entropy." in html  # what the word means
    assert "<td>1.5</td>" in html or ">1.5</th>" in html
    assert "<figure" not in html


def test_margins_name_the_examples_of_each_area(shared):
    context = StudyContext(SMALL, shared, threads=1, trials=1)
    study = find_study("margins")
    found = study.run(context)
    model, (x, y) = context.trained("at"), context.examples("train")
    seen = hb.attacks.pgd(model, x, y, context.threat, steps=10, step_size="eps/4", seed=0)
    margin = hb.probabilistic_margin(model(seen.x_adv), y)
    assert [row["PM adv"] for row in found.examples] == pytest.approx(margin.tolist(), abs=1e-6)
    areas = ["wrong" if m < 0 else "boundary" if m < 0.1 else "safe" for m in margin.tolist()]
    assert [row["area"] for row in found.examples] == areas
    counts = {row["area"]: row["examples"] for row in found.rows}
    assert counts == {one: areas.count(one) for one in ("safe", "boundary", "wrong")}
    weights = hb.weighting.mail(margin, slope=10.0, bias=-0.5)
    assert [row["weight"] for row in found.examples] == pytest.approx(weights.tolist(), rel=1e-4)
    found.save(shared, study.draw)
    listed = (shared / "margins-examples.csv").read_text().splitlines()
    assert len(listed) == 1 + len(y)
    assert listed[0].startswith("example,label,nearest other class,")


def test_label_noise_changes_training_labels_only_and_as_many_as_it_says():
    noisy = replace(SMALL, subset=SubsetOptions(300, 60, label_noise=0.5))
    (x, y), (again, drawn) = (one.load_data("train").fetch(torch.arange(300)) for one in (SMALL, noisy))
    assert torch.equal(x, again)
    assert 300 * 0.5 * 0.9 - 40 < int((y != drawn).sum()) < 300 * 0.5 * 0.9 + 40  # a tenth of them is drawn as it was
    assert torch.equal(SMALL.load_data("test").fetch(torch.arange(60))[1], noisy.load_data("test").fetch(torch.arange(60))[1])
    other = replace(noisy, seed=1).load_data("train").fetch(torch.arange(300))[1]
    assert not torch.equal(drawn, other)
    with pytest.raises(hb.UserError, match="label_noise"):
        replace(SMALL, subset=SubsetOptions(label_noise=1.5))


def test_label_noise_is_as_frequent_among_held_out_examples_as_among_others():
    """It was not: the same generator chose both, so that every held-out label was random, and chose the best epoch."""
    part, changed = replace(SMALL, subset=SubsetOptions(1000, 60, label_noise=0.2)), []
    for seed in range(5):
        noisy = replace(part, seed=seed).load_data("train")
        clean = replace(SMALL, seed=seed, subset=SubsetOptions(1000, 60)).load_data("train")
        held_out = hold_out(clean, TrainConfig(seed=seed, val_size=200))[1].indices
        changed.append(noisy.fetch(held_out)[1] != clean.fetch(held_out)[1])
    assert 0.14 < float(torch.cat(changed).double().mean()) < 0.22  # 0.2 of them are drawn, a tenth of these as they were


def test_variants_change_options_of_the_experiment_and_nothing_else(tmp_path):
    context = StudyContext(SMALL, tmp_path)
    variant = Variant("at", settings={"epochs": 4}, parts={"subset": {"train_size": 100}, "model": {"name": "mlp-16"}})
    one, folder = context.experiment(variant)
    assert (one.subset.train_size, one.model.name, one.settings["epochs"]) == (100, "mlp-16", 4)
    assert one.settings["lr"] == SMALL.settings["lr"]
    assert folder.name == "epochs=4-train_size=100-name=mlp-16"
    assert context.experiment(Variant("at"))[1].name == "plain"
    with pytest.raises(hb.UserError, match="no option 'size'"):
        context.with_parts({"subset": {"size": 1}})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", {32: "mlp-32", 64: "mlp-64", 128: "mlp", 256: "mlp-256"}),
        ("small-cnn-8", {2: "small-cnn-2", 4: "small-cnn-4", 8: "small-cnn-8", 16: "small-cnn-16"}),
        ("wrn-16-4", {1: "wrn-16-1", 2: "wrn-16-2", 4: "wrn-16-4", 8: "wrn-16-8"}),
    ],
)
def test_widths_of_a_network(model, expected):
    assert widths(model) == expected
    shape = (1, 8, 8)
    sizes = [sum(p.numel() for p in ModelSpec(name, shape, 10).build().parameters()) for name in expected.values()]
    assert sizes == sorted(set(sizes))


def test_other_networks_have_no_width():
    with pytest.raises(hb.UserError, match="capacity needs"):
        widths("timm:resnet18")


def test_a_part_of_the_examples_makes_as_many_steps():
    config = TrainConfig(epochs=8, batch_size=10, schedule="steps", milestones=(5.0, 7.0), decay_rate=0.1, val_size=40)
    assert same_steps(config, 0.25) == {"epochs": 32, "milestones": (17.0, 25.0), "val_size": 10}
    assert same_steps(config, 1.0) == {}


def test_curves_over_epochs_are_those_of_the_runs(shared):
    context = StudyContext(SMALL, shared, threads=1, trials=2)
    variants = {"at": Variant("at")}
    for _ in context.networks(variants):
        pass
    curves = epoch_curves(context, variants)["at"]
    for seed in (0, 1):
        rows = read_metrics(shared / "networks" / "plain" / "at" / f"seed-{seed}" / "run" / "metrics.jsonl")
        assert curves["PGD"][seed] == [100 * row["val_robust_accuracy"] for row in rows]
        assert curves["clean"][seed] == [100 * row["val_clean_accuracy"] for row in rows]
    (axes,) = new_figure()[1]
    draw_epochs(axes, {"at": curves}, "PGD")
    mean = [sum(values) / 2 for values in zip(*curves["PGD"], strict=True)]
    line, best, *_ = axes.get_lines()
    assert line.get_ydata().tolist() == mean
    assert best.get_xydata().tolist() == [[1 + mean.index(max(mean)), max(mean)]]
    draw_epochs(axes, {"at": {}}, "PGD")  # nothing was held out
    assert [text.get_text() for text in axes.texts] == ["no examples were held out"]


def test_epochs_with_weights_are_attacked_from_just_before_the_weights_begin(made_up, short_attacks, monkeypatch):
    monkeypatch.setattr(
        StudyContext, "kept", lambda self, variant, epoch: linear(variant.method, self.seed + 100 * epoch).eval()
    )
    monkeypatch.setattr("hauberk.experiments.studies.reweighting.epoch_curves", lambda *words: {})
    context, study = made_up(linear, 20), find_study("reweighting-and-attacks")
    found = study.run(context)
    assert found.series["begin"] == 2  # three quarters of three epochs
    assert found.series["kept"] == [2, 3]
    (x, y), curves = context.examples(), found.series["attacked"]["gairat"]
    for seed in (0, 1):
        for place, net in enumerate((linear("gairat", seed + 200), linear("gairat", seed))):  # the last epoch, as the best
            broken = hb.attacks.pgd(net, x, y, context.threat, steps=100, step_size="eps/10", seed=seed).success
            right = float(((net(x).argmax(1) == y) & ~broken).double().mean())
            assert curves["PGD-100"][seed][place] == pytest.approx(100 * right)
            fgsm = hb.evaluate(net, (x, y), threat=context.threat, attacks=["fgsm"], diagnostics=[], quiet=True)
            assert curves["AutoAttack"][seed][place] == pytest.approx(100 * fgsm.robust_accuracy)
    row = next(row for row in found.rows if row["training"] == "gairat")
    assert row["CW-30 with weights, %"] == pytest.approx(sum(seed[1] for seed in curves["CW-30"]) / 2)
    panel = study.draw(found).axes[1]  # PGD-100
    assert panel.get_lines()[1].get_xdata().tolist() == [2, 3]
    mean = [sum(some) / 2 for some in zip(*curves["PGD-100"], strict=True)]
    assert panel.get_lines()[1].get_ydata().tolist() == pytest.approx(mean)


@pytest.mark.parametrize("epochs", [2, 3, 4, 15, 30, 100, 101, 110, 200])
def test_a_handful_of_epochs_is_kept_around_the_epochs_with_weights(epochs, tmp_path):
    context = StudyContext(replace(SMALL, settings={"epochs": epochs}), tmp_path)
    kept, begin = kept_epochs(context), int(0.75 * epochs)
    assert kept[-1] == epochs
    assert kept[0] <= begin < kept[1]
    assert kept[0] > begin - kept_every(context)
    assert all(epoch % kept_every(context) == 0 for epoch in kept[:-1])
    assert len(kept) <= 6  # as --dry-run counts


def test_a_dry_run_counts_and_trains_nothing(tmp_path, capsys):
    words = ["--model", "mlp", "--train-size", "100", "--test-size", "20", "--epochs", "2", "--val-size", "20", "--trials", "2"]
    words += ["--threads", "1", "--out", str(tmp_path / "out"), "--dry-run", "--jobs", "2"]
    assert main(["study", "subsets", *words]) == 0
    said = capsys.readouterr().out
    assert "14 of 14 networks to train, 2 side by side: about " in said
    assert "| S- FGSM | subsets | 2 | 2 | " in said
    assert main(["study", "ablation", *words]) == 0  # with methods that want to know which examples they are given
    assert "20 of 20 networks to train, 2 side by side: about " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    context = StudyContext(TINY, tmp_path / "out", threads=1, trials=1)
    plan = plan_studies([find_study("saliency"), find_study("transfer")], context)
    assert sum(one.missing for one in plan.networks if one.study == "transfer") == 1  # four of five are trained before
    assert all(one.training > 0 for one in plan.networks if one.missing)


def test_networks_side_by_side_are_those_of_one_after_another(tmp_path):
    """Also where a network is made with another one: what that has wrong, or the labels that it gives."""
    studies = [find_study("subsets"), find_study("unlabelled")]
    told = []
    alone = StudyContext(TINY, tmp_path / "alone", threads=1, trials=1)
    beside = replace(alone, out=tmp_path / "beside", say=told.append)
    for study in studies:
        for _ in alone.networks(planned_variants(study, planning(alone))):
            pass
    assert train_side_by_side(studies, beside, jobs=2, threads=1)
    expected = {path.relative_to(alone.out): path.read_bytes() for path in alone.out.rglob("last.safetensors")}
    assert len(expected) == 7 + 6 - 1  # plain adversarial training is of both
    assert {path.relative_to(beside.out): path.read_bytes() for path in beside.out.rglob("last.safetensors")} == expected
    assert len(told) == 12
    assert re.fullmatch(r"1 of 12 networks: .*, seed 0: done, about 0:\d\d:\d\d to go", told[0])
    assert told[-1].endswith(", seed 0: done")
    assert train_side_by_side(studies, beside, jobs=2, threads=1)  # nothing is left
    assert len(told) == 12


def test_networks_made_with_others_are_not_begun_once_these_are_stopped(tmp_path, monkeypatch):
    rounds = []

    def stopped(work, todo, *, on_end, **settings):  # by an interrupt, after the first has saved
        rounds.append(list(todo))
        on_end(rounds[-1][0], "stopped")
        return False

    monkeypatch.setattr("hauberk.experiments.studies.side_by_side.in_processes", stopped)
    context = StudyContext(TINY, tmp_path, trials=1)
    assert not train_side_by_side([find_study("subsets")], context, jobs=2, threads=1)
    assert [[one.name for one in some] for some in rounds] == [["at"]]
    assert rounds[0][0].context.threads == 1


def test_what_cannot_be_trained_side_by_side_is_said_and_left_to_its_study(tmp_path):
    def refuses(context):
        raise hb.UserError("needs images")

    told = []
    context = StudyContext(replace(TINY, settings={"epochs": 2, "val_size": 170}), tmp_path, trials=1, say=told.append)
    own = Study("own", "", refuses, lambda result: new_figure()[0])
    assert train_side_by_side([own, find_study("memorising")], context, jobs=2, threads=1)
    assert len(told) == 4
    assert all("seed 0: " in text and "done" not in text for text in told), told


def test_progress_names_the_epoch_while_a_network_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.005)
    told, run = [], tmp_path / "seed-0" / "run"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"settings": {"epochs": 8}}')
    watch = progress.Watch(2, told.append)
    with watch.network("at, seed 0", run):
        (run / "metrics.jsonl").write_text('{"epoch": 1, "val_robust_accuracy": 0.4321}\n')
        deadline = time.monotonic() + 20
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert told == ["network 1 of 2: at, seed 0", "network 1 of 2: at, seed 0: epoch 1 of 8, val PGD 43.2 %"]
    with watch.network("at, seed 1", run):
        pass
    assert re.fullmatch(r"network 2 of 2: at, seed 1, about 0:00:\d\d to go", told[2])


def test_all_studies_in_one_report(tmp_path, capsys, monkeypatch):
    def refuses(context):
        raise hb.UserError("needs images")

    ready = StudyResult("1 of 2", [AGREES], [{"right, %": 1.5}], caption="Bars.")
    kept = {"trade-off": STUDIES["trade-off"], "saliency": STUDIES["saliency"]}
    monkeypatch.setattr("hauberk.experiments.studies.STUDIES", kept)
    monkeypatch.setattr("hauberk.report.report.STUDIES", kept)
    monkeypatch.setattr("hauberk.experiments.studies.trade_off.trade_off", lambda context: ready)
    monkeypatch.setattr("hauberk.experiments.studies.trade_off.draw_trade_off", lambda result: new_figure()[0])
    monkeypatch.setattr("hauberk.experiments.studies.perturbations.saliency", refuses)
    assert main(["study", "--all", "--report", "--test-size", "20", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "saliency: needs images" in said.err
    assert "Left out: saliency" in said.out
    html = (tmp_path / "report.html").read_text()
    assert "Claim: Adversarial training costs accuracy" in html
    assert "trade-off: digits, small-cnn" in html  # the caption, in the picture
    assert main(["study", "saliency", "--all"]) == 2
