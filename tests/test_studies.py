"""Every study at its smallest size: what it says must follow from what it measured."""

import json

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.cli import main
from hauberk.studies import STUDIES, Setting, find_study

SMALL = {"train_size": 300, "test_size": 60, "settings": {"epochs": 3, "val_size": 30, "lr": 0.05}, "threads": 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module", params=STUDIES)
def made(request, shared):
    study, setting = find_study(request.param), Setting(out=shared, **SMALL)
    return request.param, study, setting, study.run(setting)


def test_a_study_is_written_down_with_its_picture(made, shared):
    name, study, _, found = made
    assert found.study == name
    assert len(study.CLAIM) > 50
    assert any(digit in found.found for digit in "0123456789")
    found.save(shared, study.draw)
    stored = json.loads((shared / f"{name}.json").read_text())
    assert stored["rows"] == json.loads(json.dumps(found.rows))
    assert (shared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (shared / f"{name}.svg").read_bytes()[:2000]
    assert (shared / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert found.claim in (shared / f"{name}.md").read_text()
    assert len((shared / f"{name}.csv").read_text().splitlines()) == 1 + len(found.rows)


def test_a_study_repeats(made):
    _, study, setting, found = made
    again = study.run(setting)
    assert again.rows == found.rows
    assert again.found == found.found


def test_path_dependence_counts_what_the_attacks_did(shared):
    setting = Setting(out=shared, **SMALL)
    found = find_study("path-dependence").run(setting)
    model, (x, y) = setting.trained("at"), setting.examples()
    right = model(x).argmax(1) == y
    for row, attack in zip(found.rows, (hb.attacks.pgd, hb.attacks.lm_pgd), strict=True):
        seen = attack(model, x, y, setting.threat, steps=50, seed=0)
        assert row["broken, %"] == pytest.approx(100 * float((seen.first_success[right] >= 0).double().mean()))
        curve = found.series["losses"]["PGD" if attack is hb.attacks.pgd else "LM-PGD"]
        shown = found.series["shown"]
        end = attack(model, x, y, setting.threat, steps=50, seed=0, return_last=True).x_adv[shown : shown + 1]
        assert curve[-1] == pytest.approx(F.cross_entropy(model(end), y[shown : shown + 1]).item(), abs=1e-5)


def test_lps_vs_pm_splits_the_variance(shared):
    setting = Setting(out=shared, **SMALL)
    found = find_study("lps-vs-pm").run(setting)
    lps, margins = torch.tensor(found.series["lps"]), torch.tensor(found.series["PM nat"], dtype=torch.float64)
    assert sum(row["examples"] for row in found.rows) == len(lps) == 60
    means = torch.stack([margins[lps == value].mean() for value in lps])
    explained = float(means.var(correction=0) / margins.var(correction=0))
    assert f"LPS explains {100 * explained:.0f} %" in found.found
    assert not torch.tensor(found.series["critical"])[lps < 10].any()


def test_the_command(shared, capsys):
    assert main(["study"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert main(["study", "restart"]) == 2
    assert "did you mean 'restarts'" in capsys.readouterr().err
    words = ["--train-size", "300", "--test-size", "20", "--epochs", "3", "--val-size", "30", "--lr", "0.05", "--threads", "1"]
    assert main(["study", "lps-vs-pm", *words, "--out", str(shared)]) == 0  # with the networks of the tests above
    said = capsys.readouterr().out
    assert "Claim: LPS takes few values" in said
    assert "20 of them looked at" in said
