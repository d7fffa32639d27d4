"""Every piece of Python in README and docs is run as it stands, and every command that they name exists."""

import dataclasses
import importlib
import inspect
import random
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro

import hauberk as hb
from hauberk.cli import COMMANDS, main
from hauberk.methods import default_settings, get_method_spec
from helpers import ROOT, TESTS

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "```python" in path.read_text())
OF_A_GROUP = "scaling"  # the page whose Python runs in a process group


def blocks(path, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_readme_runs(tmp_path, monkeypatch, digits, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = digits["train"].fetch(torch.arange(8))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    names = {"model": model, "x": x, "y": y, "epoch": 0}
    assert len(blocks(ROOT / "README.md")) == 2
    for block in blocks(ROOT / "README.md"):
        exec(block, names)
    assert "robust accuracy at most" in capsys.readouterr().out
    assert model[1].weight.grad is not None


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """For libraries that pages name and nobody installs here."""
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init, wandb.log = lambda project: None, lambda row: row["val_robust_accuracy"]
    mlflow.set_experiment, mlflow.log_metrics = lambda name: None, lambda row, step: row["val_robust_accuracy"]
    for module in (wandb, mlflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def taken_for_granted(page, digits):
    """What a page's reader has already; pages that start from nothing have nothing here."""
    x, y = digits["train"].fetch(torch.arange(300))
    if page.name == "tables.md":  # the page's own description, and rows that fit it
        Path("credit.toml").write_text(blocks(page, "toml")[0])
        draw = random.Random(0)
        rows = [(draw.randrange(20, 70), draw.randrange(5000), draw.randrange(4), draw.randrange(2)) for _ in range(200)]
        lines = ["AGE,PAY_AMT1,EDUCATION,default", *(",".join(map(str, row)) for row in rows)]
        Path("credit.csv").write_text("\n".join(lines))
    if page.name == "files.md":
        run = hb.train("mlp", (x, y), threat=hb.Linf(0.1), epochs=1, out="runs/first", quiet=True)
        hb.evaluate(run.model, (x[:20], y[:20]), threat=hb.Linf(0.1), quiet=True).save("evaluation.json")
    if page.stem == OF_A_GROUP:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        batches = list(zip(x.split(100), y.split(100), strict=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "part_of_each_batch": batches, "optimizer": optimizer, "epoch": 0}
    return {}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != OF_A_GROUP], ids=lambda p: p.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, digits):
    from hauberk.methods import METHODS

    if page.name in ("files.md", "tables.md"):
        pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    known = dict(METHODS)
    try:
        names = taken_for_granted(page, digits)
        for block in blocks(page):
            exec(block, names)
        if page.name == "methods.md":
            assert {"gair-alp", "half"} <= set(hb.list_methods())
            few = digits["train"].fetch(torch.arange(300))
            out = hb.method("gair-alp", hb.Linf(0.1), burn_in=0)(names["run"].model, *few)
            assert abs(float(out.weights.mean()) - 1) < 1e-5
    finally:
        METHODS.clear()
        METHODS.update(known)


def test_the_page_of_a_group_runs(tmp_path):
    # In a process of its own, and its DistributedDataParallel goes before the group: the other way round may hang for ever.
    work = f"""
import sys, torch
from pathlib import Path
sys.path[:0] = {[str(TESTS), str(TESTS / "system")]}
import hauberk as hb, test_docs
page = next(page for page in test_docs.PAGES if page.stem == test_docs.OF_A_GROUP)
names = test_docs.taken_for_granted(page, {{"train": hb.data.load_data("digits", "train")}})
torch.distributed.init_process_group("gloo", f"file://{{Path.cwd()}}/store", rank=0, world_size=1)
for block in test_docs.blocks(page):
    exec(block, names)
del names["step"]
torch.distributed.destroy_process_group()
"""
    done = subprocess.run([sys.executable, "-c", work], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.stem)
def test_the_code_of_a_page_fits_without_scrolling(page):
    lines = [line for language in ("python", "toml") for block in blocks(page, language) for line in block.splitlines()]
    assert [line for line in lines if len(line) >= 120] == []


def commands(text):
    """Every command of Hauberk in a page that can be typed as it stands: in a block, or in a line of text."""
    found = re.findall(r"(?m)^    (.*hauberk [a-z].*)$", text) + re.findall(
        r"`((?:torchrun [^`]*-m )?hauberk [a-z][^`]*)`", text
    )
    words = [shlex.split(one.replace("\n", " "), comments=True) for one in found if "..." not in one]
    return [line[line.index("hauberk") + 1 :] for line in words if line and line[0] in ("hauberk", "torchrun")]


TYPED = sorted({tuple(c) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] for c in commands(path.read_text())})


@pytest.mark.parametrize("command", [c for c in TYPED if len(c) > 1], ids=" ".join)
def test_a_command_of_the_docs_is_understood(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if "--config" in command:
        file = Path(command[command.index("--config") + 1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    class Understood(Exception):
        pass

    def cli(*words, **options):
        parsed(*words, **options)
        raise Understood

    parsed = tyro.cli
    monkeypatch.setattr(tyro, "cli", cli)
    assert command[0] in COMMANDS
    with pytest.raises((Understood, SystemExit)) as ended:
        main(list(command[: command.index(">")] if ">" in command else command))
    assert ended.type is Understood or ("--help" in command and ended.value.code == 0)


def test_every_command_is_in_the_docs():
    assert {command[0] for command in TYPED} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_manual(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z-]+)", capsys.readouterr().out))
    manual = (ROOT / "docs" / "commands.md").read_text()
    assert [one for one in sorted(options) if f"--{one}" not in manual and f"--no-{one}" not in manual] == []


def test_no_method_is_known_by_name_where_it_must_not_be():
    rooms = [
        *(ROOT / "src/hauberk/training").glob("*.py"),
        *(ROOT / "src/hauberk/evaluation").glob("*.py"),
        ROOT / "src/hauberk/attacks/base.py",
    ]
    for path in rooms:
        if path.name == "published.py":  # whose settings are those of papers on one method
            continue
        code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
        for name in hb.list_methods().keys() - {"standard"}:  # also the name of a suite of attacks
            assert f'"{name}"' not in code or (name == "at" and path.name == "train.py"), (path, name)  # train's default method


def test_every_command_and_attack_is_documented():
    from hauberk.attacks import PRESETS
    from hauberk.cli import COMMANDS

    manual = (ROOT / "docs" / "commands.md").read_text()
    for name in (*COMMANDS, *PRESETS):
        assert name in manual
    readme = (ROOT / "README.md").read_text()
    for name in hb.list_methods():
        assert f"`{name}`" in readme


def test_the_page_of_methods_has_every_method_with_its_defaults():
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|[^|]*\| (?:`([^|`]*)` )?\|$", page.partition("## Weights")[0], re.MULTILINE)
    usual, told = default_settings("at"), {}
    for names, settings in rows:
        told |= dict.fromkeys(re.findall(r"`([^`]+)`", names), eval(f"dict({settings})"))
    assert set(told) == set(hb.list_methods())
    for name, settings in told.items():
        own = {key: value for key, value in default_settings(name).items() if key not in usual or usual[key] != value}
        assert settings == own, name


ROOMS = ["", ".attacks", ".objectives", ".weighting", ".data", ".models", ".methods", ".training", ".evaluation", ".threat",
         ".certification.smoothing",
         ".experiments", ".experiments.studies", ".report"]  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_the_page_of_the_api(room):
    module, page = importlib.import_module(f"hauberk{room}"), (ROOT / "docs" / "api.md").read_text()
    for name in module.__all__:
        if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name)):
            assert re.search(rf"\b{name}\b", page), name


NO_SOURCE = {"frozen_model", "fooled", "evades", "find_attack", "find_suite", "run_attack", "initial_state", "logit_margin",
             "random_search", "transfer",
             "standard", "kl_divergence", "effective_size", "summary"}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_says_what_it_takes(room):
    module = importlib.import_module(f"hauberk{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        said = " ".join((inspect.getdoc(thing) or "").split())
        if inspect.isfunction(thing):
            assert said, name
            names = list(inspect.signature(thing).parameters)
            code, elsewhere = inspect.getsource(thing), "as in :func:" in said or "as :func:" in said
            if len(names) > 2 and not elsewhere:
                assert [n for n in names if f"{n}:" not in said and f"``{n}``" not in said] == [], name
            if "raise UserError" in code or "raise unknown_name" in code:
                assert "Raises:" in said or elsewhere, name
            if any("Tensor" in str(p.annotation) for p in inspect.signature(thing).parameters.values()):
                assert re.search(r"\([BNCDbS][,)]|shape", said) or elsewhere or "rguments as in" in said, (
                    f"{name} gives no shapes"
                )
            if room in (".attacks", ".objectives", ".weighting"):
                assert re.search(r"\b(19|20)\d\d\b|MAIL paper|ours\b|rguments", said) or name in NO_SOURCE, (
                    f"{name} has no source"
                )
        elif dataclasses.is_dataclass(thing):
            assert [f.name for f in dataclasses.fields(thing) if not f.name.startswith("_") and f.name not in said] == [], name


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "notebooks are kept without outputs"
    nbclient.NotebookClient(book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in book.cells)


@pytest.mark.parametrize(("example", "needs"), [("lightning_loop", "lightning"), ("huggingface_trainer", "transformers")])
def test_an_example_of_another_loop_runs(example, needs, tmp_path):
    pytest.importorskip(needs)
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    robust = float(re.search(r"robust accuracy at most ([\d.]+) %", done.stdout)[1])
    assert robust > 50


COMMANDS_OF_BENCHMARKS = re.findall(r"(?m)^\| `(\w+)\.py` \|", (ROOT / "benchmarks" / "README.md").read_text())


@pytest.mark.parametrize("name", COMMANDS_OF_BENCHMARKS)
def test_a_benchmark_still_starts(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_index_of_benchmarks_is_whole():
    parts = {"broken_defences", "public_steps", "library_steps", "networks", "common"}
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == {*COMMANDS_OF_BENCHMARKS, *parts}


def test_the_map_names_files_that_are_there():
    named = set(re.findall(r"`([a-z_/]+\.py)`", (ROOT / "docs" / "map.md").read_text()))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "src" / "hauberk" / name).is_file()] == []


def test_every_table_of_formulas_shows_what_is_computed(capsys):
    """Each row's methods exist and have the row's formula, which tests/objectives computes from logits; none is left out."""
    shown = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for row in re.findall(
            r"^\| (`[^|]+) \| ([^|]*(?:CE\(|KL\(|‖p\().*?) \|", page.read_text().replace("\\|", "¦"), re.MULTILINE
        ):
            shown |= dict.fromkeys(re.findall(r"`([^`]+)`", row[0]), row[1])
    assert set(shown) == set(hb.list_methods())
    for name, formula in shown.items():
        equation = get_method_spec(name).objective.equation
        assert equation.partition(";")[0] == formula, name
        assert main(["methods", name]) == 0
        assert f"minimises: mean of {equation}\n" in capsys.readouterr().out
