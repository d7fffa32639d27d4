"""Settings of a method as options of ``hauberk train``, and names as people write them."""

import json
import re
from pathlib import Path

import pytest
import torch

from hauberk.cli import main

SHORT = ["--model", "mlp", "--train-size", "60", "--epochs", "2", "--val-steps", "1", "--threads", "1", "--quiet"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def record(folder):
    return json.loads(Path(folder, "run.json").read_text())


def helped(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *words, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_settings_of_the_method_are_options(capsys):
    words = [
        "--measure",
        "pm-nat",
        "--burn-in",
        "1",
        "--bias",
        "-0.5",
        "--step_size",
        "eps/2",
        "--set",
        "momentum=0.5",
        "slope=3",
    ]
    assert main(["train", "--method", "MAIL-Trades+AWP", *words, *SHORT, "--momentum", "0.8"]) == 0
    run = record("runs/digits-mail-trades+awp")
    given = {"name": "mail-trades+awp", "measure": "pm-nat", "burn_in": 1, "bias": -0.5, "step_size": "eps/2", "slope": 3}
    assert run["method"] == given | {"seed": 0, "preset": "paper", "momentum": 0.5}
    assert run["settings"]["momentum"] == 0.8
    assert run["data"]["train"] + run["data"]["val"] == 60


def test_help_has_the_options_of_the_method_that_is_named_and_of_no_other(capsys):
    text = helped(["--method", "MAIL-TRADES"], capsys)
    assert re.search(r"--measure pm-adv\|pm-nat\|pm-dif\|kappa\|lps Which margin.*?\(default: pm-adv\)", text)
    assert re.search(r"--beta FLOAT The trade-off.*?\(default: 5.0\)", text)
    assert "--ovr-weight" not in text
    assert "--slope" not in helped(["--method=mail-at", "--weighting", "ewat"], capsys)
    assert re.search(r"--rho .*?\(default: 0.05\)", helped(["--weight-perturbation", "sam"], capsys))
    assert "--measure pm-adv" not in helped([], capsys)


def test_an_option_of_another_method_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--method", "at", "--ovr-weight", "1"])
    assert stop.value.code == 2
    assert "--ovr-weight" in capsys.readouterr().err
    assert main(["train", "--method", "trades", "--beta", "a", "--quiet"]) == 2
    assert "beta must be a finite number, got 'a'" in capsys.readouterr().err


def test_the_command_line_takes_any_preset_that_the_method_has(capsys):
    words = ["--method", "score", "--preset", "clipped"]
    assert re.search(r"--beta FLOAT .*?\(default: 6.0\)", helped(words, capsys))
    assert main(["train", *words, "--steps", "1", "--out", "clipped", *SHORT]) == 0
    assert record("clipped")["method"]["preset"] == "clipped"
    assert 'preset = "clipped"' in Path("clipped/config.toml").read_text()
    assert main(["train", "--config", "clipped/config.toml", "--method", "trades", *SHORT]) == 2
    assert "preset is 'paper' or 'official' for this method, not 'clipped'" in capsys.readouterr().err


def test_a_method_of_ones_own_has_the_options_of_its_function(monkeypatch, capsys):
    Path("ownmethods.py").write_text(
        "import hauberk as hb\ndef build(threat, *, strength=2.0, seed=0):\n"
        "    return hb.method('trades', threat, beta=strength, steps=1)\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert "--strength" in helped(["--method", "ownmethods:build"], capsys)
    assert main(["train", "--method", "ownmethods:build", "--strength", "3", "--out", "own", *SHORT]) == 0
    assert record("own")["method"] == {"name": "ownmethods:build", "seed": 0, "strength": 3}
    words = ["--config", "own/config.toml", "--method", "ownmethods:build"]
    assert main(["train", *words, "--out", "again", "--quiet"]) == 0
    assert Path("own/last.safetensors").read_bytes() == Path("again/last.safetensors").read_bytes()


def test_a_method_is_explained_with_the_options_that_train_takes(capsys):
    assert main(["methods", "MAIL-TRADES"]) == 0
    shown = capsys.readouterr().out
    assert "--measure pm-adv|pm-nat|pm-dif|kappa|lps ('pm-adv'): which margin" in shown
    assert "--set momentum=FLOAT (0.0)" in shown
    assert "--momentum" not in shown
    text = helped(["--method", "mail-trades"], capsys)
    listed = set(re.findall(r"(?m)^  (--[\w-]+) ", shown)) - {"--set"}
    assert len(listed) > 10
    assert [name for name in sorted(listed) if f"{name} " not in text] == []


def test_what_compare_takes_for_a_method_may_be_in_any_case(capsys):
    words = ["--methods", "AT,Trades:beta=3", "--trials", "1", "--epochs", "1", "--train-size", "100", "--dry-run"]
    assert main(["compare", *words]) == 0
    assert main(["compare", "--methods", "AT,tardes", "--trials", "1", "--dry-run"]) == 2
    assert "did you mean 'trades'" in capsys.readouterr().err


def test_a_resumed_run_takes_no_option_that_it_does_not_use_and_no_other_name_than_it_has(capsys):
    assert main(["train", "--method", "trades", "--beta", "4", *SHORT, "--out", "run"]) == 0
    resume, trades = ["train", "--resume", "run", "--quiet"], ["--method", "Trades"]
    for words in (["--eps", "0.9"], ["--no-deterministic"], ["--out=x"]):
        assert main([*resume, *words]) == 2
        assert f"the settings it has; leave out {words[0].partition('=')[0]}" in capsys.readouterr().err
    given = {"data": ["--data", "cifar10"], "method": ["--method", "mart"], "steps": [*trades, "--set", "steps=3"]}
    given |= {"beta": [*trades, "--beta", "99"], "optimizer": ["--optimizer", "adamw"]}
    for name, words in given.items():
        assert main([*resume, *words]) == 2
        assert f"run was started with another {name} than" in capsys.readouterr().err
    same = [*trades, "--beta", "4", "--steps", "10", "--data", "digits", "--model", "mlp", "--optimizer", "sgd", "--no-verify"]
    assert main([*resume, *same]) == 0


def test_a_run_goes_on_where_its_data_have_moved():
    Path("moving.py").write_text("import torch\n\n\ndef load(split, folder):\n    return torch.load(f'{folder}/data.pt')\n")
    Path("old").mkdir()
    torch.save((torch.rand(60, 1, 8, 8), torch.arange(60) % 10), "old/data.pt")
    named = ["--data", "moving:load"]
    assert main(["train", *named, "--data-dir", "old", "--eps", "0.1", *SHORT, "--out", "run"]) == 0
    Path("old").rename("new")
    resume = ["train", "--resume", "run", "--quiet", *named]
    with pytest.raises(FileNotFoundError):
        main(resume)
    assert main([*resume, "--data-dir", "new"]) == 0
