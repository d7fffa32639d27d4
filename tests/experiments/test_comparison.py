"""Comparisons of methods over seeds: numbers against SciPy, experiments that are never made twice, real processes."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import isnan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import ttest_rel

import hauberk as hb
from hauberk.cli import main
from hauberk.core.io import read_json, write_json
from hauberk.core.text_table import Ranked, TextTable
from hauberk.experiments import (
    Comparison,
    Experiment,
    collect,
    estimate,
    progress,
    run_experiment,
    run_experiments,
    run_on_slurm,
)
from hauberk.experiments.options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    PresetOptions,
    SourceOptions,
    SubsetOptions,
)
from hauberk.experiments.paired_tests import holm
from hauberk.experiments.paper_tables import MAIL, PAPER_TABLES, parse_methods, scale_budget
from hauberk.experiments.record import bind_folder, require_same_inputs
from hauberk.experiments.runner import train_experiment
from hauberk.experiments.studies import StudyContext
from hauberk.training.published import resolve
from hauberk.training.schedule import first_drop
from helpers import end_with_parent

QUICK = {
    "model": ModelOptions("mlp"),
    "subset": SubsetOptions(128, 40),
    "evaluation": EvaluationOptions("quick"),
    "settings": {"epochs": 1, "val_size": 20},
    "hyperparameters": {"steps": 1},
}


def experiments(*methods, trials=2, **more):
    return [Experiment(method=name, seed=seed, **{**QUICK, **more}) for seed in range(trials) for name in methods]


def made_up(values, seeds=5):
    """A comparison of some methods in one column."""
    return Comparison(
        about="nothing",
        methods=tuple(values),
        seeds=tuple(range(seeds)),
        columns=("clean", "autoattack"),
        values={name: dict.fromkeys(("clean", "autoattack"), tuple(v)) for name, v in values.items()},
        doubts={name: ["a doubt (1 of 5)"] if name == "b" else [] for name in values},
        published={"a": ((84.86, 0.17), (44.9, 0.53))},
        baselines=dict.fromkeys([*values][1:], "a"),
    )


def test_means_deviations_and_tests_are_scipys():
    rng = np.random.default_rng(0)
    values = {name: list(50 + shift + rng.normal(size=5)) for name, shift in (("a", 0), ("b", 1), ("c", 4), ("d", 0.1))}
    found = made_up(values)
    for name in values:
        assert found.mean(name, "clean") == pytest.approx(np.mean(values[name]))
        assert found.deviation(name, "clean") == pytest.approx(np.std(values[name], ddof=1))
    raw = sorted((ttest_rel(values[name], values["a"]).pvalue, name) for name in "bcd")
    adjusted = found.p_values("autoattack")
    steps = np.maximum.accumulate([min(1, (3 - k) * p) for k, (p, _) in enumerate(raw)])
    assert [adjusted[name] for _, name in raw] == pytest.approx(list(steps))
    assert found.rank("c", "clean") == 0
    assert sorted(found.rank(name, "clean") for name in values) == [0, 1, 2, 3]


def test_no_test_is_made_up_where_there_is_nothing_to_test():
    assert isnan(made_up({"a": [1.0], "b": [2.0]}, seeds=1).p_values("clean")["b"])
    assert isnan(made_up({"a": [1.0, 2.0], "b": [2.0, 3.0]}, seeds=2).p_values("clean")["b"])
    assert isnan(made_up({"a": [1.0], "b": [2.0]}, seeds=1).deviation("a", "clean"))
    adjusted = holm({"x": 0.01, "y": float("nan"), "z": 0.04})
    assert adjusted["x"] == 0.02
    assert adjusted["z"] == 0.04
    assert isnan(adjusted["y"])


@pytest.mark.parametrize("suite", ["quick", "papers"])
def test_what_is_certified_stands_beside_what_is_attacked(tmp_path, suite):
    some = [Experiment(method="ibp", seed=seed, evaluation=EvaluationOptions(suite, certify=True)) for seed in range(2)]
    attacks = ["pgd-100-last", "apgd-ce", "cw-20-last", "autoattack"]
    for seed, one in enumerate(some):
        one.folder(tmp_path).mkdir(parents=True)
        found = {
            "n": 50, "clean_accuracy": 0.9, "robust_accuracy": 0.6 + seed / 10, "diagnostics": [],
            "by_attack": dict.fromkeys(attacks, 0.7), "certified": {"accuracy": 0.4 + seed / 10},
        }  # fmt: skip
        (one.folder(tmp_path) / "evaluation.json").write_text(json.dumps(found))
    compared = collect(some, tmp_path)
    assert compared.columns == ("clean", "certified", *attacks)
    assert compared.values["ibp"]["certified"] == pytest.approx((40, 50))
    assert "45.00 ± 7.07" in compared.table().to_markdown()


def test_every_form_of_the_table_says_the_same():
    found = made_up({"a": [50.0, 52.0], "b": [53.0, 58.0], "c": [10.0, 20.0]}, seeds=2)
    markdown = found.table().to_markdown()
    assert "| `b` (!) | **55.50 ± 3.54** | **55.50 ± 3.54** | +4.50 (p" in markdown
    assert "| `a` | _51.00 ± 1.41_ |" in markdown
    assert "| &nbsp; paper | 84.86 ± 0.17 | 44.90 ± 0.53 |  |" in markdown
    assert "(!) `b`: a doubt (1 of 5)" in markdown
    latex = found.table().to_latex()
    assert r"b (!) & \textbf{55.50 $\pm$ 3.54}" in latex
    assert r"a & \underline{51.00 $\pm$ 1.41}" in latex
    assert "% (!) `b`: a doubt (1 of 5)" in latex.splitlines()
    runs = found.runs_table().to_csv().splitlines()
    assert runs[:2] == ["method,seed,column,accuracy,doubts", "a,0,clean,50.0000,"]
    assert runs[1 + 2 * 2] == "b,0,clean,53.0000,a doubt (1 of 5)"
    assert len(runs) == 1 + 3 * 2 * 2
    shown = found.table().to_rich()
    assert shown.row_count == 4
    assert "(!) b: a doubt (1 of 5)" in str(shown.title)
    assert "One seed" in made_up({"a": [1.0], "b": [2.0]}, seeds=1).table().to_markdown()


def test_a_table_is_safe_for_each_form_whatever_stands_in_it():
    rows = [["[red]a|b_1", None, 0.123456, 3], ["`c`", float("nan"), Ranked("50 %", 0), 4]]
    table = TextTable("", ["name", "x", "ε, %", "n"], rows, doubts={"n": "INVALID (chance)", "c": "weak"})
    markdown, latex = table.to_markdown().splitlines(), table.to_latex().splitlines()
    assert markdown[:3] == ["| name | x | ε, % | n (INVALID) |", "|---|---|---|---|", "| [red]a&#124;b_1 | - | 0.1235 | 3 |"]
    assert markdown[3:] == ["| `c` (!) | - | **50 %** | 4 |", "", "(INVALID) n: INVALID (chance)", "(!) c: weak"]
    assert r"name & x & $\epsilon$, \% & n (INVALID) \\" in latex
    assert r"{[}red{]}a|b\_1 & - & 0.1235 & 3 \\" in latex
    assert r"c (!) & - & \textbf{50 \%} & 4 \\" in latex
    assert table.to_csv().splitlines() == [
        'name,x,"ε, %",n (INVALID),doubts',
        "[red]a|b_1,,0.123456,3,",
        "c,,50 %,4,weak",
    ]
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(table.to_rich())
    assert "[red]a|b_1" in console.file.getvalue()  # read as it stands, not as rich's markup


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+cmd|'/C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "\r=1"])
def test_a_name_is_no_formula_in_a_spreadsheet_and_moves_no_cursor_on_a_terminal(text):
    table = TextTable("a\nb", ["x", text], [[text, text], ["\x1b[31mred\nb", "-1.5"]], doubts={text: text})
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    cell = r"\r=1" if text == "\r=1" else f"'{text}"
    assert rows[0][1].startswith(cell)
    assert rows[1] == [cell] * 3
    assert rows[2][1] == "-1.5"  # a number
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(table.to_rich())
    for shown in (table.to_markdown(), table.to_latex(), console.file.getvalue()):
        assert "\x1b" not in shown
        assert r"red" in shown
    assert len(table.to_markdown().splitlines()) == 8


@pytest.mark.parametrize("name", ["mart-white-box", "mart-black-box"])
def test_no_heading_and_no_number_is_cut_off_on_a_terminal_of_80_characters(name):
    columns = ["method", "clean", *PAPER_TABLES[name].attacks, "worst case", "worst case against `at`"]
    row = ["`mart`", *["40.12 ± 0.34"] * (len(columns) - 2), "+1.20 (p 0.012)"]
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(TextTable("", columns, [row, ["  paper", *row[1:-1], ""]]).to_rich())
    lines = console.file.getvalue().splitlines()
    assert "…" not in "".join(lines)
    head = next(k for k, line in enumerate(lines) if "╇" in line)
    cells = [[cell.replace(" ", "") for cell in line.strip("┃").split("┃")] for line in lines[:head] if "┃" in line]
    headings = ["".join(parts) for parts in zip(*cells, strict=True)]
    assert headings == [column.replace("`", "").replace(" ", "") for column in columns]
    body = " ".join(lines[head:])
    assert body.count("40.12") == 2 * (len(columns) - 2)
    assert "paper" in body


def test_the_last_checkpoint_stands_below_the_best_with_the_gap(tmp_path, monkeypatch, capsys):
    words = ["compare", *WORDS, "--methods", "at", "--suite", "quick", "--out", str(tmp_path), "--quiet"]
    words[words.index("--epochs") + 1] = "2"
    monkeypatch.setenv("COLUMNS", "200")
    assert main(words) == 0
    assert "last epoch" not in capsys.readouterr().out
    best = tmp_path / "at" / "seed-0" / "evaluation.json"
    stamp = best.stat().st_mtime_ns
    assert main([*words, "--last"]) == 0
    assert best.stat().st_mtime_ns == stamp  # what is finished is not made again
    ended = hb.evaluate(
        hb.load(tmp_path / "at" / "seed-0" / "run", which="last"),
        Experiment("at", 0, **QUICK).load_data("test"),
        threat=Experiment("at", 0).threat_model,
        quiet=True,
    )
    found = Comparison(**read_json(tmp_path / "comparison.json"))
    assert found.last["at"]["worst case"] == [pytest.approx(100 * ended.robust_accuracy)]
    gap = found.values["at"]["worst case"][0] - 100 * ended.robust_accuracy
    assert f"| {100 * ended.clean_accuracy:.2f} |" in (tmp_path / "comparison.md").read_text()
    assert f"| best {gap:+.2f} |" in (tmp_path / "comparison.md").read_text()
    assert '"worst case, last epoch"' in (tmp_path / "comparison.csv").read_text()


def test_published_numbers_are_the_papers():
    assert MAIL["cifar10", "resnet18"]["mail-trades"][0] == (81.84, 0.18)
    assert MAIL["cifar10", "wrn-32-10"]["gairat"][4] == (40.3, 0.16)
    assert all(len(row) == 5 for table in MAIL.values() for row in table.values())
    assert all(set(table) <= {*hb.list_methods(), "at+awp"} for table in MAIL.values())


def test_attacks_stand_in_place_of_the_suite_in_what_an_experiment_is():
    def record(*evaluation):
        return Experiment("at", 0, evaluation=EvaluationOptions(*evaluation)).to_dict()

    assert record("papers", ("fgsm",)) == record("standard", ("fgsm",)) != record("papers", ("pgd-10",))
    assert record("papers") != record("standard")


def test_finished_experiments_are_never_made_again_and_a_folder_belongs_to_its_experiments(tmp_path):
    some, told = experiments("at", "trades"), []
    assert run_experiments(some, tmp_path, on_progress=lambda one, what: told.append(what))
    assert told == ["done"] * 4
    found = collect(some, tmp_path)
    assert found.columns == ("clean", "fgsm", "pgd-20", "cw-30", "pgd-100", "worst case")
    for experiment in some:
        stored = read_json(experiment.folder(tmp_path) / "evaluation.json")
        place = found.seeds.index(experiment.seed)
        assert found.values[experiment.method]["worst case"][place] == pytest.approx(100 * stored["robust_accuracy"])
        assert stored["n"] == 40
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    more, told = experiments("at", "trades", "mart"), []
    assert run_experiments(more, tmp_path, on_progress=lambda one, what: told.append(what))
    assert sorted(told) == ["done"] * 2 + ["kept"] * 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with pytest.raises(hb.UserError, match=r"was made with subset.test_size = 40, not 30"):
        run_experiments([replace(some[0], subset=SubsetOptions(128, 30))], tmp_path)
    changed = [
        replace(experiment, data=replace(experiment.data, data_dir=str(tmp_path))) for experiment in some
    ]  # the same data elsewhere
    assert run_experiments(changed, tmp_path)
    again = run_experiment(replace(some[0], seed=7), tmp_path / "alone", threads=1)
    assert again
    assert collect([replace(some[0], seed=7)], tmp_path / "alone").values["at"]["clean"]


TABLE = """
train = "train.csv"
test = "test.csv"
label = "label"
classes = ["0", "1"]
eps = 0.25
[features.a]
[features.b]
"""


@pytest.mark.parametrize("split", ["train", "test"])
def test_finished_experiments_are_not_kept_where_their_data_have_changed(split, tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "rows.toml").write_text(TABLE)
    for part in ("train", "test"):
        lines = ["a,b,label", *(f"{i % 7},{i % 5},{i % 2}" for i in range(100))]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines))
    small = {"settings": {"epochs": 1, "val_size": 20}, "subset": SubsetOptions()}
    (experiment,) = experiments(
        "at", trials=1, data=DataOptions(str(tmp_path / "rows.toml")), model=ModelOptions("mlp"), **small
    )
    out, told = tmp_path / "out", []
    assert run_experiments([experiment], out)
    assert run_experiments([experiment], out, on_progress=lambda one, what: told.append(what))
    assert told == ["kept"]
    record = experiment.folder(out) / "run" / "run.json"
    record.write_text(json.dumps(json.loads(whole := record.read_text()) | {"threads": 7}))
    assert run_experiments([experiment], out, on_progress=lambda one, what: told.append(what))
    assert told[1:] == ["kept, made with 7 threads"]
    record.write_text(whole)
    (tmp_path / f"{split}.csv").write_text("\n".join([*lines[:-1], "6,4,0"]))
    with pytest.raises(hb.UserError, match=f"was made with other {split} data"):
        run_experiments([experiment], out)
    if split == "train":  # also where only the network is wanted, as in a study
        with pytest.raises(hb.UserError, match="was made with other train data"):
            train_experiment(experiment, out, threads=1)
    (tmp_path / f"{split}.csv").unlink()
    assert run_experiments([experiment], out)  # there is nothing to compare with


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("eps = 0.25", "eps = 2.5", "another threat model"),
        ("[features.b]", "[features.b]\nkind = 'integer'", "another network"),  # its ε, a whole number of units, stays as it is
    ],
)
def test_finished_experiments_are_not_kept_where_the_adversary_or_the_network_of_a_table_has_changed(
    before, after, says, tmp_path
):
    pytest.importorskip("pandas")
    table = TABLE.replace("[features.b]", "[features.b]\neps = 0") if says == "another network" else TABLE
    (tmp_path / "rows.toml").write_text(table)
    for part in ("train", "test"):
        lines = ["a,b,label", *(f"{i % 7},{i % 5},{i % 2}" for i in range(100))]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines))
    small = {"subset": SubsetOptions(), "evaluation": EvaluationOptions(attacks=("fgsm",))}
    (experiment,) = experiments("at", trials=1, data=DataOptions(str(tmp_path / "rows.toml")), **small)
    out, told = tmp_path / "out", []
    assert run_experiment(experiment, out)
    (tmp_path / "rows.toml").write_text(table.replace(before, after))
    with pytest.raises(hb.UserError, match=f"was made with {says}"):
        run_experiments([experiment], out)
    with pytest.raises(hb.UserError, match=f"was made with {says}"):  # also where only its evaluation is left to do
        train_experiment(experiment, out, threads=1)
    (tmp_path / "rows.toml").write_text(table)
    plan = experiment.folder(out) / "evaluation" / "plan.json"
    plan.write_text(json.dumps((stored := read_json(plan)) | {"threat": stored["threat"] | {"norm": "L2"}}))
    with pytest.raises(hb.UserError, match="was made with another threat model"):
        run_experiments([experiment], out)
    plan.write_text(json.dumps(stored))
    assert run_experiments([experiment], out, on_progress=lambda one, what: told.append(what))
    assert told[0].startswith("kept")


def test_finished_experiments_with_label_noise_are_kept(tmp_path):
    small = {"subset": SubsetOptions(128, 40, label_noise=0.2), "evaluation": EvaluationOptions(attacks=("fgsm",))}
    some = experiments("standard", hyperparameters={}, **small)
    assert all(run_experiment(one, tmp_path) for one in some)
    assert run_experiments(some, tmp_path)


def small_run(folder, seed):
    """A run whose weights others begin from or are taught by."""
    data = hb.data.Subset(hb.data.load_data("digits", "train"), torch.arange(128))
    how = {"method": "standard", "threat": hb.Linf(0.1), "epochs": 1, "val_size": 20, "quiet": True}
    return str(hb.train("mlp", data, out=folder, seed=seed, **how).folder)


def extra_digits(path, count, seed):
    """Random images in the form of a file of generated ones."""
    draw = np.random.default_rng(seed)
    np.savez(path, image=draw.integers(0, 256, (count, 8, 8), dtype=np.uint8), label=draw.integers(0, 10, count))
    return str(path)


def test_all_methods_of_a_comparison_take_extra_examples_first_weights_and_a_teacher(tmp_path, capsys):
    first, extra = small_run(tmp_path / "first", 0), extra_digits(tmp_path / "extra.npz", 60, 0)
    words = ["compare", *WORDS, "--methods", f"at,rslad:teacher={first}", "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--extra", extra, "--extra-share", "0.5", "--init", first, "--batch-size", "32"]
    assert main([*words, "--dry-run"]) == 0
    assert main(words) == 0
    for record in (tmp_path / "out").glob("*/seed-0/run/run.json"):
        run = json.loads(record.read_text())
        assert run["data"]["extra"] == 60
        assert run["settings"]["extra_share"] == 0.5
        assert run["model"]["init"] == first
    assert ("teacher" in run["code"]) == (run["method"]["name"] == "rslad")
    capsys.readouterr()
    assert main(["compare", *WORDS, "--extra-share", "0.5"]) == 2
    assert "name their file by extra" in capsys.readouterr().err
    assert main(["compare", *WORDS, "--extra", str(tmp_path / "none.npz")]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["first weights", "extra examples", "their labels", "teacher", "loss"])
def test_finished_experiments_are_not_kept_where_what_they_were_made_from_has_changed(changed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own = tmp_path / f"own_{changed.replace(' ', '_')}.py"
    loss = (
        "import torch\n\n\ndef weighted(context):\n    term = context.logits_adv.logsumexp(1)\n    return {} * term, 0 * term\n"
    )
    own.write_text(loss.format(1.0))
    how = {
        "first weights": {"sources": SourceOptions(init=str(tmp_path / "first"))},
        "extra examples": {"sources": SourceOptions(extra=str(tmp_path / "extra.npz"))},
        "their labels": {"sources": SourceOptions(extra=str(tmp_path / "images.npz"), extra_labels=str(tmp_path / "first"))},
        "teacher": {"method": "rslad", "hyperparameters": {"steps": 1, "teacher": str(tmp_path / "first")}},
        "loss": {"hyperparameters": {"steps": 1, "objective": f"{own.stem}:weighted"}},
    }[changed]
    small_run(tmp_path / "first", 0)
    extra_digits(tmp_path / "extra.npz", 60, 0)
    np.savez(tmp_path / "images.npz", image=np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    (experiment,) = experiments("at", trials=1)
    experiment, out, told = replace(experiment, **how), tmp_path / "out", []
    assert run_experiment(experiment, out)
    assert run_experiments([experiment], out, on_progress=lambda one, what: told.append(what))
    assert told == ["kept"]
    shutil.rmtree(tmp_path / "first")
    small_run(tmp_path / "first", 1)
    extra_digits(tmp_path / "extra.npz", 60, 1)
    own.write_text(loss.format(2.0))
    sys.modules.pop(own.stem, None)
    with pytest.raises(hb.UserError, match=r"was made with other .*; choose another folder"):
        run_experiments([experiment], out)


def test_a_comparison_and_a_study_have_a_network_of_ones_own(tmp_path, monkeypatch):
    """Also one that attacks are crafted on; and what another card names is not imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    few, own = EvaluationOptions(attacks=("fgsm", "transfer-fgsm")), ModelOptions("own_net:net")
    (plain,) = experiments("standard", trials=1, model=own, hyperparameters={}, evaluation=few)
    surrogate = replace(plain, seed=7)
    assert train_experiment(surrogate, tmp_path / "surrogate", threads=1)
    one = replace(plain, surrogate=str(surrogate.folder(tmp_path / "surrogate") / "run"))
    assert run_experiment(one, tmp_path / "out", threads=1)
    assert run_experiments([one], tmp_path / "out")  # kept
    assert collect([one], tmp_path / "out").columns[:3] == ("clean", "fgsm", "transfer-fgsm")
    context = StudyContext(plain, tmp_path / "study", threads=1, trials=1)
    assert context.trained("standard")(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    with pytest.raises(hb.UserError, match="would import 'own_net:net'"):
        replace(one, model=ModelOptions("another:net")).load(one.folder(tmp_path / "out") / "run")


def test_finished_experiments_with_wrong_labels_of_their_own_seed_are_kept(tmp_path):
    some, digests = experiments("standard", hyperparameters={}, subset=SubsetOptions(128, 40, label_noise=0.2)), {}
    for one in some:
        assert train_experiment(one, tmp_path, threads=1)
    for one in some:  # raises UserError for other data
        require_same_inputs(one, tmp_path, digests)
    assert len({found for found in digests.values() if isinstance(found, str)}) == 2


def test_an_experiment_that_fails_does_not_stop_the_others(tmp_path):
    told = {}
    bad = replace(experiments("at", trials=1)[0], method="trades", settings={"epochs": 1, "lr": 1e30, "val_size": 20})
    good = experiments("at", trials=1)
    assert not run_experiments([bad, *good], tmp_path, on_progress=lambda one, what: told.__setitem__(one.method, what))
    assert told["at"] == "done"
    assert "the loss became" in told["trades"]


def test_the_estimate_counts_what_is_left(tmp_path):
    some = experiments("at", "trades")
    before = estimate(some, tmp_path)
    assert (before.total, before.finished) == (4, 0)
    assert before.training > 0
    assert before.evaluation > 0
    assert before.disk > 1e6
    run_experiment(some[0], tmp_path, threads=1)
    assert estimate(some, tmp_path).finished == 1


def test_experiments_go_to_a_cluster(tmp_path):
    jobs = run_on_slurm(experiments("at", trials=1), tmp_path, settings={"timeout_min": 5}, cluster="local")
    assert [job.result() for job in jobs] == [True]
    assert collect(experiments("at", trials=1), tmp_path).values["at"]["clean"]


WORDS = ["--methods", "at,standard", "--model", "mlp", "--trials", "1", "--suite", "quick", "--train-size", "128"]
WORDS += ["--test-size", "40", "--epochs", "1", "--val-size", "20", "--jobs", "1", "--threads", "1"]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *WORDS, "--dry-run"]) == 0
    assert "2 of 2 runs to make" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert main(["compare", *WORDS]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^1 of 2 networks: at, seed 0: done, about 0:\d\d:\d\d to go$", said, re.M), said
    assert re.search(r"^2 of 2 networks: standard, seed 0: done$", said, re.M), said
    assert "One seed" in said
    folder = tmp_path / "runs" / "compare-digits-mlp"
    assert json.loads((folder / "comparison.json").read_text())["methods"] == ["at", "standard"]
    assert {path.suffix for path in folder.glob("comparison.*")} == {".json", ".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    assert main(["compare", *WORDS]) == 0
    assert capsys.readouterr().out.count(": kept") == 2
    assert main(["compare", "--methods", "att"]) == 2
    assert "did you mean 'at'" in capsys.readouterr().err
    assert main(["compare", "--trials", "0"]) == 2
    assert main(["compare", "--methods", "at,standard", "--set", "steps=3"]) == 2
    assert "unknown setting of standard 'steps'" in capsys.readouterr().err


def test_the_time_to_go_is_that_of_the_runs_that_are_made_now_and_not_of_kept_ones(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    count = progress.Count(6, 2, told.append)
    for seconds, what in [(50, "kept"), (60, "kept, made with torch 1.0"), (160, "done"), (170, "done"), (260, "stopped")]:
        now[0] = seconds
        count.ended(f"at, seed {len(told)}", what)
    assert told == [
        "1 of 6 networks: at, seed 0: kept",
        "2 of 6 networks: at, seed 1: kept, made with torch 1.0",
        "3 of 6 networks: at, seed 2: done, about 0:01:40 to go",  # one beside it is nearly done, two more to come
        "4 of 6 networks: at, seed 3: done, about 0:01:50 to go",
        "4 of 6 networks: at, seed 4: stopped",
    ]


def test_an_interrupted_comparison_goes_on(tmp_path, capsys):
    words = ["compare", *WORDS, "--out", str(tmp_path / "out"), "--epochs", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hauberk", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: (
            end_with_parent(),
            signal.signal(signal.SIGINT, signal.SIG_DFL),
        ),  # a run in the background of a shell ignores it
    )
    state = tmp_path / "out" / "at" / "seed-0" / "run" / "state.ckpt"
    while not state.exists():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert "Not finished; the same command goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "standard").exists()  # nothing new was begun
    assert main(words) == 0
    assert "2 of 2" in capsys.readouterr().out


def test_a_killed_comparison_leaves_no_process_behind(tmp_path):
    words = [sys.executable, "-m", "hauberk", "compare", *WORDS, "--out", str(tmp_path / "out"), "--epochs", "200"]
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(words, preexec_fn=end_with_parent, **how)
    while not (tmp_path / "out" / "at" / "seed-0" / "run" / "state.ckpt").exists():
        time.sleep(0.05)
        assert process.poll() is None

    def running():
        """Processes of its group that have not ended."""
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                stats.append(path.read_text().rpartition(")")[2].split())
        return [stat for stat in stats if int(stat[2]) == process.pid and stat[0] != "Z"]

    assert len(running()) > 1
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while running() and time.monotonic() < deadline:
        time.sleep(0.1)
    left = running()
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left


def test_methods_with_settings_of_their_own(tmp_path, capsys):
    words = ["--model", "mlp", "--trials", "1", "--train-size", "128", "--test-size", "20", "--suite", "quick"]
    words += ["--epochs", "1", "--jobs", "1"]
    out = ["--out", str(tmp_path), "--quiet", "--threads", "1"]
    assert main(["compare", "--methods", "trades:beta=1;steps=1,trades:beta=6;steps=1", *words, *out]) == 0
    assert (tmp_path / "trades beta=1 steps=1" / "seed-0" / "evaluation.json").exists()
    stored = read_json(tmp_path / "comparison.json")
    assert stored["methods"] == ["trades beta=1 steps=1", "trades beta=6 steps=1"]
    assert read_json(tmp_path / "trades beta=6 steps=1" / "seed-0" / "experiment.json")["hyperparameters"] == {
        "beta": 6,
        "steps": 1,
    }
    capsys.readouterr()
    assert main(["compare", "--methods", "trades:bta=1", *words, *out]) == 2
    assert "did you mean 'beta'" in capsys.readouterr().err
    assert main(["compare", "table9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_methods_by_name_and_by_import_path():
    found = parse_methods("at,trades:beta=1;steps=5, own.part:build ,own.part:build:slope=2")
    assert [(name, dict(pairs)) for _, name, pairs in found] == [
        ("at", {}),
        ("trades", {"beta": "1", "steps": "5"}),
        ("own.part:build", {}),
        ("own.part:build", {"slope": "2"}),
    ]
    assert [label for label, *_ in found][2:] == ["own.part:build", "own.part:build slope=2"]
    far = "/a/folder/far/away/from"
    labels = [label for label, *_ in parse_methods(f"rslad:teacher={far}/a,rslad:teacher={far}/b,saad:teacher=runs/a")]
    assert labels == ["rslad teacher=a", "rslad teacher=b", "saad teacher=runs/a"]
    alike = f"ard:teacher={far}/1/run,ard:teacher={far}/2/run,ard:teacher={far}/1/run"
    assert [label for label, *_ in parse_methods(alike)] == [f"ard teacher={far}/{one}/run" for one in (1, 2)]


def test_an_experiment_is_known_by_what_it_does_not_by_how_it_was_asked_for(tmp_path):
    one = Experiment("mart", 0, data=DataOptions("cifar10"), model=ModelOptions("resnet18"))
    same = [
        replace(one, settings={"epochs": 100, "threads": 3}),
        replace(one, settings={"on_divergence": "rollback"}),  # for the one of many that needs it
        replace(one, data=DataOptions("cifar10", "elsewhere", verify=False), label="another name", surrogate="runs/other"),
    ]
    for other in (one, *same):
        bind_folder(tmp_path, other)
    others = [
        replace(one, seed=1),
        replace(one, settings={"epochs": 99}),
        replace(one, hyperparameters={"beta": 6.0}),
        replace(one, subset=SubsetOptions(imbalance=2.0)),
        replace(one, presets=PresetOptions("official")),
        replace(one, evaluation=EvaluationOptions("papers", sequential=True)),
    ]
    for other in others:
        with pytest.raises(hb.UserError, match="was made with"):
            bind_folder(tmp_path, other)


def test_a_folder_of_a_version_with_other_settings_is_refused_by_their_names(tmp_path):
    one = Experiment("mart", 0)
    bind_folder(tmp_path, one)
    record = read_json(tmp_path / "experiment.json")
    del record["settings"]["mixup"]
    write_json(tmp_path / "experiment.json", record)
    with pytest.raises(hb.UserError, match=r"was made with a version of hauberk with other settings \(mixup\); choose another"):
        bind_folder(tmp_path, one)


@pytest.mark.parametrize("name", PAPER_TABLES)
def test_a_table_has_the_papers_settings(name):
    table = PAPER_TABLES[name]
    settings = resolve(table.data, table.model, settings=table.published(table.data, table.model).settings).config
    assert settings.schedule == "steps"
    wide = table.model.startswith("wrn")
    assert (settings.lr, settings.weight_decay) == ((0.1, 7e-4) if wide else (0.01, 3.5e-3))
    assert settings.epochs == (120 if table.as_mart else 100)
    for _, method, pairs in parse_methods(table.methods):
        hb.method(method, hb.Linf("8/255"), **pairs)
    assert len({label for label, _, _ in parse_methods(table.methods)}) == {"table1": 9, "table2": 8, "table3": 8}.get(name, 6)


def test_experiments_use_what_is_published_and_write_it_down():
    wide, presets = ModelOptions("wrn-34-10"), PresetOptions("official")
    experiment = Experiment("mart", 0, data=DataOptions("cifar10"), model=wide, presets=presets)
    assert experiment.make_method().settings["beta"] == experiment.to_dict()["hyperparameters"]["beta"] == 6.0
    given = replace(experiment, hyperparameters={"beta": 2.0})
    assert given.make_method().settings["beta"] == given.to_dict()["hyperparameters"]["beta"] == 2.0
    assert "beta" not in replace(experiment, model=ModelOptions("resnet18")).make_method().settings
    context = StudyContext(Experiment("at", 0, data=DataOptions("svhn"), model=ModelOptions("preact-resnet18")), out=None)
    assert context.method("at").attack.step_size == "eps/8"
    assert context.method("at", step_size="eps").attack.step_size == "eps"


@pytest.mark.parametrize(
    ("words", "beta"), [([], 6.0), (["--methods", "mart", "--set", "beta=4"], 4.0), (["--model", "resnet18"], 5.0)]
)
def test_the_mart_tables_train_mart_as_its_code_does(words, beta, monkeypatch):
    planned = []
    monkeypatch.setattr("hauberk.experiments.estimate", lambda some, *_, **__: planned.extend(some))
    assert main(["compare", "mart-white-box", "--model", "wrn-34-10", *words, "--dry-run"]) == 0
    assert {experiment.make_method().objective.beta for experiment in planned if experiment.method == "mart"} == {beta}


@pytest.mark.parametrize(
    ("words", "suite", "attacks"),
    [
        (["mart-white-box"], "papers", PAPER_TABLES["mart-white-box"].attacks),
        (["mart-white-box", "--suite", "papers"], "papers", ()),
        (["mart-white-box", "--suite", "standard"], "standard", ()),
        (["mart-white-box", "--attacks", "fgsm"], "papers", ("fgsm",)),
        ([], "papers", ()),
    ],
)
def test_a_suite_that_is_given_stands_in_place_of_a_tables_attacks(words, suite, attacks, monkeypatch):
    planned = []
    monkeypatch.setattr("hauberk.experiments.estimate", lambda some, *_, **__: planned.extend(some))
    assert main(["compare", *words, "--data", "digits", "--model", "mlp", "--methods", "at", "--trials", "1", "--dry-run"]) == 0
    assert [(one.evaluation.suite, one.evaluation.attacks) for one in planned] == [(suite, attacks)]


def test_a_suite_that_does_not_exist_is_refused_before_training(tmp_path, capsys):
    assert main(["compare", *WORDS, "--suite", "standrad", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'standard'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "device", "threads"), [([], "auto", 0), (["--device", "cpu", "--threads", "3"], "cpu", 3)], ids=["usual", "given"]
)
def test_jobs_of_a_cluster_have_the_device_and_threads_that_are_given(words, device, threads, tmp_path, monkeypatch):
    class Executor:
        def __init__(self, *_, **__):
            self.update_parameters, self.batch = (lambda **_: None), contextlib.nullcontext

        def submit(self, *call):
            return call

    jobs, run = [], run_on_slurm
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    monkeypatch.setattr("hauberk.experiments.run_on_slurm", lambda *some, **more: jobs.extend(run(*some, **more)) or jobs)
    base = ["compare", "--methods", "at", "--model", "mlp", "--trials", "1", "--out", str(tmp_path), "--slurm", "timeout_min=5"]
    assert main([*base, *words]) == 0
    ((function, experiment, out, *where),) = jobs
    assert (function, experiment.method, out) == (run_experiment, "at", tmp_path)
    assert where == [device, threads]


def test_a_budget_shrinks_epochs_and_examples_alike_and_keeps_the_milestones_in_place():
    whole = resolve("cifar10", "resnet18", settings=PAPER_TABLES["table2"].published("cifar10", "resnet18").settings).config
    small, train, test = scale_budget(whole, 0.01, 50_000, 10_000)
    assert (small.epochs, train, test) == (10, 5000, 1000)
    assert first_drop(whole) == 74
    assert first_drop(small) == pytest.approx(7.4, abs=0.7)
    assert scale_budget(whole, 1.0, 50_000, 10_000) == (whole, 0, 0)
    for wrong in (0.0, 1.5):
        with pytest.raises(hb.UserError, match="fraction"):
            scale_budget(whole, wrong, 50_000, 10_000)


TABLE_1 = """
82.26 ± 0.60;82.50 ± 0.20;83.15 ± 0.46;84.45 ± 0.17;83.75 ± 0.09;84.12 ± 0.46;78.52 ± 0.20;82.71 ± 0.52;80.49 ± 0.18
54.14 ± 0.15;55.00 ± 0.32;55.25 ± 0.23;53.16 ± 0.26;53.63 ± 0.21;53.65 ± 0.23;51.67 ± 0.54;52.37 ± 0.65;53.67 ± 0.14
36.32 ± 0.57;44.25 ± 0.45;44.10 ± 0.21;46.00 ± 0.26;46.70 ± 0.10;47.20 ± 0.21;44.40 ± 0.20;49.52 ± 0.11;50.60 ± 0.22
"""  # NAT, PGD and AA; AT, MART and TRADES, each weighted by LPS, PM nat, PM adv: as the MAIL paper prints it


@pytest.fixture
def table_1(tmp_path):
    """The command that prints Table 1, its runs finished: each method's numbers are its place and noise of the seed."""
    rng, found = np.random.default_rng(0), {}
    labels = [label for label, _, _ in parse_methods(PAPER_TABLES["table1"].methods)]
    for place, label in enumerate(labels):
        for seed in range(5):
            share = (40 + place + rng.normal()) / 100
            attacks = {"pgd-100-last": share + 0.1, "apgd-ce": share + 0.05, "cw-20-last": share + 0.02, "autoattack": share}
            folder = tmp_path / label / f"seed-{seed}"
            folder.mkdir(parents=True)
            one = {
                "n": 10_000,
                "clean_accuracy": share + 0.4,
                "robust_accuracy": share,
                "by_attack": attacks,
                "certified": None,
                "diagnostics": [],
            }
            (folder / "evaluation.json").write_text(json.dumps({**one, "diagnostics": []}))
            found.setdefault(label, []).append(100 * share)
    return ["compare", "table1", "--out", str(tmp_path), "--quiet"], labels, found


def test_table_1_has_its_own_numbers_and_no_others(table_1, tmp_path, capsys, monkeypatch):
    words, labels, _ = table_1
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    said = capsys.readouterr().out
    printed = [[cell.strip() for cell in row.split(";")] for row in TABLE_1.strip().splitlines()]
    rows = [line.split(" | ")[1:6] for line in (tmp_path / "comparison.md").read_text().splitlines() if "&nbsp; paper" in line]
    assert len(rows) == len(labels) == 9
    for place, (nat, pgd, apgd, cw, aa) in enumerate(rows):
        assert [nat, pgd, aa] == [row[place] for row in printed]
        assert apgd == cw == ""
    assert {"gair-mart", "gair-trades", "measure=pm-nat"} <= set(said.split())  # names are whole
    assert main(["report", str(tmp_path)]) == 0
    assert "36.32 ± 0.57" in (tmp_path / "report.html").read_text()
    assert main([*words, "--model", "wrn-32-10"]) == 0  # Table 1 is of ResNet-18
    assert "paper" not in (tmp_path / "comparison.md").read_text()


def test_table_1_compares_margins_with_lps_within_each_objective(table_1, tmp_path):
    words, labels, values = table_1
    assert main(words) == 0
    found = Comparison(**read_json(tmp_path / "comparison.json"))
    pairs = {name: lps for lps, *others in (labels[:3], labels[3:6], labels[6:]) for name in others}
    raw = {name: ttest_rel(values[name], values[lps]).pvalue for name, lps in pairs.items()}
    assert found.p_values("autoattack") == pytest.approx(holm(raw))
    for name, lps in pairs.items():
        assert found.difference(name, "autoattack") == pytest.approx(np.mean(values[name]) - np.mean(values[lps]))
    assert found.baselines == pairs
    markdown = (tmp_path / "comparison.md").read_text()
    assert f"{found.difference('mail-mart', 'autoattack'):+.2f} to `gair-mart` (p" in markdown
    assert "difference in AA" in markdown
    assert "to `" not in next(line for line in markdown.splitlines() if line.startswith("| `gair-trades`"))
    assert main([*words, "--methods", "mail-at,mail-trades,mail-mart,gair-mart"]) == 0  # one of the pairs only
    stored = read_json(tmp_path / "comparison.json")
    assert stored["baselines"] == {"mail-mart": "gair-mart", "mail-trades": "mail-at"}


def test_an_invalid_evaluation_is_marked_as_such_in_every_form(table_1, tmp_path):
    path = tmp_path / "mail-at" / "seed-0" / "evaluation.json"
    doubted = [{"name": "more-steps-help", "verdict": "warning"}, {"name": "clean-accuracy", "verdict": "invalid"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "diagnostics": doubted}))
    assert main(table_1[0]) == 0
    reason = "INVALID: clean-accuracy (1 of 5), more-steps-help (1 of 5)"
    markdown, latex, runs = ((tmp_path / f"comparison.{ending}").read_text() for ending in ("md", "tex", "csv"))
    assert "| `mail-at` (INVALID) |" in markdown
    assert f"(INVALID) `mail-at`: {reason}" in markdown
    assert "mail-at (INVALID) & " in latex
    assert f"(INVALID) `mail-at`: {reason}" in latex
    assert runs.count(f'"{reason}"') == 5 * 5  # seeds and columns of one method


def test_table_3_is_planned_with_its_own_network(tmp_path, capsys):
    words = ["--data", "digits", "--methods", "mail-trades", "--set", "steps=1", "--trials", "1", "--out", str(tmp_path)]
    assert main(["compare", "table3", *words, "--dry-run"]) == 0
    assert "1 of 1 runs to make" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["table1", "mart-white-box", "mart-black-box"])
def test_a_table_on_digits(name, tmp_path, capsys):
    words = ["--data", "digits", "--model", "mlp", "--budget", "0.02", "--trials", "1", "--jobs", "1", "--threads", "1"]
    few = {"table1": "gairat,mail-at:measure=pm-nat", "mart-white-box": "at,mma", "mart-black-box": "at,mart"}[name]
    words += ["--methods", few, "--test-size", "20", "--out", str(tmp_path), "--quiet"]
    assert main(["compare", name, *words]) == 0
    found = read_json(tmp_path / "comparison.json")
    assert "epochs" in found["about"]
    if name == "mart-black-box":
        assert found["columns"][:4] == ["clean", "transfer-fgsm", "pgd-20-last", "transfer-pgd-20"]
        assert (tmp_path / "surrogate" / "standard" / "seed-1000" / "run" / "best.safetensors").exists()
        for method in found["methods"]:  # perturbations of another network harm a network less than its own
            assert found["values"][method]["transfer-pgd-20"] >= found["values"][method]["pgd-20-last"]
    assert main(["report", str(tmp_path)]) == 0
    assert main(["compare", name, *words, "--dry-run"]) == 0
    assert "0 of" in capsys.readouterr().out


@pytest.mark.parametrize("point", ["open", "fsync", "replace"])
@pytest.mark.parametrize("file", ["experiment.json", "run.json"])
def test_an_experiment_killed_while_it_is_first_written_down_goes_on(point, file, tmp_path, monkeypatch):
    owner = Path if point == "replace" else os
    act, (experiment,) = getattr(owner, point), experiments("at", trials=1)

    def killed(target, *rest, **more):
        name = Path(f"/proc/self/fd/{target}").readlink().name if point == "fsync" else Path(target).name
        if name == f"{file}.part":
            raise KeyboardInterrupt  # nobody catches it
        return act(target, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, point, killed)
        patched.setattr(Path, "unlink", lambda *words, **more: None)  # a process that is killed tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            train_experiment(experiment, tmp_path, threads=1)
    assert train_experiment(experiment, tmp_path, threads=1)
