"""hauberk compare FOLDER: evaluations that are there already."""

import json

import pytest
import torch

import hauberk as hb
from hauberk.cli import main
from hauberk.experiments.paper_tables import PAPER_TABLES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    for name, shift in (("at", 0.0), ("mine", 1.0)):
        for seed in range(2):
            net = torch.nn.Linear(4, 2)
            with torch.no_grad():
                net.weight.copy_(torch.tensor([[-4.0, shift, seed, 0.0], [4.0, 0.0, 0.0, 0.5]]))
                net.bias.copy_(torch.tensor([3.5, 0.0]))
            found = hb.evaluate(net, (x, y), threat=hb.Linf(0.05), attacks=["fgsm"], diagnostics="cheap", quiet=True)
            found.save(tmp_path / f"{name}-{seed}.json")
    return tmp_path


@pytest.mark.parametrize("words", [["."], ["at=at-0.json,at-1.json", "mine=mine-0.json,mine-1.json"]], ids=["folder", "named"])
def test_a_table_and_a_figure_are_made_of_what_is_there(words, folder, capsys):
    assert main(["compare", *words, "--baseline", "mine"]) == 0
    said = capsys.readouterr().out
    assert "own attacks, 2 seeds, 30 test examples" in " ".join(said.split())
    assert "mine: mine-0.json, mine-1.json" in said
    assert "report runs/results-at-mine" in said
    made = folder / "runs" / "results-at-mine"
    assert len(list(made.glob("comparison.*"))) == 7
    assert json.loads((made / "comparison.json").read_text())["baselines"] == {"at": "mine"}
    assert main(["report", str(made)]) == 0
    assert "paired t-test over seeds" in (made / "report.html").read_text()


def test_one_seed_each_is_told_from_chance_by_the_examples(folder, capsys):
    assert main(["compare", "at-0.json", "mine-0.json", "--out", "made"]) == 0
    assert "McNemar's exact test" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "made"]) == 0
    page = (folder / "made" / "report.html").read_text()
    assert "One seed says nothing about training" in page
    assert "deviation over 1" not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["./none"], "none does not exist"),
        (["at-0.json"], "two methods at least"),
        (["at-0.json", "mine-1.json", "mine-0.json"], "give as many of each"),
        (["at-0.json", "at-0.json"], "NAME=PATH,PATH"),
        (["at=at-0.json", "at-1=at-0.json", "--baseline", "a"], "unknown baseline 'a'"),
        (["tabel2"], "did you mean 'table2'"),
    ],
)
def test_mistakes_get_one_line_and_code_2(words, says, folder, capsys):
    assert main(["compare", *words]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert says in shown.err
    assert not (folder / "runs").exists()


def test_help_of_either_kind(folder, capsys):
    for words, says in ((["."], "nothing is trained or attacked"), ([], "FOLDER --help")):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *words, "--help"])
        assert ended.value.code == 0
        assert says in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("name", PAPER_TABLES)
def test_a_table_of_the_papers_stays_one_beside_a_folder_of_its_name(name, folder, capsys):
    (folder / name).mkdir()
    with pytest.raises(SystemExit):
        main(["compare", name, "--help"])
    assert "nothing is trained or attacked" not in " ".join(capsys.readouterr().out.split())
