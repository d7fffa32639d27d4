"""The benchmark of a GPU, dry on a CPU with a tiny network: stopped anywhere, it goes on, and ends with the same results."""

import importlib
import re
import signal
import sys

import pytest

from hauberk.core.io import read_json, write_json
from hauberk.evaluation.runner import EvaluationRunner
from hauberk.training.trainer import Trainer
from helpers import ROOT, long_or

SIZE = long_or("--model mlp --test 5", "--model small-cnn --test 20")
TINY = f"--device cpu:0 --data digits {SIZE} --train 40 --batches 8 --rounds 1 --epochs 2 --methods at --compile off"
TINY += " --forms fp32 none"  # there is no such form: its pieces fail
RESULTS = [*long_or([], ["trades-awp"]), "mail-trades", "autoattack"]  # in the short form there is nothing to attack of one


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Call the benchmark; returns whether it was stopped, its pieces, and what it writes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu, page = importlib.import_module("gpu"), tmp_path / "page.md"
    monkeypatch.setattr(gpu, "PART_SIZE", 2**14)  # so that there are several
    page.write_text((ROOT / "docs" / "performance.md").read_text())

    def run(name, *parts, minutes=5.0):
        out = tmp_path / name
        where = ["--out", out, "--results", tmp_path / "results", "--page", page, "--minutes", minutes, "--threads", 1]
        monkeypatch.setattr(sys, "argv", [*map(str, ["gpu.py", *TINY.split(), *where, "--parts", *parts])])
        stopped = False
        try:
            gpu.main()
        except SystemExit as ended:
            stopped = ended.code == gpu.STOPPED
        pieces = {path.stem: read_json(path) for path in (out / "pieces").glob("*.json")}
        return stopped, pieces, (tmp_path / "results" / "gpu.md").read_text()

    return run


def interrupt(monkeypatch, owner, name, when=lambda self: True):
    """Send Ctrl-C to this process when a method of a class is called, once."""
    method, sent = getattr(owner, name), []

    def interrupted(self, *args, **options):
        if not sent and when(self):
            sent.append(name)
            signal.raise_signal(signal.SIGINT)  # to this thread, at once; os.kill may wake another one, and take its time
        return method(self, *args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    return sent


def results(out, pieces):
    """What does not depend on the clock."""
    clocks = ("seconds", "training", "examples_per_second", "versions")
    kept = {name: {key: value for key, value in piece.items() if key not in clocks} for name, piece in pieces.items()}
    for piece in kept.values():
        if "best" in piece:
            piece["best"] = {key: value for key, value in piece["best"].items() if key not in clocks}
    return kept, {path.relative_to(out): path.read_bytes() for path in out.glob("networks/*/best.safetensors*")}


def test_it_goes_on_where_it_was_stopped_and_ends_with_the_same_results(call, monkeypatch, tmp_path, short_autoattack):
    page = (tmp_path / "page.md").read_text()
    stopped, pieces, _ = call("out", "steps", minutes=0.5)
    assert (stopped, list(pieces)) == (True, ["step-at-8-fp32"])  # there was no time to begin another one
    early = pieces

    sent = interrupt(monkeypatch, Trainer, "_train_step", lambda self: self.folder is not None and self.step == 2)
    stopped, pieces, said = call("out", "steps", "epochs", *RESULTS)
    assert (stopped, len(sent), set(pieces)) == (True, 1, {*early, "step-at-8-none", "epoch-at-8-fp32", "epoch-at-8-none"})
    assert pieces["step-at-8-fp32"] == early["step-at-8-fp32"]  # it was not made again
    assert {"failed"} < set(pieces["step-at-8-none"])
    assert "- step-at-8-none failed: " in said
    assert "- mail-trades: 1 of 1 pieces missing" in said

    monkeypatch.setattr("hauberk.evaluation.runner.SAVE_EVERY", 0)
    sent = interrupt(monkeypatch, EvaluationRunner, "_pause", lambda self: self.state_path.exists())
    stopped, pieces, said = call("out", *RESULTS)
    assert (stopped, len(sent)) == (True, 1)
    assert "under way: robust accuracy at most" in said

    (tmp_path / "out" / "networks" / "mail-trades" / "best.safetensors").unlink()  # its parts are enough
    loaded, load = [], importlib.import_module("common").hb.load
    monkeypatch.setattr("common.hb.load", lambda *args, **how: loaded.append(how.get("device")) or load(*args, **how))
    stopped, pieces, said = call("out", *RESULTS)
    assert not stopped
    assert "cpu:0" in loaded
    assert not re.search(r"- (steps|epochs|mail-trades): .* missing", said)
    whole = call("whole", *RESULTS)
    made = {name: piece for name, piece in pieces.items() if name in whole[1]}
    assert results(tmp_path / "out", made) == results(tmp_path / "whole", whole[1])
    assert (tmp_path / "page.md").read_text() == page  # no GPU made any of these


@pytest.mark.parametrize(("spent", "robust", "said"), [(0.0100, 0.51, "holds"), (0.0125, 0.50, "does not hold")])
def test_the_page_says_which_goals_hold_on_a_gpu(call, tmp_path, spent, robust, said):
    about = {"machine": {"device": "cuda:0", "name": "a GPU"}, "versions": {"date": "2030-01-01T00:00", "torch": "9"}}
    seconds = {"ours": [spent], "floor": [0.01], "public": [0.055]}
    result = {"clean_accuracy": 0.8, "robust_accuracy": robust, "interval": [0.4, 0.6], "diagnostics": [], "seconds": 60.0}
    trained = {"method": "trades+awp", "epochs": 40, "seconds": 1500.0, "training": 1400.0, "best": {"epoch": 39}}
    pieces = {
        "step-at-8-fp32": {
            "part": "steps",
            "method": "at",
            "batch": 8,
            "form": "fp32",
            "seconds": seconds,
            "mib": {"ours": 7},
            "waits": {"ours": 0},
        },
        "epoch-at-8-fp32": {"part": "epochs", "method": "at", "batch": 8, "form": "fp32", "failed": "no memory"},
        "trades-awp": {"part": "trades-awp", **trained},
        "autoattack-trades-awp-5": {"part": "autoattack", "method": "trades+awp", "n": 5, **result},
    }
    (tmp_path / "out" / "pieces").mkdir(parents=True)
    for name, piece in pieces.items():
        write_json(tmp_path / "out" / "pieces" / f"{name}.json", piece | about)
    before = (tmp_path / "page.md").read_text()
    assert not call("out", "report", "epochs")[0]
    head, after = before.split("Open: no figure"), (tmp_path / "page.md").read_text()
    assert len(head) == 2
    assert after.startswith(head[0])
    assert "Open: no figure" not in after
    lines = after.splitlines()
    row = next(line for line in lines if line.startswith("| `at` | 8 | fp32 |"))
    assert [float(cell) for cell in row.split("|")[4:9]] == [
        55.0,
        1e3 * spent,
        round(0.055 / spent, 2),
        round(spent / 0.01, 2),
        7.0,
    ]
    verdicts = [
        re.split(r"[,:]", line.split(": ", 1)[1])[0] for line in lines[lines.index("Goals on one H100 or H200:") :][2:5]
    ]
    assert verdicts == [said] * 3
    assert "- epoch-at-8-fp32 failed: no memory" in lines
    assert any("epochs: 1 of 2 pieces missing" in line for line in lines)
