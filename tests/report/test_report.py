"""The report: what it says is what was measured, it needs no network, and a browser shows it at any width, light and dark."""

import csv
import json
import os
import re
import shlex
import shutil
from dataclasses import asdict
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import hauberk as hb
from hauberk.cli import main
from hauberk.experiments import Experiment, collect, run_experiment
from hauberk.experiments.options import EvaluationOptions, ModelOptions, SubsetOptions
from hauberk.experiments.studies import StudyContext, find_study
from hauberk.report.reproduce import evaluate_command, train_command
from helpers import few_images, made_once

MLP = ModelOptions("mlp")
SCREENSHOTS = os.environ.get("HAUBERK_SCREENSHOTS", "")  # a folder to keep pictures of the pages in, to look at
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits):
    """A run with its evaluation, a comparison and a study, each with its report."""
    return made_once(tmp_path_factory, "reports", lambda folder: make_reports(folder, digits))


def make_reports(folder, digits):
    torch.set_num_threads(1)  # fixtures of a module run before those of a test
    options = {"epochs": 4, "threads": 1, "quiet": True, "lr": 0.05, "milestones": (0.5,), "schedule": "steps"}
    method = hb.method("mail-at", hb.Linf(0.1), burn_in=1)
    run = hb.train("mlp", digits["train"], method=method, out=folder / "run", **options)
    small = hb.data.TensorDataset(digits["test"].x[:40], digits["test"].y[:40], 10, "digits")
    for suite in ("quick", "papers"):
        where = folder / "run" / "evaluations" / suite
        hb.evaluate(run.model, small, threat=hb.Linf(0.1), suite=suite, out=where, quiet=True)
    curve = {
        "attacks": ["fmn-100"],
        "within": ["pgd-20"],
        "eps": [0.05, 0.1],
        "out": folder / "run" / "evaluations" / "curve-1",
    }
    hb.robustness_curve(run.model, small, threat=hb.Linf(0.1), quiet=True, **curve)
    hb.certify(run.model, small, threat=hb.Linf(0.1), out=folder / "run" / "certificates" / "1", quiet=True)
    experiments = [
        Experiment(
            m, s, model=MLP, subset=SubsetOptions(200, 20), evaluation=EvaluationOptions("quick"), settings={"epochs": 1}
        )
        for m in ("at", "trades")
        for s in (0, 1)
    ]
    for experiment in experiments:
        run_experiment(experiment, folder / "compare", threads=1)
    (folder / "compare" / "comparison.json").write_text(json.dumps(asdict(collect(experiments, folder / "compare"))))
    study = find_study("saliency")
    base = Experiment("at", 0, model=MLP, subset=SubsetOptions(200, 30), settings={"epochs": 1})
    found = study.run(StudyContext(base, folder / "study", threads=1, trials=1))
    found.save(folder / "study", study.draw)
    for target in ("run", "compare", "study"):
        assert main(["report", str(folder / target), "--figures", str(folder / f"{target}-figures")]) == 0


class Outline(HTMLParser):
    """Collects what a page links to and how it is built."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loads, self.headings, self.unnamed = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        have = dict(attributes)
        self.ids += [have["id"]] if "id" in have else []
        self.links += [have["href"]] if tag == "a" else []
        self.loads += [v for k, v in have.items() if k in ("src", "href", "xlink:href") and not v.startswith(("#", "data:"))]
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if have.get("role") in ("img", "region") and not have.get("aria-label"):
            self.unnamed.append(tag)
        if tag == "th" and "scope" not in have:
            self.unnamed.append(tag)


@pytest.mark.parametrize("target", ["run", "compare", "study"])
def test_a_report_is_one_file_that_needs_nothing(home, target):
    html = (home / target / "report.html").read_text()
    page = Outline()
    page.feed(html)
    assert page.loads == []
    assert "<script" not in html
    assert not re.findall(r"@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids)), "ids are there twice"
    assert all(link[1:] in page.ids for link in page.links)
    assert page.headings[0] == 1
    assert set(page.headings[1:]) == {2}
    assert page.unnamed == []
    assert len(html) < 3_000_000


def test_the_headline_is_the_strongest_evaluation(home):
    html = " ".join((home / "run" / "report.html").read_text().split())
    found = json.loads((home / "run" / "evaluations" / "papers" / "evaluation.json").read_text())
    doubted = " (!)" if any(d["verdict"] == "warning" for d in found["diagnostics"]) else ""
    assert f'<dd class="value">{100 * found["robust_accuracy"]:.1f} %{doubted}</dd>' in html
    assert "95 % interval" in html
    wrong = sum(example["broken_by"] == "clean" for example in found["examples"])
    assert wrong > 1
    assert f'wrong without an attack</th><td class="c1 number">{wrong}</td>' in re.sub("> +<", "><", html)
    for heading in (
        "Attacks",
        "Robust accuracy against ε",
        "Classes",
        "Can it be believed?",
        "Training",
        "Weights",
        "Examples",
    ):
        assert f">{heading}</h2>" in html
    assert "hauberk train --data digits --model mlp --method mail-at" in html


def test_a_report_of_a_run_lists_everything_that_was_measured(home):
    with (home / "run-figures" / "all-evaluations.csv").open() as file:
        rows = {row["evaluation"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["papers (in detail below)", "quick", "curve-1", "certificates/1"]
    stored = {
        name: json.loads(next((home / "run").glob(f"*/{name}/[!p]*.json")).read_text()) for name in ("quick", "curve-1", "1")
    }
    quick, proved = rows["quick"], stored["1"]["certified_accuracy"]
    assert float(quick["clean, %"]) == pytest.approx(100 * stored["quick"]["clean_accuracy"], abs=0.05)
    assert quick["at most, %"].split(" ")[0] == f"{100 * stored['quick']['robust_accuracy']:.1f}"
    assert quick["by"] == "fgsm, pgd-20, cw-30, pgd-100"
    assert quick["date"] == stored["quick"]["provenance"]["versions"]["date"][:10]
    assert rows["curve-1"]["at most, %"] == f"{100 * stored['curve-1']['curve'][1]['robust_accuracy']:.1f}"
    # Certificates are of the same examples, weights and threat model as the evaluations, so that these have a floor.
    assert {row["at least, %"] for row in rows.values()} == {f"{100 * proved:.1f}", ""}
    assert rows["papers (in detail below)"]["at least, %"] == f"{100 * proved:.1f}"
    html = (home / "run" / "report.html").read_text()
    assert "Robust accuracy at every ε, at most" in html
    assert f"at least {100 * proved:.1f} %, which is proved" in html


def test_the_evaluation_in_detail_is_of_the_best_checkpoint_under_the_threat_model_of_the_training(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "evaluations" / "papers" / "evaluation.json"
    found = json.loads(path.read_text())
    for key, said in (("model_id", "of other weights"), ("threat_digest", "")):
        path.write_text(json.dumps({**found, "provenance": {**found["provenance"], key: "another"}}))
        assert main(["report", str(tmp_path / "run")]) == 0
        html = (tmp_path / "run" / "report.html").read_text()
        assert "quick (in detail below)" in html
        assert "Evaluation, quick" not in html
        assert ("of other weights" in html) == bool(said)


def test_warnings_come_before_numbers(home, tmp_path):
    found = json.loads((home / "run" / "evaluations" / "quick" / "evaluation.json").read_text())
    found["diagnostics"][0] |= {"verdict": "warning", "measured": "<b>odd</b>", "advice": "Look."}
    found["diagnostics"][1] |= {"verdict": "invalid", "measured": "masked", "advice": "Do not believe it."}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    assert main(["report", str(tmp_path / "evaluation.json")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "(INVALID)" in html
    assert html.index('class="alert invalid"') < html.index('class="alert warning"') < html.index('class="metrics"')
    assert "&lt;b&gt;odd" in html


def test_pictures_and_tables_come_as_files_for_papers(home):
    for target, name in (("run", "accuracy"), ("run", "areas"), ("compare", "compare-clean"), ("study", "saliency")):
        folder = home / f"{target}-figures"
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert imread(folder / f"{name}.png")[..., 3].min() == 1  # dark ink on a ground of its own
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        svg = (folder / f"{name}.svg").read_text()
        assert "<svg" in svg
        written = " ".join(re.findall("<!-- (.*?) -->", svg))
        assert "digits, mlp, Linf(0.1), " in written  # the caption
        assert "seed" in written
        assert (name not in ("accuracy", "areas")) or "1,294 training examples, 143 held out for validation" in written
    table = home / "compare-figures" / "comparison"
    assert len(table.with_suffix(".csv").read_text().splitlines()) == 3
    assert r"\toprule" in table.with_suffix(".tex").read_text()
    assert r"fgsm, \%" in table.with_suffix(".tex").read_text()
    assert table.with_suffix(".md").read_text().startswith("| method |")


def test_what_cannot_be_reported_on_is_said_in_a_line(tmp_path, home, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "comparison.json").write_text('{"about": 3}')
    assert main(["report", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "evaluation.json").write_text('{"suite": "quick"}')
    assert main(["report", str(tmp_path / "evaluation.json")]) == 2
    assert "damaged" in capsys.readouterr().err


HOSTILE = ["/../../../out", "../out", "..", "/tmp/hauberk-out", "a/b", "a\\b", "a:b", "x" * 400, "é" * 200, "\n"]


@pytest.mark.filterwarnings("ignore:Glyph")  # what no font can show
def test_names_in_a_foreign_comparison_choose_no_path(tmp_path, home):
    stored = json.loads((home / "compare" / "comparison.json").read_text())
    values = {method: {name: [50.0, 60.0] for name in HOSTILE} for method in stored["methods"]}
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    (place / "comparison.json").write_text(json.dumps(stored | {"columns": HOSTILE, "values": values}))
    before = set(tmp_path.rglob("*"))
    status = main(["report", str(place), "--figures", str(place / "figures")])
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new} == {place, place / "figures"}
    assert status == 0
    pictures = [path for path in new if path.suffix == ".png"]
    assert len(pictures) == len(HOSTILE)  # none in the place of another
    assert all(path.name.startswith("compare-") and len(path.name.encode()) < 200 for path in pictures)


def test_names_in_a_foreign_comparison_are_text_and_nothing_else(tmp_path, home):
    stored = json.loads((home / "compare" / "comparison.json").read_text())
    names = ["$\\frac$", "a$b$", "<script>alert(1)</script>", "\\input{x}", "a|b", "a\nb"]
    values = {method: {name: [50.0, 60.0] for name in names} for method in stored["methods"]}
    (tmp_path / "comparison.json").write_text(json.dumps(stored | {"columns": names, "values": values}))
    assert main(["report", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert html.count(">a$b$, %</text>") == 1  # a label of its picture, not a formula
    latex = (tmp_path / "figures" / "comparison.tex").read_text()
    assert r"\textbackslash{}input\{x\}, \%" in latex
    markdown = (tmp_path / "figures" / "comparison.md").read_text().splitlines()
    assert {line.count("|") for line in markdown} == {len(names) + 3}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("compare-worst case", "compare-worst case"),
        ("trades beta=6", "trades beta=6"),
        ("weiß", "weiß"),
        ("../x", "-x"),
        ("..", "unnamed"),
        ("", "unnamed"),
        (".hidden", "hidden"),
        ("a/b\\c\nd\0e\ud800f", "a-b-c-d-e-f"),
    ],
)
def test_a_plain_name_is_a_file_in_one_folder(text, name):
    from hauberk.core.io import plain_name

    assert plain_name(text) == name


def test_many_classes_are_a_table_the_worst_first(home, tmp_path):
    found = json.loads((home / "run" / "evaluations" / "quick" / "evaluation.json").read_text())
    found["by_class"] = {str(k): (k % 8) / 8 for k in range(40)}  # most of them without an example
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    assert main(["report", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 0
    lines = (tmp_path / "figures" / "evaluation-classes.csv").read_text().splitlines()[1:]
    accuracies = [float(line.split(",")[2]) for line in lines]
    assert len(accuracies) == 40
    assert accuracies == sorted(accuracies)
    assert not (tmp_path / "figures" / "evaluation-classes.png").exists()


def test_numbers_that_could_not_be_told_do_not_stop_a_report(home, tmp_path):
    found = json.loads((home / "run" / "evaluations" / "quick" / "evaluation.json").read_text())
    for example in found["examples"][::2]:
        example |= {"clean_margin": None, "margin": None, "norm": None}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    assert main(["report", str(tmp_path / "evaluation.json")]) == 0


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("target", ["run", "compare", "study", "table"])
def test_a_browser_shows_it_at_any_width_light_and_dark_and_prints_it(home, target, request):
    api = pytest.importorskip("playwright.sync_api")
    folder = request.getfixturevalue("loans") / "runs" / "at" if target == "table" else home / target
    problems, asked = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        for width, scheme in ((1280, "light"), (768, "dark"), (360, "light")):
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto((folder / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
            if SCREENSHOTS:
                page.screenshot(path=Path(SCREENSHOTS) / f"{target}-{width}.png", full_page=True)
            check_colours(page, scheme)
            assert all(box["width"] > 150 for f in page.query_selector_all("figure") if (box := f.bounding_box()))
            check_keyboard(page)
            check_choice(page)
            if width == 768:  # about that of a sheet
                check_print(page)
            page.close()
        browser.close()
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def check_print(page):
    """Printed, it has some pages, nothing is cut off on the right, and what has to be clicked open on a screen is open."""
    printed = page.pdf(prefer_css_page_size=True, path=Path(SCREENSHOTS) / f"{page.title()}.pdf" if SCREENSHOTS else None)
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", printed)) < 30
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "what is printed is cut off"
    for closed in page.query_selector_all("figure details:not([open]) table")[:2]:
        assert closed.is_visible()


def check_colours(page, scheme):
    back, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (brightness(back) > brightness(ink)) == (scheme == "light")
    assert contrast(back, ink) > 7
    for text in page.query_selector_all("figure svg text")[:20]:  # words in pictures follow the page
        assert contrast(back, text.evaluate("e => getComputedStyle(e).fill")) > 4.5
    for soft in page.query_selector_all("figcaption, caption, .about, a, .note")[:20]:
        assert contrast(back, soft.evaluate("e => getComputedStyle(e).color")) > 4.5


def check_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    for details in page.query_selector_all("figure details")[:2]:
        details.query_selector("summary").focus()
        page.keyboard.press("Enter")
        assert details.get_attribute("open") is not None
        assert details.query_selector("table").is_visible()


def check_choice(page):
    """Rows and columns that are chosen away are not to be seen, and come back."""
    for choice in page.query_selector_all(".choose"):
        choice.evaluate("e => e.open = true")
        for box in (choice.query_selector("[id$=-r1]"), choice.query_selector("[id$=-c2]")):
            kind = box.get_attribute("id").rpartition("-")[2]
            cells = page.query_selector_all(f"#{choice.evaluate('e => e.parentElement.id')} .{kind}")
            assert cells
            for shown in (True, False, True):
                assert {cell.is_visible() for cell in cells} == {shown}
                box.click()
            box.check()


def brightness(colour):
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG's contrast ratio of two colours as the browser writes them."""
    high, low = sorted((brightness(one), brightness(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_command_of_several_threat_models_names_them_all():
    model, x = torch.nn.Linear(4, 2), torch.rand(6, 4)
    threats = [hb.Linf(0.01), hb.L2(0.1)]
    found = hb.evaluate(model, (x, model(x).argmax(1)), threat=threats, attacks=["fgsm", "pgd-20"], quiet=True).to_dict()
    words = evaluate_command("RUN", found).split()
    assert words[3:] == ["--attacks", "fgsm", "pgd-20", "--norm", "Linf", "--eps", "0.01", "--union", "L2:0.1"]


def test_what_a_report_says_to_type_makes_the_same_again(tmp_path, monkeypatch):
    from hauberk.core.io import read_json

    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = "train --method mail-mart --epochs 2 --eps 0.08 --schedule steps --milestones 0.5 --batch-size 96 --augment crop "
    asked += "--class-weights balanced --normalize --seed 3 --threads 1 --ema 0.9 --beta 4 --set burn_in=1 measure=pm-nat "
    assert main([*asked.split(), "step_size=eps/3", "--out", "run", "--quiet"]) == 0
    attacked = "evaluate run --attacks pgd-10 fgsm --sequential --n 20 --seed 5 --eps 0.05 --diagnostics cheap"
    costs = [",".join("0" if k == y else f"{1 + k / 2:g}" for k in range(10)) for y in range(10)]
    assert main([*attacked.split(), "--costs", *costs, "--quiet"]) == 0
    evaluated = read_json(next(tmp_path.glob("here/run/evaluations/*/evaluation.json")))
    monkeypatch.chdir(tmp_path / "there")
    commands = [train_command(read_json(tmp_path / "here/run/run.json")), evaluate_command("runs/digits-mail-mart", evaluated)]
    for command in commands:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command
    again = tmp_path / "there/runs/digits-mail-mart"
    ours, theirs = hb.load(tmp_path / "here/run").state_dict(), hb.load(again).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    repeated = read_json(next(again.glob("evaluations/*/evaluation.json")))
    for key in ("suite", "threat", "sequential", "n", "examples", "cost"):
        assert repeated[key] == evaluated[key]
    assert main(["report", str(again)]) == 0
    shown = unescape((again / "report.html").read_text())
    assert commands[0] in shown
    assert f"hauberk train --config {again / 'config.toml'}" in shown


def test_a_method_without_the_published_settings_is_made_again_without_them(tmp_path):
    from hauberk.core.io import read_json
    from hauberk.report.reproduce import train_command

    how = hb.method("mart", hb.Linf("8/255"), preset="official", steps=1)  # trains with β 5, not the script's 6
    hb.train("wrn-10-1", few_images("cifar10"), method=how, epochs=1, val_size=0, out=tmp_path / "run", quiet=True)
    assert "beta=5.0" in train_command(read_json(tmp_path / "run/run.json"))


def test_a_report_of_what_was_made_in_python_says_so(tmp_path, digits):
    x, y = digits["train"].fetch(torch.arange(64))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    hb.train(net, (x, y), threat=hb.Linf(0.1), epochs=1, val_size=0, out=tmp_path / "run", quiet=True)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Made in Python" in (tmp_path / "run" / "report.html").read_text()
