import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hauberk as hb
from hauberk.cli import COMMANDS, main, options
from hauberk.cli.options import usual_folder
from hauberk.cli.target import TargetOptions, TargetThreatOptions, find_target, load_target
from hauberk.core.imports import import_object, is_import_path
from hauberk.experiments import Experiment
from hauberk.experiments.options import DataOptions, SubsetOptions
from hauberk.experiments.studies import StudyContext, Variant
from hauberk.experiments.studies.method_variants import with_loss
from hauberk.models import ModelSpec
from helpers import end_with_parent, few_images

QUICK = ["--epochs", "1", "--val-steps", "2", "--threads", "1", "--quiet"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_teaches_and_needs_no_torch():
    code = (
        "import sys\nfrom hauberk.cli import main\n"
        f"for name in [None, *{list(COMMANDS)!r}]:\n"
        "    try: main([name, '--help'] if name else ['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"  {name} " in shown
    assert "Example: hauberk train" in shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train"], {"epochs": "40", "batch-size": "64", "lr": "0.1", "model": "small-cnn"}),
        (["train", "--data", "mnist", "--lr", "0.2"], {"epochs": "8", "eps-warmup": "0.3", "lr": "0.2"}),
        (["train", "--data=cifar10", "--model", "resnet18", "--schedule-preset", "express"], {"epochs": "40", "ema": "-1.0"}),
        (
            ["train", "--data", "cifar10", "--method", "trades+awp", "--schedule-preset", "robust"],
            {"epochs": "200", "augment": "idbh-weak", "label-smoothing": "0.1"},
        ),
        (
            ["train", "--data", "cifar10", "--model", "wrn-34-10", "--method", "mart", "--preset", "official"],
            {"epochs": "90", "beta": "6.0", "milestones": "75.0 90.0"},
        ),
        (["compare", "table3"], {"data": "cifar10", "model": "wrn-32-10", "epochs": "100", "weight-decay": "0.0007"}),
        (
            ["compare", "mart-white-box"],
            {"epochs": "120", "attacks": "fgsm pgd-20-last cw-20-last apgd-ce apgd-t fab-t square"},
        ),
        (["compare", "--data", "svhn", "--model", "resnet18"], {"epochs": "100", "suite": "papers"}),
        (["study", "--data", "mnist"], {"epochs": "8", "test-size": "500"}),
    ],
)
def test_help_shows_what_is_applied(words, shown, capsys):
    for arguments in ([*words, "--help"], [words[0], "-h", *words[1:]]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for option, value in shown.items():
            assert re.search(rf"--{option} [^-][^-]*?(?:-(?!-)[^-]*?)*?\(default: {re.escape(value)}\)", text), option


def test_help_shows_no_default_of_its_own_where_methods_differ(capsys):
    words = ["compare", "--data", "cifar10", "--model", "wrn-34-10", "--preset", "official", "--methods", "trades,mart"]
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"--epochs INT Number of passes over the training data. \(unset by default\)", text)
    assert re.search(r"--lr FLOAT [^(]*\(default: 0.1\)", text)


def test_the_usual_folder_bears_plain_names():
    for names, folder in {
        ("digits", "at+awp"): "runs/digits-at+awp",
        ("some/loans.toml", "mart"): "runs/loans-mart",
        ("own.data:load", "own.part:build"): "runs/own.data-load-own.part-build",
        ("study", "mnist", "timm:vit"): "runs/study-mnist-timm-vit",
    }.items():
        assert str(usual_folder(*names)) == folder


def test_objects_by_import_path(workplace, monkeypatch):
    (workplace / "ownthings.py").write_text("class Box:\n    net = staticmethod(len)\nnumber = 7\n")
    (workplace / "brokenthings.py").write_text("import nosuchmodule\n")
    (workplace / "leavingthings.py").write_text("raise SystemExit('no\\nmore')\n")
    monkeypatch.syspath_prepend(str(workplace))
    assert import_object("ownthings:number", "model") == 7
    assert import_object("ownthings:Box.net", "model") is len
    for path, says in {
        "ownthings": "cannot load attack 'ownthings': write package.module:attribute",
        "ownthings:": "write package.module:attribute",
        "ownthing:number": "there is no module 'ownthing'; install it, or call from its folder",
        "ownthings.parts:number": "there is no module 'ownthings.parts'",
        "ownthings:numbr": "unknown attribute 'numbr'; did you mean 'number'?",
        "ownthings:Box.nett": "did you mean 'net'?",
        "brokenthings:number": "importing brokenthings fails with ModuleNotFoundError: No module named 'nosuchmodule'",
        "leavingthings:number": "importing leavingthings fails with SystemExit: no more",
    }.items():
        with pytest.raises(hb.UserError, match=re.escape(says)) as error:
            import_object(path, "attack")
        assert "\n" not in str(error.value)
    for name, form in {"a.b:c.d": True, "at": False, "trades:beta=1": False, "timm:resnet-18": False, "a/b:c": False}.items():
        assert is_import_path(name) is form


def test_train_then_evaluate(workplace, capsys):
    assert main(["train", "--method", "mart", "--eps", "0.05", "--beta", "2", "--normalize", *QUICK]) == 0
    assert "hauberk evaluate runs/digits-mart" in capsys.readouterr().out
    card = json.loads((workplace / "runs/digits-mart/best.json").read_text())
    assert card["threat"]["eps"] == "0.05"
    assert card["method"]["beta"] == 2.0
    assert len(card["model"]["mean"]) == 1
    assert main(["evaluate", "runs/digits-mart", "--n", "40", "--threads", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (saved,) = (workplace / "runs/digits-mart/evaluations").glob("quick-*/evaluation.json")
    assert shown == json.loads(saved.read_text())
    assert main(["evaluate", str(saved.parent), "--status"]) == 0
    assert "pgd-100: " in capsys.readouterr().out
    assert (shown["n"], shown["threat"]) == (40, "Linf(0.05)")
    assert (
        main(["evaluate", "runs/digits-mart", "--n", "40", "--eps", "0.01", "--attacks", "fgsm", "--quiet", "--threads", "1"])
        == 0
    )
    table = capsys.readouterr().out
    certify = ["certify", "runs/digits-mart", "--n", "12", "--eps", "0.005", "--threads", "1", "--methods", "ibp", "crown"]
    assert main([*certify, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "robust accuracy at least" in said
    assert "hauberk evaluate runs/digits-mart" in said
    (folder,) = (workplace / "runs/digits-mart/certificates").iterdir()
    assert main([*certify, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == json.loads((folder / "certificates.json").read_text())["examples"]
    smoothed = [
        "certify",
        "runs/digits-mart",
        "--n",
        "6",
        "--threads",
        "1",
        "--smoothing",
        "0.25",
        "--draws",
        "200",
        "--seed",
        "1",
    ]
    assert main([*smoothed, "--quiet"]) == 0
    assert "smoothed" in capsys.readouterr().out
    assert main([*smoothed, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["examples"]) == 6
    assert (
        main(["evaluate", "runs/digits-mart", "--n", "12", "--eps", "0.005", "--attacks", "fgsm", "--certify", "--quiet"]) == 0
    )
    assert "certified, at least" in capsys.readouterr().out
    assert "upper bound" in table
    assert "fgsm" in table
    assert main(["evaluate", "runs/digits-mart", "--n", "4", "--curve", "--quiet", "--threads", "1"]) == 0
    assert "At each ε an upper bound" in " ".join(capsys.readouterr().out.split())
    (folder,) = (workplace / "runs/digits-mart/evaluations").glob("curve-*")
    assert {path.name for path in folder.iterdir()} >= {"curve.json", "curve.csv", "curve.png", "curve.svg", "curve.pdf"}
    assert main(["report", str(folder)]) == 0
    assert main(["train", "--method", "mart", *QUICK]) == 0  # a second run gets its own folder
    assert (workplace / "runs/digits-mart-2/run.json").exists()
    assert main(["train", "--resume", "runs/digits-mart", "--quiet"]) == 0  # already finished
    settings = [
        "--class-weights",
        *["1", "1", "1", "1", "1", "1", "1", "1", "2", "2"],
        "--milestones",
        "0.5",
        "0.9",
        "--schedule",
        "steps",
        "--out",
        "own",
    ]
    assert main(["train", *settings, *QUICK]) == 0
    assert json.loads((workplace / "own/run.json").read_text())["settings"]["class_weights"][-1] == 2.0
    assert main(["train", "--resume", "own", "--quiet"]) == 0
    assert main(["train", "--out", "own", *QUICK]) == 2
    assert "exists; go on with it by --resume own" in capsys.readouterr().err


def test_demo_bounds_robustness_from_both_sides_and_writes_a_report(workplace, capsys, monkeypatch):
    monkeypatch.setattr("hauberk.cli.demo._TESTED", 24)
    monkeypatch.setattr("hauberk.cli.demo.METHODS", ("standard", "mail-trades"))
    assert main(["demo", "--epochs", "1", "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("of 24 test images", "mail-trades", "pgd-100", "cw-30", "at most", "at least", "Next, for example"):
        assert words in shown
    found = re.search(r"Report with pictures: (\S+)", shown)[1]
    page = (workplace / found).read_text()
    assert "at least" in page
    assert "Standard beside robust" in page
    (saved,) = workplace.glob("runs/digits-mail-trades/evaluations/*/evaluation.json")
    kept = json.loads(saved.read_text())
    assert kept["certified"]["accuracy"] <= kept["robust_accuracy"]
    assert f"{100 * kept['robust_accuracy']:.1f} [" in shown


def test_the_demo_trains_what_it_says():
    from hauberk.cli.demo import METHODS, Demo

    assert METHODS[-1] == "mail-trades"
    assert {"at", "trades"} < set(METHODS)
    for method in METHODS:
        assert method in Demo.__doc__


def test_lists(capsys):
    for command in (["methods"], ["attacks"], ["models"], ["data"], ["doctor"], ["methods", "trades"], ["data", "digits"]):
        assert main(command) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("Next: ")
        assert main([*command, "--json"]) == 0
        json.loads(capsys.readouterr().out)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == hb.__version__


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--data", "mnist"], "Get the original files from"),
        (["train", "--data", "minst"], "did you mean 'mnist'"),
        (["train", "--method", "trade"], "did you mean 'trades'"),
        (["train", "--model", "resnet"], "did you mean 'resnet18'"),
        (["train", "--eps", "8"], "did you mean '8/255'"),
        (["train", "--eps", "abc"], "not a number or a fraction"),
        (["train", "--norm", "L2"], "give --eps"),
        (["train", "--device", "cuda:77"], "cannot be used"),
        (["train", "--resume", "runs/none"], "does not exist"),
        (["train", "--beta", "-3", "--method", "mart"], "not be negative"),
        (["train", "--epochs", "-1"], "epochs must be positive"),
        (["train", "--resume", "runs/none", "--epochs", "3"], "leave out --epochs"),
        (["compare", "--epochs", "-1"], "epochs must be positive"),
        (["study", "weights", "--epochs", "-1"], "epochs must be positive"),
        (["evaluate", "runs/none"], "does not exist"),
        (["evaluate", "own", "--costs", "0,1", "five,0"], "a row of numbers for each class"),
        (["evaluate", "notes.json"], "not a Hauberk card"),
        (["certify", "runs/none"], "does not exist"),
        (["certify", "net.pth"], "give --data"),
        (["certify", "net.pth", "--smoothing", "0.25", "--eps", "0.1"], "leave --norm and --eps out"),
        (["evaluate", "net.pth", "--data", "digits"], "pass model="),
        (["methods", "mail"], "did you mean|known"),
        (["data", "cifar10", "--download", "--data-dir", "d"], "torchvision|failed"),
    ],
)
def test_mistakes_get_one_line_and_code_2(arguments, says, workplace, capsys):
    (workplace / "notes.json").write_text("{}")
    torch.save({}, workplace / "net.pth")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert re.search(says, shown.err)
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("path", "typed"),
    [
        ("$(touch PWN)", "'$(touch PWN)'"),
        ("it's here", "'it'\"'\"'s here'"),
        ("two\nlines", r"$'two\nlines'"),
        ("it's\x1b[31m", r"$'it\'s\x1b[31m'"),
    ],
)
def test_a_command_to_type_next_is_quoted_for_the_shell(path, typed, tmp_path):
    said = options.command("evaluate", path)
    assert said.endswith(f" evaluate {typed}")
    found = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout == path
    assert not any(tmp_path.iterdir())


def test_whatever_is_in_a_name_a_mistake_is_one_line_that_moves_no_cursor(capsys):
    assert main(["report", "two\nlines\x1b[31m\udcff"]) == 2
    assert capsys.readouterr().err == (
        r"hauberk: two\nlines\x1b[31m\udcff holds no run, evaluation, curve, comparison or study to report on" + "\n"
    )


def test_output_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    def full(*words, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.stdout, "write", full)
    assert main(["--help"]) == 1
    assert capsys.readouterr().err == "hauberk: cannot write: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--epochz", "3"],
        ["train", "--epochs", "1.5"],
        ["train", "--schedule", "exponential"],
        ["evaluate"],
    ],
)
def test_wrong_options_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_failure_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("hauberk.cli.info.methods", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["methods"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_resume_and_resuming_ends_the_same(number, workplace, capsys):
    words = ["train", "--model", "mlp", "--epochs", "12", "--val-steps", "2", "--threads", "1", "--seed", "5"]
    assert main([*words, "--out", "whole"]) == 0
    assert "epoch 12/12" in capsys.readouterr().out
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "hauberk", *words, "--out", "cut"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    metrics = workplace / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "hauberk train --resume cut" in shown
    assert main(["train", "--resume", "cut"]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        assert (workplace / "whole" / name).read_bytes() == (workplace / "cut" / name).read_bytes()


def test_what_is_announced_as_published_is_what_is_trained(workplace, capsys, monkeypatch):
    monkeypatch.setattr("hauberk.experiments.experiment.load_data", lambda name, *_, **__: few_images(name))
    words = ["train", "--data", "cifar10", "--model", "wrn-10-1", "--method", "mart", "--preset", "official", "--steps", "1"]
    words += ["--epochs", "1", "--val-size", "0", "--threads", "1"]
    assert main([*words, "--out", "run"]) == 0
    assert "MART, train_wideresnet.py, WRN-34-10; of the method: beta 6.0\n" in capsys.readouterr().out
    assert json.loads((workplace / "run/run.json").read_text())["method"]["beta"] == 6.0
    assert main([*words, "--out", "mine", "--beta", "2"]) == 0
    assert "MART, train_wideresnet.py, WRN-34-10\n" in capsys.readouterr().out
    assert json.loads((workplace / "mine/run.json").read_text())["method"]["beta"] == 2.0
    assert main(["methods", "mart"]) == 0
    assert "beta 6.0 (MART, train_wideresnet.py, WRN-34-10)" in capsys.readouterr().out


def test_a_model_from_python_is_resumed_in_python(workplace, capsys):
    hb.train(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
        hb.data.load_data("digits", "train"),
        threat=hb.Linf(0.1),
        epochs=1,
        out="mine",
        quiet=True,
    )
    assert main(["train", "--resume", "mine"]) == 2
    assert "was made in Python" in capsys.readouterr().err


def test_your_own_network_from_the_command_line(workplace, capsys, monkeypatch):
    (workplace / "ownnets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\nstand_in = net()\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    assert main(["train", "--model", "ownnets:net", "--out", "own", *QUICK]) == 0
    assert main(["evaluate", "own", "--n", "10", "--quiet"]) == 2
    assert "allow" in capsys.readouterr().err
    assert main(["evaluate", "own", "--model", "ownnets:net", "--n", "10", "--quiet"]) == 0
    through = ["--model", "ownnets:net", "--bpda", "ownnets:stand_in", "--attacks", "fgsm", "--diagnostics", "cheap"]
    assert main(["evaluate", "own", *through, "--n", "10", "--quiet"]) == 0
    assert len(list((workplace / "own" / "evaluations").iterdir())) == 2
    assert main(["train", "--resume", "own", "--quiet"]) == 2
    assert main(["train", "--resume", "own", "--model", "ownnets:net", "--quiet"]) == 0


def test_a_curve_takes_no_option_that_it_does_not_use(capsys):
    for words in (
        ["--union", "L2:0.5"], ["--bpda", "a:b"], ["--suite", "standard"], ["--save-adversarials"], ["--precision", "bf16"],
        ["--diagnostics", "cheap"], ["--sequential"], ["--to", "0.5"], ["--certify"], ["--surrogate", "other"],
        ["--costs", "0,1", "5,0"], ["--card", "card.json"],
    ):  # fmt: skip
        assert main(["evaluate", "runs/none", "--curve", *words]) == 2
        assert f"--curve does not use {words[0]}; leave it out" in capsys.readouterr().err
    assert main(["evaluate", "runs/none", "--curve", "--sequential", "--to", "0", "--attacks", "fmn-100", "--seed", "1"]) == 2
    assert "--curve does not use --to, --sequential; leave them out" in capsys.readouterr().err


def test_a_norm_or_a_radius_alone_changes_nothing_else(workplace):
    x, y = hb.data.load_data("digits", "train").fetch(torch.arange(60))
    data = hb.data.TensorDataset(x, y, 10, "digits", "data")
    how = {"epochs": 1, "val_steps": 1, "val_size": 10, "quiet": True, "threads": 1}
    boxed = hb.L2(0.5, low=-1.0, high=2.0, frozen=[0])
    hb.train("mlp", data, threat=boxed, out="one", **how)
    hb.train("mlp", data, method="max-at", threat=[hb.Linf(0.1), hb.L2(0.5)], out="two", **how)

    def threat(folder, norm=None, eps=""):
        options = TargetOptions(Path(folder), data=DataOptions("", ""), threat=TargetThreatOptions(norm, eps))
        return find_target(options).threat

    assert threat("one").to_dict() == threat("one", "L2").to_dict() == boxed.to_dict()
    assert threat("one", eps="1/4").to_dict() == boxed.to_dict() | {"eps": "1/4"}
    assert str(threat("one", "L1", "3")) == "L1(3)"
    assert str(threat("two")) == "Linf(0.1) and L2(0.5)"
    assert str(threat("two", "L2", "0.25")) == "L2(0.25)"
    for given, says in {("one", "Linf"): "--norm Linf needs --eps", ("two", "L2"): "--norm L2 needs --eps"}.items():
        with pytest.raises(hb.UserError, match=says):
            threat(*given)
    with pytest.raises(hb.UserError, match=r"--eps 0\.2 needs --norm"):
        threat("two", eps="0.2")


def test_a_radius_alone_is_a_factor_of_a_tables_own_in_the_norm_of_the_training(workplace):
    pytest.importorskip("pandas")
    (workplace / "rows.csv").write_text("\n".join(["a,b,bad", *(f"{i},{i % 5},{int(i % 5 > 2)}" for i in range(60))]))
    (workplace / "rows.toml").write_text("train = 'rows.csv'\nlabel = 'bad'\neps = 0.5\n[features.a]\n[features.b]\n")
    train = ["train", "--data", "rows.toml", "--model", "mlp", "--norm", "L2", "--eps", "1", *QUICK]
    assert main([*train, "--out", "run"]) == 0
    found = find_target(TargetOptions(Path("run"), threat=TargetThreatOptions(eps="2"))).threat
    assert found.to_dict() == hb.data.find_dataset("rows.toml").default_threat("L2", "2").to_dict()


def evaluated(words, capsys):
    """Clean accuracy by ``hauberk evaluate``, on 60 examples."""
    short = ["--n", "60", "--attacks", "fgsm", "--eps", "0.05", "--diagnostics", "cheap", "--threads", "1", "--json"]
    capsys.readouterr()
    assert main(["evaluate", *words, *short]) == 0
    return json.loads(capsys.readouterr().out)["clean_accuracy"]


@pytest.mark.parametrize("model", ["mlp", "normnets:net", "normnets:normalised"])
def test_an_exported_state_dict_keeps_its_normalisation_on_the_command_line(model, workplace, capsys, monkeypatch):
    (workplace / "normnets.py").write_text(
        "from hauberk.models import Normalize\nfrom torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def normalised(): return nn.Sequential(Normalize([0.3], [0.01]), net())\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    train = ["train", "--method", "standard", "--train-size", "300", "--epochs", "2", "--threads", "1", "--quiet"]
    own = ["--model", model]
    assert main([*train, *own, "--out", "run", *(["--normalize"] if model != "normnets:normalised" else [])]) == 0
    again = own if ":" in model else []
    found = evaluated(["run", *again], capsys)
    assert evaluated(["run", *own], capsys) == found  # the network that is named again is built as it was
    net = ModelSpec.from_dict(json.loads((workplace / "run/best.json").read_text())["model"]).build()
    assert main(["export", "run", "net.pth", *again]) == 0
    written = Path("net.pth")
    assert evaluated([str(written), *own, "--data", "digits"], capsys) == found
    if again:  # nothing is imported that is not named
        capsys.readouterr()
        assert main(["export", "run", "other.pth"]) == 2
        assert f"--model {model} (of a surrogate, --surrogate-model)" in capsys.readouterr().err
        named = ["--surrogate-model", model]
        transfer = ["evaluate", "run", *again, "--n", "9", "--attacks", "transfer-pgd-20", "--diagnostics", "cheap", "--quiet"]
        assert main([*transfer, "--surrogate", "run"]) == main([*transfer, *named]) == 2
        assert main([*transfer, "--surrogate", "run", *named]) == 0
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(hb.load(written, model=net)(x), hb.load("run", model=net)(x))
    if model != "normnets:normalised":
        with pytest.raises(hb.UserError, match=r"normalises its inputs \(0.mean"):
            hb.load(written, model=ModelSpec(model, (1, 8, 8), 10).build())


def test_an_exported_state_dict_of_a_table_keeps_the_nearest_row_and_the_training_rows_statistics(workplace):
    pytest.importorskip("pandas")
    rows = [f"{1000 + 9 * i},{i % 5},{'xy'[i % 2]},{int(i % 5 > 2)}" for i in range(120)]
    (workplace / "rows.csv").write_text("\n".join(["a,b,c,bad", *rows]))
    columns = "[features.a]\n[features.b]\nkind = 'integer'\n[features.c]\nkind = 'category'\n"
    (workplace / "rows.toml").write_text(f"train = 'rows.csv'\nlabel = 'bad'\neps = 0.5\n{columns}")
    train = ["train", "--data", "rows.toml", "--model", "mlp", "--method", "standard", "--epochs", "5", "--threads", "1"]
    assert main([*train, "--out", "run", "--quiet"]) == 0
    assert main(["export", "run", "net.pth"]) == 0
    x = hb.data.load_data("rows.toml", "test").fetch(torch.arange(20))[0] + 0.3
    named = TargetOptions(Path("net.pth"), model="mlp", data=DataOptions("rows.toml"))
    assert torch.equal(load_target(named, find_target(named), "cpu")(x), hb.load("run")(x))
    alone = ModelSpec("mlp", (4,), 2).build()  # somebody's own network of rows as they are
    torch.save(alone.state_dict(), "net.pth")
    assert torch.equal(load_target(named, find_target(named), "cpu")(x), alone(x))


def test_no_command_has_an_option_for_what_it_cannot_be_given(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--extra-share", "0.5"])
    assert "Unrecognized options: --extra-share" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert "--extra" not in capsys.readouterr().out


def test_a_class_of_adversarial_inputs_is_trained_and_evaluated(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "--method", "adversarial-class", "--epochs", "1", "--threads", "1", "--quiet", "--out", out]) == 0
    assert main(["evaluate", out, "--attacks", "pgd-10", "--limit", "20", "--quiet"]) == 0
    assert "with rejection" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["my own method", "mart without KL"])
def test_a_run_of_a_method_that_has_no_name_elsewhere_is_evaluated(name, workplace, digits, capsys):
    own = with_loss(name, hb.method("at", hb.Linf(0.1), steps=1), hb.objectives.at)
    hb.train("mlp", digits["train"], method=own, out="own", epochs=1, val_size=50, val_steps=1, quiet=True)
    assert main(["evaluate", "own", "--n", "20", "--attacks", "fgsm", "--diagnostics", "cheap", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 20


def test_a_network_of_a_study_is_evaluated(workplace, capsys):
    base = Experiment("at", 0, settings={"epochs": 1, "val_steps": 1, "threads": 1}, subset=SubsetOptions(100, 20))
    context = StudyContext(base, workplace / "study", threads=1, trials=1)
    own = with_loss("at with nothing else", base.make_method(), hb.objectives.at)
    context.trained_variant(Variant("at with nothing else", custom=lambda context: own))
    (run,) = (workplace / "study").glob("networks/*/*/*/run")
    assert main(["evaluate", str(run), "--n", "20", "--attacks", "fgsm", "--diagnostics", "cheap", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 20
