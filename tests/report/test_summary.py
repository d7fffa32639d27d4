"""The first words of a report: what they say in each case, and that their numbers are those of the evaluation."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

import hauberk as hb
from hauberk.cli import main
from hauberk.data import read_table
from hauberk.evaluation import DIAGNOSTICS
from hauberk.evaluation.attacked_rows import attack_rows
from hauberk.evaluation.finding import Diagnostic
from hauberk.report.evaluation import evaluation_page
from hauberk.report.references import published_beside
from hauberk.report.standard import find_standard
from hauberk.report.summary import compare_with_standard, cost_table, summarise
from hauberk.report.words import allowed_in_words, plain_words


def evaluation(**changes):
    """An evaluation as JSON of 200 examples: 180 right without an attack, 120 under it."""
    broken = ["clean"] * 20 + ["pgd-20"] * 60 + [None] * 120
    return {
        "suite": "standard", "threat": "Linf(0.1)", "n": 200, "sequential": True, "clean_accuracy": 0.9, "robust_accuracy": 0.6,
        "clean_interval": [0.85, 0.934], "interval": [0.531, 0.665], "detection": None, "estimate": None, "certified": None,
        "diagnostics": [{"name": "gradients", "measured": "fine", "verdict": "ok", "advice": ""}] * 3,
        "by_attack": {"pgd-20": 0.6}, "examples": [{"i": i, "label": i % 2, "broken_by": b} for i, b in enumerate(broken)],
        "provenance": {"data": "digits", "subset": "all", "seed": 0}, "risk": None, "class_names": [],
    } | changes  # fmt: skip


def doubted(name, verdict):
    return [{"name": name, "measured": "odd", "verdict": verdict, "advice": "look"}, *evaluation()["diagnostics"]]


def test_costs_by_a_matrix_are_said_and_laid_out_the_dearest_mistake_first():
    x = torch.tensor([[0.1], [0.48], [0.9], [0.95]])
    model = torch.nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))  # class 1 above 1/2
    y = torch.tensor([0, 0, 1, 0])
    found = hb.evaluate(
        model, (x, y), threat=hb.Linf(0.1), attacks=["fgsm"], costs=[[0, 1], [8, 0]], diagnostics="cheap", quiet=True
    )
    said = {**found.to_dict(), "class_names": ["good", "bad"]}
    assert summarise(said)[-1] == "By the given matrix, mistakes cost 0.25 an example, and under attack at least 0.5."
    assert cost_table(said).rows == [["good taken for bad", "1", 1, 2]]
    assert cost_table(evaluation()) is None
    dear = {"n": 3, "costs": [[0, 1], [8, 0]], "confusion": [[1, 1], [0, 1]], "confusion_attacked": [[0, 2], [1, 0]]}
    assert [row[:2] for row in cost_table(evaluation(cost=dear)).rows] == [["1 taken for 0", "8"], ["0 taken for 1", "1"]]


def test_published_numbers_stand_beside_those_of_the_same_data_and_threat_model_only():
    def shown(data, threat, method=""):
        return published_beside(evaluation(threat=threat, provenance={"data": data}), method)

    assert shown("digits", "Linf(8/255)") is None
    assert shown("cifar10", "Linf(4/255)") is None
    rows = {row[0]: row[1:] for row in shown("cifar10", "Linf(8/255)", "gairat").rows}
    assert rows["gairat, resnet18"] == ["83.22 ± 0.06", "33.35 ± 0.57", "MAIL paper, Tables 2 and 3"]
    assert rows["mail-trades, wrn-32-10"][:2] == ["84.00 ± 0.15", "53.90 ± 0.22"]
    note = "a note on MART: approximate, network and attack not named"
    assert (rows["trades"], rows["mart"]) == (["87", "46", note], ["86", "49", note])
    assert len(rows) == 2 * 4 + 3 + 1 == len(shown("cifar10", "Linf(8/255)", "trades").rows) + 2
    x = torch.rand(6, 2)
    found = hb.evaluate(
        torch.nn.Linear(2, 2),
        (x, torch.arange(6) % 2),
        threat=hb.Linf("8/255"),
        attacks=["fgsm"],
        diagnostics="cheap",
        quiet=True,
    ).to_dict()
    for data, there in (("arrays", False), ("cifar10", True)):
        found["provenance"]["data"] = data
        blocks = [block for section in evaluation_page(found, "").sections for block in section.blocks]
        named = {getattr(block, "name", ""): block for block in blocks}
        assert ("evaluation-published" in named) == there
        drawn = [line for line in named["evaluation-attacks"].picture.axes[0].lines if "%" in str(line.get_label())]
        assert [line.get_xdata()[0] for line in drawn] == ([44.9, 50.6, 64.25] if there else [])
        assert len({line.get_linestyle() for line in drawn}) == len(drawn)  # told apart in grey


def test_three_sentences_with_the_numbers_of_the_evaluation():
    clean, attacked, belief = summarise(evaluation())
    assert clean == "Without an attack the model is right for 90.0 % of 200 examples (95 % interval 85.0 to 93.4 %)."
    assert "every number of an input may change by up to 0.1" in attacked
    assert "at most 60.0 % (95 % interval 53.1 to 66.5 %)" in attacked
    assert "nothing is proved" in attacked
    assert "at least" not in attacked
    assert belief.startswith("Can it be believed? Yes, as an upper limit: 3 checks found nothing wrong")


def test_certificates_give_at_least_and_at_most():
    found = evaluation(certified={"accuracy": 0.455, "interval": [0.4, 0.5], "undecided": 0.145, "by": {}, "seconds": 1.0})
    attacked = summarise(found)[1]
    assert "at least 45.5 %, which is proved, and at most 60.0 %" in attacked
    assert "nothing is proved" not in attacked
    assert "proved holds in any case" in summarise(found | {"diagnostics": doubted("gradients", "invalid")})[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "quick"}, "As a first look only"),
        ({"suite": "custom"}, "As a first look only"),
        ({"diagnostics": []}, "Nobody looked"),
        ({"diagnostics": doubted("more-steps-help", "warning")}, "With care. The attacks were stopped"),
        ({"n": 60}, "60 examples are few"),
        ({"diagnostics": doubted("mine", "warning")}, "odd. look"),
    ],
)
def test_whether_it_can_be_believed(changes, words):
    said = summarise(evaluation(**changes))
    assert said[2].startswith("Can it be believed?")
    assert words in said[2]
    assert "Yes, as an upper limit" not in said[2] or "n" in changes


def test_what_cannot_be_believed_is_said_before_any_number():
    first = summarise(evaluation(diagnostics=doubted("gradients", "invalid")))[0]
    assert first.startswith("Can it be believed? No.")
    assert "Yes" not in " ".join(summarise(evaluation(diagnostics=doubted("gradients", "invalid"))))


def test_estimates_and_detection_are_named():
    assert "at most about 60.0 %" in summarise(evaluation(estimate={"text": ""}))[1]
    assert "or recognises the attack" in summarise(evaluation(detection={"detection_rate": 0.5, "false_alarms": 0.1}))[1]


def test_every_check_has_plain_words():
    jargon = re.compile(
        r"gradient|logit|mask|PGD|APGD|FGSM|cross-entropy|ε|epsilon|converge|margin|batch|Square", re.IGNORECASE
    )
    for name in DIAGNOSTICS:
        for full in (name, f"Linf(0.1): {name}"):
            said = plain_words(Diagnostic(full, "MEASURED", "warning", "ADVICE"))
            assert "MEASURED" not in said, name
            assert not jargon.search(said), (name, said)
    assert "Trial and error" in plain_words(Diagnostic("fab-beats-gradients", "m", "warning", "a"))
    assert plain_words(Diagnostic("own", "m", "warning", "a")) == "m. a"


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ("L2(0.5)", "as a distance"),
        ("L1(12)", "in sum"),
        ("L0(3)", "3 numbers of an input may become anything"),
        ("Linf(8/255)", "up to 8/255"),
        ("Linf(0.1) and L2(1)", "the attacker may do Linf(0.1) and L2(1)"),
    ],
)
def test_what_the_attacker_may_do(threat, words):
    assert words in allowed_in_words(evaluation(threat=threat))


def test_standard_beside_robust_pairs_the_examples():
    broken = ["clean"] * 10 + ["pgd-20"] * 110 + [None] * 80
    examples = [{"i": i, "label": i % 2, "broken_by": b} for i, b in enumerate(broken)]
    standard = evaluation(clean_accuracy=0.95, robust_accuracy=0.4, examples=examples)
    sentence, table = compare_with_standard(evaluation(), standard, (50.0, 10.0))
    difference = np.r_[np.zeros(80), np.ones(40), np.zeros(80)]  # of the examples that one of the two withstands
    spread = 200 * difference.std(ddof=1) / 200**0.5
    assert f"+20.0 ± {spread:.1f} points under attack" in sentence
    assert "-5.0 ± " in sentence
    assert "50 s instead of 10 s" in sentence
    assert ["training took", "50 s", "10 s", "× 5.0"] in list(table.rows)
    assert "cannot be believed" not in sentence
    doubt = standard | {"diagnostics": doubted("gradients", "invalid")}
    assert "cannot be believed" in compare_with_standard(evaluation(), doubt, (None, None))[0]


def stored(loans, method):
    return json.loads(next((loans / "runs" / method).glob("evaluations/*/evaluation.json")).read_text())


def test_an_evaluation_of_a_table_holds_what_errors_cost(loans):
    from hauberk.evaluation import measure_risk

    table, found = read_table(loans / "loans.toml"), stored(loans, "standard")
    model = hb.load(loans / "runs" / "standard")
    risk = measure_risk(model, table.test, threat=table.threat, miss=5, false_alarm=1)
    for key in ("recall", "precision", "auc", "cost"):
        assert found["risk"][key] == pytest.approx(getattr(risk, key))
        assert found["risk"][f"{key}_attacked"] == pytest.approx(getattr(risk, f"{key}_attacked"))
    assert found["risk"]["cost_attacked"] > found["risk"]["cost"]
    assert found["class_names"] == ["no", "<script>yes"]
    assert found["risk"]["miss"] == 5


def test_the_report_of_a_table_says_it_in_its_own_words(loans):
    html, found = (loans / "runs" / "at" / "report.html").read_text(), stored(loans, "at")
    text = " ".join(unescape(re.sub("<[^>]+>", " ", html)).split())
    risk = found["risk"]
    assert f"recognises {100 * risk['recall']:.1f} %, under attack {100 * risk['recall_attacked']:.1f} %" in text
    assert f"{risk['auc']:.3g} {risk['auc_attacked']:.3g}" in text  # a row of the table
    assert "3 of 5 columns can change; children may change but cannot: ε is below 1 unit" in text
    assert "per feature" not in text[: text.index("threat model")]
    assert "Beside standard training of the same network" in text
    assert f"at most {100 * stored(loans, 'standard')['robust_accuracy']:.1f} % under the same attacks" in text
    assert text.index("Without an attack the model is right") < text.index("What errors cost")
    assert "Beside standard training" not in (loans / "runs" / "standard" / "report.html").read_text()


def test_names_of_columns_and_classes_are_text(loans):
    html = (loans / "runs" / "at" / "report.html").read_text()
    assert "<script" not in html
    assert "<b>debt" not in html
    assert "&lt;script&gt;yes" in html


def test_rows_before_and_after_mark_what_changed_and_nothing_else(loans):
    html = (loans / "runs" / "standard" / "report.html").read_text()
    marked = [unescape(cell) for cell in re.findall("<mark>(.*?)</mark>", html)]
    assert marked
    pairs = [cell.split(" → ") for cell in marked]
    assert all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)
    rows = (loans / "figures-standard" / "rows-under-attack.csv").read_text().splitlines()
    cells = {line.split(",")[0]: line.split(",")[1:] for line in rows}
    assert len(cells["true class"]) == 5
    assert "no → <script>yes" in cells["the model says"] + marked
    assert not any("→" in cell for name in ("children", "sex") for cell in cells[name])
    for cell in cells["income"]:  # may fall only
        old, _, new = cell.partition(" → ")
        assert not new or float(new) < float(old)
    assert sum("→" in cell for line in cells.values() for cell in line) == len(marked)


def test_the_curve_of_a_table_is_over_multiples_of_its_own_eps(loans):
    header, *lines = (loans / "figures-at" / "evaluation-eps.csv").read_text().splitlines()
    assert header == '"times ε","robust, %"' or header == '"times ε","robust, %"'.replace('"times ε"', "times ε")
    assert {"1", "2", "4"} <= {line.split(",")[0] for line in lines}


@pytest.mark.parametrize("what", ["data_digest", "threat_digest", None])
def test_a_standard_run_of_other_rows_or_limits_stands_beside_no_other(loans, tmp_path, what):
    found, plan = stored(loans, "at"), json.loads((loans / "runs" / "at" / "run.json").read_text())
    other = {**found, "provenance": {**found["provenance"], **({what: "another"} if what else {})}}
    folder = tmp_path / "standard" / "evaluations" / "custom"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(other))
    (tmp_path / "standard" / "run.json").write_text((loans / "runs" / "standard" / "run.json").read_text())
    beside = find_standard(tmp_path / "at", plan, [found])
    assert (beside is None) == (what is not None)


def test_a_standard_run_is_given_by_its_folder_or_refused(loans, tmp_path, capsys):
    robust, standard = loans / "runs" / "at", loans / "runs" / "standard"
    assert main(["report", str(robust), "--out", str(tmp_path / "r.html"), "--standard", str(standard)]) == 0
    assert "Standard beside robust" in (tmp_path / "r.html").read_text()
    assert main(["report", str(robust), "--out", str(tmp_path / "r.html"), "--standard", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    (tmp_path / "comparison.json").write_text("{}")
    assert main(["report", str(tmp_path), "--standard", str(standard)]) == 2
    assert "is neither" in capsys.readouterr().err


def test_a_lone_evaluation_of_a_table_shows_its_rows_its_limits_and_the_standard_model_beside_it(loans, tmp_path):
    table = read_table(loans / "loans.toml")
    how = {"threat": table.threat, "attacks": ["pgd-20"], "diagnostics": "cheap", "quiet": True}
    hb.evaluate(hb.load(loans / "runs" / "at"), table.test, out=tmp_path / "ours", **how)
    found = json.loads((tmp_path / "ours" / "evaluation.json").read_text())["attacked_rows"]
    assert [column["can_change"] for column in found["columns"] if column["name"] == "sex"] == ["no"]
    assert len(found["rows"]) == 5
    for row in found["rows"]:
        before, after = row["clean"], row["attacked"]
        assert after["income"] <= before["income"]  # may fall only
        assert (after["sex"], after["children"]) == (before["sex"], before["children"])
    command = ["report", str(tmp_path / "ours"), "--figures", str(tmp_path / "figures"), "--standard"]
    assert main([*command, str(loans / "runs" / "standard")]) == 0
    text = " ".join(unescape(re.sub("<[^>]+>", " ", (tmp_path / "ours" / "report.html").read_text())).split())
    for heading in ("Standard beside robust", "What errors cost", "Examples", "by up to", f"--data {loans / 'loans.toml'}"):
        assert heading in text
    assert "Beside the standard model (" in text
    assert text.index("test rows before → after an attack (PGD-50 on the margin") < text.index("Accuracy under each attack")
    assert {"rows-under-attack.csv", "what-can-change.csv"} <= {path.name for path in (tmp_path / "figures").iterdir()}


def test_rows_of_a_forest_are_what_it_says_of_them(loans):
    table = read_table(loans / "loans.toml")
    forest = RandomForestClassifier(5, max_depth=4, random_state=0)
    columns = [name for name, feature in table.schema.features.items() if feature.kind != "category"]
    rows = table.rows(table.train.x)
    forest.fit(rows[columns].to_numpy(), table.train.y.numpy())
    places = [table.train.places(name)[0] for name in columns]
    model = hb.models.GradientFree(lambda x: forest.predict_proba(x[:, places]), "forest")
    found = attack_rows(model, table.test, threat=table.threat)
    assert found.attack == "Square of 200 queries"
    assert any(row["predicted"] == row["label"] != row["predicted_attacked"] for row in found.rows)
    for row in found.rows:
        for said, values in ((row["predicted"], row["clean"]), (row["predicted_attacked"], row["attacked"])):
            assert forest.predict([[values[name] for name in columns]])[0] == said


def test_the_page_prints_and_fits_a_phone(loans):
    html = (loans / "runs" / "at" / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert 'name="viewport" content="width=device-width' in html
    assert "overflow-x: auto" in style
    assert "@media print" in style
    widths = [float(number) for number in re.findall(r"(?<!max-)(?<!-)width: ([\d.]+)(?:px|rem)", style)]
    assert all(width <= 20 for width in widths)  # nothing is wider than a phone by itself
    tables = html.count("<table>")
    assert tables == len(re.findall(r'<div class="wide"[^>]*>\s*<table>', html)) > 5
