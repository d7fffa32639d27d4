"""config.toml: what a run writes trains the same again, and what one writes oneself is checked."""

import json
import re
from pathlib import Path

import pytest
import torch

import hauberk as hb
from hauberk.cli import main
from hauberk.core.toml import parse_toml, toml_lines
from hauberk.data.standard_subset import first_of
from hauberk.experiments.config_file import known_keys

SHORT = ["--epochs", "1", "--val-steps", "1", "--threads", "1", "--quiet"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder, which="last"):
    return Path(folder, f"{which}.safetensors").read_bytes()


def test_the_file_of_a_run_repeats_it_bit_for_bit_and_writes_the_same_file(workplace, capsys):
    words = ["--method", "MAIL-trades", "--model", "mlp", "--normalize", "--train-size", "300", "--burn-in", "0", "--bias=-0.5"]
    assert main(["train", *words, "--seed", "3", "--out", "first", *SHORT]) == 0
    assert main(["train", "--config", "first/config.toml", "--out", "again", "--quiet"]) == 0
    assert weights("first") == weights("again")
    assert Path("first/config.toml").read_text() == Path("again/config.toml").read_text()
    arguments = hb.read_config("first/config.toml")
    run = hb.train(**arguments, out="python", quiet=True)
    assert weights("first") == weights("python")
    assert len(arguments["train_set"]) == 300
    assert run.metrics[0]["weight_q90"] > 1.001  # it was reweighted
    assert main(["train", "--config", "first/config.toml", "--seed", "4", "--out", "other", "--quiet"]) == 0
    assert weights("first") != weights("other")
    assert main(["train", "--resume", "first", "--quiet"]) == 0  # finished, on the first 300 examples
    assert "train_size" in json.loads(Path("first/run.json").read_text())["data"]


def test_a_file_holds_every_setting_of_the_training_and_of_the_method(workplace):
    run = hb.train("mlp", small(), method="mail-at+awp", threat=hb.L2("1/2"), epochs=4, val_steps=1, out="run", quiet=True)
    found = parse_toml(Path(run.folder, "config.toml").read_text(), "x", "x")
    own = found.pop("hyperparameters")
    not_there = {"verify", "schedule_preset", "init", "extra", "extra_labels", "extra_share", "data_dir", "train_size"}
    assert found.keys() == known_keys().keys() - not_there
    assert own["slope"] == 10.0
    assert own["gamma"] == 0.01
    assert own["steps"] == 10
    assert (found["norm"], found["eps"]) == ("L2", "1/2")


def small(n=60):
    x, y = hb.data.load_data("digits", "train").fetch(torch.arange(n))
    return x, y


def test_flags_win_and_what_they_replace_goes(workplace, capsys):
    Path("mine.toml").write_text(
        "method = 'mail-at'\nepochs = 7\nmomentum = 0.8\nmodel = 'mlp'\n[hyperparameters]\nslope = 5.0\n"
    )
    both = ["train", "--config", "mine.toml", "--train-size", "60", "--val-steps", "1", "--threads", "1"]
    flags = ["--epochs", "1", "--burn-in", "0", "--optimizer", "adamw", "--lr", "0.001"]
    assert main([*both, *flags, "--out", "a", "--quiet"]) == 0
    record = json.loads(Path("a/run.json").read_text())
    assert record["settings"]["epochs"] == 1
    assert "momentum" not in record["settings"]
    assert record["method"]["slope"] == 5.0
    assert main([*both, "--epochs", "1", "--method", "trades", "--out", "b"]) == 0
    assert "Left out of it, because they are of another method: slope" in capsys.readouterr().out
    assert json.loads(Path("b/run.json").read_text())["settings"]["momentum"] == 0.8
    with pytest.raises(SystemExit):
        main(["train", "--config", "mine.toml", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for shown in (
        r"--epochs INT [^(]*\(default: 7\)",
        r"--slope FLOAT .*?\(default: 5.0\)",
        r"--model STR .*?\(default: mlp\)",
    ):
        assert re.search(shown, text), shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochz = 3", "unknown key 'epochz'; did you mean 'epochs'?"),
        ("epochs = 'a'", "epochs must be a whole number"),
        ("epochs = true", "epochs must be a whole number"),
        ("schedule = 'sometimes'", "schedule must be 'steps', 'cosine'"),
        ("steps = 3", r"steps is of the method: it belongs into the table \[hyperparameters\]"),
        ("method = 'trads'", "did you mean 'trades'"),
        ("[hyperparameters]\nstep = 3", "unknown setting of at 'step'; did you mean 'steps'?"),
        ("hyperparameters = 3", "is a table"),
        ("train_size = -1", "must not be negative"),
        ("eps = true", "eps must be text"),
        ("norm = 'L2'\n[threat]\nnorm = 'L2'\neps = 1", "both say what the adversary may do"),
        ("model = 'mine:net'", "add --model mine:net if you trust it"),
        ("optimizer = 'mine:make'", "add --optimizer mine:make if you trust it"),
        ("callbacks = ['mine:one']", "add --callbacks mine:one if you trust it"),
        ("[hyperparameters]\nattack = 'mine:attack'", "add --set attack=mine:attack if you trust it"),
        ("[hyperparameters]\nteacher = 'mine:net'", "add --set teacher=mine:net if you trust it"),
        ("data = 'python:arrays'", "data was made in Python .arrays.; pass it to hb.read_config as train_set="),
        ("epochs = 1\nepochs = 2", "cannot read the configuration mine.toml"),
        ("\x00", "cannot read the configuration mine.toml"),
        ("a = " + "[" * 10_000, "cannot read the configuration mine.toml"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(text, says, workplace, capsys):
    Path("mine.toml").write_text(text)
    assert main(["train", "--config", "mine.toml", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said)
    assert "mine.toml" in said
    assert len(said.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_choice_of_settings_that_changes_nothing_is_refused(workplace, capsys):
    Path("mine.toml").write_text("epochs = 2")
    assert main(["train", "--config", "mine.toml", "--schedule-preset", "express"]) == 2
    assert "the file gives epochs" in capsys.readouterr().err
    assert main(["train", "--config", "none.toml"]) == 2
    assert main(["train", "--config", "mine.toml", "--resume", "x"]) == 2
    assert "leave out --config" in capsys.readouterr().err


def test_what_was_made_in_python_is_passed_again(workplace):
    x, y = small()
    x = 2 * x - 1

    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=1e-3)

    threat = hb.Linf(0.1, low=-1.0, high=torch.full((1, 8, 8), 1.0), frozen=[0, 3])
    data = {"train_set": (x, y), "extra": (x, y), "val_set": (x, y)}
    parts = {"optimizer": adam, "augmentation": _dimmed, "callbacks": [len]}
    ours = hb.train(net(), threat=threat, epochs=1, val_steps=1, out="run", quiet=True, **data, **parts)
    for missing in ("train_set", "model", "extra", "val_set", "optimizer"):
        given = {"model": net(), **data, **parts}
        del given[missing]
        with pytest.raises(hb.UserError, match=f"made in Python .*{missing}="):
            hb.read_config("run/config.toml", **given)
    again = hb.read_config("run/config.toml", model=net(), **data, **parts)
    assert str(again["method"].threat) == str(threat)
    trained = hb.train(**again, quiet=True).model.state_dict()
    assert all(torch.equal(one, trained[name]) for name, one in ours.model.state_dict().items())
    # Another network, by its name; and the method as an object.
    other = hb.read_config("run/config.toml", model="mlp", method=hb.method("at", threat), **data, **parts)
    assert hb.train(**other, quiet=True).folder is None


def _dimmed(x):
    return 0.9 * x


def test_an_import_path_is_imported_where_it_is_named_again(workplace, monkeypatch):
    Path("ownparts.py").write_text(
        "from torch import nn\nimport torch\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def data(split, folder): return torch.rand(40, 1, 8, 8), torch.arange(40) % 10\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    Path("mine.toml").write_text("model = 'ownparts:net'\ndata = 'ownparts:data'\neps = 0.1\nepochs = 1\nthreads = 1\n")
    with pytest.raises(hb.UserError, match="would import 'ownparts:data'"):
        hb.read_config("mine.toml", model="ownparts:net")
    named = ["--model", "ownparts:net", "--data=ownparts:data"]
    assert main(["train", "--config", "mine.toml", *named, "--out", "run", "--quiet"]) == 0
    assert main(["train", "--config", "run/config.toml", *named, "--out", "again", "--quiet"]) == 0
    found = hb.read_config("mine.toml", model="ownparts:net", train_set=small())  # data are not imported then
    assert found["model"].name == "ownparts:net"


def test_a_network_normalises_by_the_examples_that_are_passed(workplace):
    Path("mine.toml").write_text("model = 'mlp'\nnormalize = true\nmethod = 'adversarial-class'\n")
    x, y = small()
    found = hb.read_config("mine.toml", train_set=(x / 2, y))
    assert found["model"].mean == pytest.approx([x.mean().item() / 2])
    run = hb.train(**found, epochs=1, val_steps=1, quiet=True)
    assert run.model(x).shape == (60, 11)  # and has the method's output besides the classes


def test_a_table_is_trained_again_with_its_own_radii(workplace):
    pytest.importorskip("pandas")
    rows = "\n".join(f"{i % 7},{i % 5},{i % 2}" for i in range(80))
    Path("rows.csv").write_text(f"a,b,bad\n{rows}\n")
    Path("rows.toml").write_text("train = 'rows.csv'\nlabel = 'bad'\neps = 0.5\n[features.a]\n[features.b]\nchange = 'up'\n")
    for eps, words in ((1, 'eps = ""'), (2, "[threat]")):
        first, again = f"first-{eps}", f"again-{eps}"
        chosen = ["--data", "rows.toml", "--model", "mlp", "--eps", str(eps)]
        assert main(["train", *chosen, "--out", first, *SHORT]) == 0
        assert words in Path(first, "config.toml").read_text()
        assert main(["train", "--config", f"{first}/config.toml", "--out", again, "--quiet"]) == 0
        assert weights(first) == weights(again)
    assert main(["train", "--config", "first-2/config.toml", "--eps", "1", "--out", "less", "--quiet"]) == 0
    assert weights("less") == weights("first-1")


def test_several_threat_models_are_written_in_words(workplace):
    threats = [hb.Linf("0.1"), hb.L1(2)]
    hb.train("mlp", small(), method="max-at", threat=threats, epochs=1, val_steps=1, out="run", quiet=True)
    text = Path("run/config.toml").read_text()
    assert 'union = ["L1:2"]' in text
    found = hb.read_config("run/config.toml", train_set=small())
    assert str(found["method"].threat) == "Linf(0.1) and L1(2)"


def test_what_is_written_is_read_back_the_same():
    content = {
        "plain": True, "count": -3, "number": 1e-05, "large": 1e300,
        "none": float("inf"), "text": 'a "b" \\ \n\t\x7f é 😀 \x01',
        "a key.with dots": ["x", 1, 2.5, [True]], "": {"inside": {"deep": [{"a": 1}]}},
    }  # fmt: skip
    assert parse_toml("\n".join(toml_lines(content)), "x", "x") == content
    for bad in (None, object(), "\udcff"):
        with pytest.raises(hb.UserError, match="cannot hold"):
            toml_lines({"x": bad})


def test_a_folder_that_no_file_can_name_stops_no_training(workplace):
    data = hb.data.load_data("digits", "train", "\udcff")
    part = hb.data.Subset(data, torch.arange(60))
    assert first_of(part) == 60
    assert first_of(hb.data.Subset(part, torch.arange(10))) is None
    assert first_of(hb.data.Subset(data, torch.arange(60).flip(0))) is None
    hb.train("mlp", part, threat=hb.Linf(0.1), epochs=1, val_steps=1, out="run", quiet=True)
    assert 'data_dir = "python:' in Path("run/config.toml").read_text()
