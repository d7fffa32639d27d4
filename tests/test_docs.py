"""The README's Python is run as it stands."""

import re
from pathlib import Path

import torch

import hauberk as hb

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_runs(tmp_path, monkeypatch, digits, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = digits["train"].fetch(torch.arange(8))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    names = {"model": model, "x": x, "y": y, "epoch": 0}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert "robust accuracy at most" in capsys.readouterr().out
    assert model[1].weight.grad is not None


def test_the_methods_page_runs(digits):
    from hauberk.methods import RECIPES
    from hauberk.objectives import OBJECTIVES

    known, objectives = dict(RECIPES), dict(OBJECTIVES)
    x, y = digits["train"].fetch(torch.arange(300))
    names = {"few": (x[:100], y[:100]), "unlabelled_images": x[100:]}
    try:
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL):
            exec(block, names)
        assert {"gair-alp", "half"} <= set(hb.list_methods())
        out = hb.method("gair-alp", hb.Linf(0.1), burn_in=0)(names["run"].model, x, y)
        assert abs(float(out.weights.mean()) - 1) < 1e-5
    finally:
        for table, before in ((RECIPES, known), (OBJECTIVES, objectives)):
            table.clear()
            table.update(before)


def test_no_method_is_known_by_name_where_it_must_not_be():
    rooms = [
        *(ROOT / "src/hauberk/training").glob("*.py"),
        *(ROOT / "src/hauberk/evaluation").glob("*.py"),
        ROOT / "src/hauberk/attacks/ascent.py",
    ]
    for path in rooms:
        code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
        for name in hb.list_methods().keys() - {"standard"}:  # also the name of a suite of attacks
            assert f'"{name}"' not in code or (name == "at" and path.name == "run.py"), (path, name)  # train's default method


def test_every_command_and_attack_is_documented():
    from hauberk.attacks import PRESETS
    from hauberk.cli import COMMANDS

    manual = (ROOT / "docs" / "commands.md").read_text()
    for name in (*COMMANDS, *PRESETS):
        assert name in manual
    readme = (ROOT / "README.md").read_text()
    for name in hb.list_methods():
        assert f"`{name}`" in readme
