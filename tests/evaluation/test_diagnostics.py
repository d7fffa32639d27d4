"""Verdicts do not depend on order, batches, processes or crashes; what cannot be believed says so."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import hauberk as hb
from hauberk.attacks.presets import AUTOATTACK, PRESETS
from hauberk.evaluation import Diagnostic, partial_result, table
from hauberk.evaluation.diagnostics import gradients
from hauberk.evaluation.records import CLEAN, Records, RecordStore
from hauberk.report.evaluation import evaluation_page
from hauberk.threat import make_threat
from helpers import (
    ROOT,
    TESTS,
    TORCHRUN,
    Defended,
    Noisy,
    kill_again_and_again,
    long_or,
    ranks_of,
    require_success,
    sound,
    tiny_batch,
    tiny_net,
)


def verdicts(ev):
    return [(e["broken_by"], e["run"], e["step"]) for e in ev.examples]


def test_the_same_verdicts_in_any_order(short_autoattack):
    model, x, y = sound()
    settings = {"threat": hb.Linf(0.02), "suite": "standard", "batch_size": 16, "quiet": True, "diagnostics": "cheap"}
    ev = hb.evaluate(model, (x, y), **settings)
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    other = hb.evaluate(model, (x[shuffled], y[shuffled]), **settings)
    assert [verdicts(ev)[i] for i in shuffled.tolist()] == verdicts(other)
    assert len(set(ev.broken_by)) > 2


def test_the_same_verdicts_at_any_batch_size(short_autoattack):
    for dtype, least in ((torch.float64, 1.0), (torch.float32, 0.995)):
        model, x, y = sound(20, dtype)
        settings = {"threat": hb.Linf(0.02), "suite": "standard", "quiet": True, "diagnostics": "cheap"}
        runs = [hb.evaluate(model, (x, y), batch_size=b, **settings).broken_by for b in (1, 7, 64)]
        for other in runs[1:]:
            assert np.mean([a == b for a, b in zip(runs[0], other, strict=True)]) >= least


def test_attacks_in_turn_leave_the_broken_alone(short_autoattack):
    model, x, y = sound()
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="standard", quiet=True, diagnostics="cheap")
    assert ev.sequential
    assert list(ev.by_attack) == list(AUTOATTACK)
    shares = list(ev.by_attack.values())
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == ev.robust_accuracy
    papers = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="papers", quiet=True, diagnostics="cheap")
    assert papers.by_attack["autoattack"] == ev.robust_accuracy  # the same draws
    assert papers.by_attack["apgd-ce"] == ev.by_attack["apgd-ce"]
    assert papers.robust_accuracy <= ev.robust_accuracy
    assert table({"a": papers}).row_count == 8


STEPS = long_or((40, 40, 40, 1500), (50, 50, 50, 5000))
WORK = """
import sys, torch
sys.path.insert(0, {tests!r})
from dataclasses import replace
from itertools import pairwise
import hauberk as hb
import hauberk.evaluation.runner as runner
from hauberk.attacks.presets import AUTOATTACK, PRESETS
from hauberk.core.distributed import init_distributed
from helpers import sound
torch.set_num_threads(1)
runner.SAVE_EVERY = 0.05
for name, steps in zip(AUTOATTACK, {steps}, strict=True):
    PRESETS[name] = replace(PRESETS[name], attack=replace(PRESETS[name].attack, steps=steps))
model, x, y = sound()
with init_distributed():
    hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="standard", batch_size=16, out={out!r}, quiet=True,
                diagnostics="cheap", save_adversarials=True)
"""


def start(tmp_path, out, *launcher):
    script = tmp_path / f"{out}.py"
    script.write_text(WORK.format(tests=str(TESTS), steps=STEPS, out=str(tmp_path / out)))
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def size_of(folder):
    """How much has been written to a folder."""
    return sum(path.stat().st_mtime_ns for path in folder.glob("[!.]*") if path.exists()) if folder.exists() else 0


def finish(process):
    _, errors = process.communicate(timeout=300)
    require_success(process.returncode, errors.decode())


def result(folder):
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.timeout(600)
def test_kill_minus_nine_and_several_processes_change_nothing(tmp_path):
    finish(start(tmp_path, "whole"))
    expected = result(tmp_path / "whole")
    assert expected["robust_accuracy"] < expected["by_attack"]["apgd-ce"] < expected["clean_accuracy"]

    kills = long_or(2, 20)
    kill_again_and_again(lambda: start(tmp_path, "killed"), lambda: size_of(tmp_path / "killed"), kills, long_or(0.4, 0.3))
    finish(start(tmp_path, "killed"))
    found = result(tmp_path / "killed")
    assert found["examples"] == expected["examples"]
    assert found["provenance"]["sessions"] > 1
    for name in ("whole", "killed"):
        assert not list((tmp_path / name).glob("state-*.pt"))
    points = [np.load(tmp_path / name / "adversarials.npy") for name in ("whole", "killed")]
    assert np.array_equal(*points)
    model, x, y = sound()
    assert hb.Linf(0.02).contains(torch.from_numpy(points[0]), x).all()
    stands = torch.tensor([e["broken_by"] is None for e in expected["examples"]])
    assert torch.equal(model(torch.from_numpy(points[0])).argmax(1) == y, stands)

    def start_two():
        return start(tmp_path, "two", *TORCHRUN, "2")

    two = tmp_path / "two"
    ends = kill_again_and_again(start_two, lambda: size_of(two), 1, 1, lambda torchrun: ranks_of(torchrun)[1])
    assert all(seconds < 60 for _, seconds in ends)
    finish(start_two())
    shared = result(tmp_path / "two")
    assert shared["examples"] == expected["examples"]
    assert shared["provenance"]["processes"] == 2


def test_an_early_answer_is_near_the_final_one(tmp_path, monkeypatch):
    from hauberk.evaluation.runner import EvaluationRunner

    model, x, y = sound(120)
    keep = EvaluationRunner._verify
    calls = []

    def stop(self, attack, *rest):
        calls.append(attack)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return keep(self, attack, *rest)

    monkeypatch.setattr(EvaluationRunner, "_verify", stop)
    settings = {"threat": hb.Linf(0.02), "attacks": ["pgd-20", "cw-20"], "batch_size": 16, "out": tmp_path, "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        hb.evaluate(model, (x, y), **settings)
    early = partial_result(tmp_path)
    done, standing, broken = early.after["pgd-20"]
    assert 0 < broken <= done <= standing <= 120
    assert "least margin first" in str(early)
    monkeypatch.setattr(EvaluationRunner, "_verify", keep)
    whole = hb.evaluate(model, (x, y), **settings)
    assert early.at_most >= whole.robust_accuracy
    # Those with the least margin come first, and more of them are broken.
    lines = [json.loads(line) for line in (tmp_path / "verdicts-0.jsonl").read_text().splitlines()]
    margins = {line["i"]: line["margin"] for line in lines if line["attack"] == "clean"}
    came = [line for line in lines if line["attack"] == "pgd-20"]
    first, last = (np.mean([margins[line["i"]] for line in some]) for some in (came[:40], came[-40:]))
    assert first < last
    broken_early, broken_late = (np.mean([line["broken"] for line in some]) for some in (came[:40], came[-40:]))
    assert broken_early > broken_late
    again = hb.evaluate(model, (x, y), **settings)  # nothing is left to do
    assert again.examples == whole.examples
    with pytest.raises(hb.UserError, match="holds another evaluation \\(seed: 0 there, 1 here\\)"):
        hb.evaluate(model, (x, y), seed=1, **settings)
    with pytest.raises(hb.UserError, match="holds another evaluation \\(save_adversarials"):  # whose points were not kept
        hb.evaluate(model, (x, y), save_adversarials=True, **settings)
    (tmp_path / "verdicts-0.jsonl").open("a").write('{"i": 3, "att')  # a crash in the middle of a line
    assert hb.evaluate(model, (x, y), **settings).examples == whole.examples


# Models that hide their gradients, and the flags they must raise.


class Quantised(Defended):
    def forward(self, x):
        return self.net((x * 8).round() / 8)


class Softmaxed(Defended):
    def forward(self, x):
        return self.net(x).softmax(1)


class WinnersTakeAll(Defended):
    """k-winners-take-all (Xiao et al. 2020): all but the largest activations are cut off, so the loss jumps everywhere."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = [192, *[1000] * 5]
            self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
            self.last = nn.Linear(1000, 5)

    def forward(self, x):
        z = x.flatten(1) - 0.5
        for layer in self.layers:
            z = layer(z)
            z = z * (z >= z.topk(50, dim=1).values[:, -1:])
        return self.last(z)


class Detached(Defended):
    def forward(self, x):
        return self.net(x.detach())


class Optimising(Defended):
    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            (g,) = torch.autograd.grad(self.net(z).logsumexp(1).sum(), z)
        return self.net(x - 0.01 * g.sign())


class Restless(Defended):
    """Changes while it is looked at."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.net(x)


class BatchStatistics(Defended):
    def forward(self, x):
        return self.net(x - x.mean(0))


class Saturated(Defended):
    """Cross-entropy is 0 in float32, with its gradient; the margin is not."""

    def forward(self, x):
        return 1e5 * self.net(x)


class Lottery(Defended):
    """Where the search starts decides, because no gradient leads anywhere."""

    def forward(self, x):
        lucky = (1000 * x.flatten(1).sum(1)).frac() < 0.5
        return torch.stack([lucky, ~lucky], 1).float()


@pytest.mark.parametrize(
    ("defence", "flags"),
    [
        (Saturated, {"any-loss-will-do": "warning"}),
        (Lottery, {"one-start-is-enough": "warning"}),
        (Quantised, {"gradients": "invalid"}),
        (Softmaxed, {"logits": "invalid"}),
        (WinnersTakeAll, {"gradients-tell-the-truth": "invalid"}),
        (Noisy, {"deterministic": "invalid"}),
        (Detached, {"gradients": "invalid"}),
        (Optimising, {"no-optimisation-in-forward": "warning"}),
        (Restless, {"side-effects": "invalid"}),
        (BatchStatistics, {"independent-of-the-batch": "invalid"}),
    ],
)
def test_defences_that_only_hide_raise_their_flag(defence, flags):
    model = defence().eval()
    x, _ = tiny_batch(64)
    with torch.random.fork_rng():
        y = model(x).argmax(1)
    eps = 0.003 if defence is Saturated else 0.05
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(eps), attacks=["fgsm", "pgd-10"], quiet=True)
    raised = {d.name: d.verdict for d in ev.warnings}
    assert flags.items() <= raised.items(), raised
    assert all(d.advice for d in ev.warnings)
    if "invalid" in flags.values():
        assert str(ev).startswith("INVALID")
        assert "INVALID" in table({"a": ev}).columns[1].header


class Decoy(Defended):
    """Answers as the network does, with the gradient of another network."""

    def forward(self, x):
        lure = tiny_net(seed=9).eval()(x)
        return self.net(x).detach() + lure - lure.detach()


class Flipped(Defended):
    """The gradient points away from where the loss grows."""

    def forward(self, x):
        z = self.net(x)
        return 2 * z.detach() - z


class Detector(Defended):
    """Takes everything for adversarial that is no image of whole grey values; attacks leave these in the first step."""

    def forward(self, x):
        levels = 255 * x
        caught = ((levels - levels.round()).abs() > 1e-2).flatten(1).any(1, keepdim=True)
        z = self.net(x)
        return torch.cat([z, torch.where(caught, z.detach().amax(1, keepdim=True) + 10, z.detach().amin(1, keepdim=True))], 1)


@pytest.mark.parametrize("defence", [Decoy, Flipped, Detector])
def test_a_gradient_that_foretells_nothing_is_invalid(defence):
    model = defence().eval()
    x = (255 * tiny_batch(40)[0]).round() / 255
    y = model(x).argmax(1)
    has_reject_class = defence is Detector
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.05), attacks=["pgd-10"], has_reject_class=has_reject_class, quiet=True)
    assert ev.robust_accuracy > 0.7  # which is what must not be believed
    assert ev.warnings[0].name == "gradients-tell-the-truth"
    assert ev.warnings[0].verdict == "invalid"
    assert str(ev).startswith("INVALID, not to be believed (gradients-tell-the-truth")
    besides = {Detector: "rounding-breaks-no-more"}.get(defence, "gradients-beat-square")
    assert besides in {d.name for d in ev.warnings}
    honest = hb.evaluate(model.net, (x, y), threat=hb.Linf(0.05), attacks=["pgd-10"], quiet=True)
    assert not {"gradients-tell-the-truth", besides} & {d.name for d in honest.warnings}
    assert {d.name for d in honest.diagnostics} >= {"gradients-beat-square", "rounding-breaks-no-more"}
    assert honest.robust_accuracy < 0.5


def test_a_lie_is_seen_in_bfloat16_too():
    x, _ = tiny_batch(40)
    found = {}
    for defence in (Defended, Flipped):
        model = defence().to(torch.bfloat16).eval()
        y = model(x.bfloat16()).argmax(1)
        ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.05), attacks=["pgd-10"], quiet=True)
        found[defence] = {d.name: d.verdict for d in ev.diagnostics}["gradients-tell-the-truth"]
    assert found == {Defended: "ok", Flipped: "invalid"}


@pytest.mark.parametrize("how", ["float32", "bfloat16", "attacks in bfloat16", "tiny ε", "draws"])
def test_rounding_and_chance_alone_do_not_make_a_gradient_a_lie(how):
    x, _ = tiny_batch(40)
    model = (Noisy() if how == "draws" else Defended()).eval()
    y = model.net(x).argmax(1)
    if how == "bfloat16":
        model = model.to(torch.bfloat16)
    settings = {"suite": "rand"} if how == "draws" else {"attacks": ["pgd-10"]}
    settings |= {"precision": "bf16"} if how == "attacks in bfloat16" else {}
    threat = hb.Linf(1e-7 if how == "tiny ε" else 0.05)
    ev = hb.evaluate(model, (x, y), threat=threat, n=16, quiet=True, **settings)
    assert {d.name: d.verdict for d in ev.diagnostics}["gradients-tell-the-truth"] != "invalid"


def test_doubts_stand_before_the_number_wherever_it_is_shown():
    model, x, y = sound(20)
    ev = hb.evaluate(model, (x, y), threat=hb.Linf("8/255"), attacks=["pgd-10"], quiet=True, diagnostics="cheap")
    assert str(ev).startswith("robust accuracy")
    found = [Diagnostic("one", "1 of 2", "warning"), Diagnostic("two", "2 of 2", "ok"), Diagnostic("three", "0", "invalid")]
    doubted = replace(ev, diagnostics=found)
    line = "INVALID, not to be believed (three), WARNING (one)"
    assert str(doubted) == f"{line}: {ev}"
    wide = Console(width=200, record=True, file=io.StringIO())
    wide.print(table({"plain": ev, "odd": doubted}))
    above = wide.export_text().split("┏")[0]
    assert f"odd: {line}" in above
    assert "plain" not in above
    card = doubted.robustbench_card("ours", "cifar10")
    assert card["footnote"].startswith(line)
    assert card["unreliable"]
    head = evaluation_page(doubted.to_dict(), "").metrics[0]
    assert head.value.endswith("(INVALID)")
    assert head.note.startswith(line)
    few = replace(ev, diagnostics=found[:2])
    assert str(few) == f"WARNING (one): {ev}"
    assert evaluation_page(few.to_dict(), "").metrics[0].value.endswith("% (!)")


def test_a_search_that_more_steps_would_help_is_flagged(monkeypatch):
    honest = gradients.apgd

    def slow(*inputs, steps, **settings):
        return honest(*inputs, steps=1 + (steps > 50) * 20, **settings)

    monkeypatch.setattr(gradients, "apgd", slow)
    model, (x, _) = Winding().eval(), tiny_batch(40)
    ev = hb.evaluate(model, (x, model(x).argmax(1)), threat=hb.Linf(0.02), attacks=["fgsm"], quiet=True)
    assert "optimisation-is-finished" in {d.name for d in ev.warnings}


class Winding(Defended):
    """One step leads astray."""

    def forward(self, x):
        return self.net(x + 0.05 * torch.sin(200 * x))


def test_a_plain_model_raises_no_flag(short_autoattack, digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        images, labels = digits["train"].fetch(torch.arange(len(digits["train"])))
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    x, y = digits["test"].fetch(torch.arange(100))
    for make, eps in ((hb.Linf, 0.05), (hb.L2, 0.3), (hb.L1, 1.0)):
        for suite in ("quick", "standard"):
            ev = hb.evaluate(model, (x, y), threat=make(eps), suite=suite, quiet=True)
            assert not ev.warnings, [(d.name, d.measured) for d in ev.warnings]
            assert ev.curve[0]["robust"] >= ev.curve[3]["robust"] >= ev.curve[-1]["robust"] == 0.0
            assert 0 < ev.robust_accuracy < ev.clean_accuracy


def test_a_random_model_is_evaluated_by_means_over_draws(monkeypatch):
    for name in ("apgd-ce", "apgd-dlr"):
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], attack=replace(PRESETS[name].attack, steps=10)))
    model = Noisy().eval()
    x, _ = tiny_batch(10)
    y = model.net(x).argmax(1)
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="rand", quiet=True)
    assert ev.provenance["draws"] == 20
    assert "deterministic" not in {d.name for d in ev.warnings}
    assert ev.robust_accuracy < ev.clean_accuracy
    again = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="rand", quiet=True)
    assert again.examples == ev.examples
    assert "averaging-is-needed" not in {d.name for d in ev.warnings}
    steady = hb.evaluate(model.net, (x, y), threat=hb.Linf(0.02), suite="rand", quiet=True)
    assert "standard" in next(d for d in steady.warnings if d.name == "averaging-is-needed").advice


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_get_a_stated_substitute(classes, short_autoattack):
    model, x, y = sound(20, classes=classes)
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.3), suite="standard", quiet=True)
    replaced = ev.provenance["substitutes"]
    assert set(replaced) == ({"apgd-t"} if classes < 4 else set())
    assert ev.robust_accuracy < 1
    assert all("cw-targeted" in text for text in replaced.values())


@pytest.mark.parametrize("shape", [(11,), (1, 8, 5), (3, 4, 9), (2, 3, 4, 4)])
def test_vectors_images_that_are_not_square_and_single_examples(shape, short_autoattack):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 5)).eval()
    x, _ = tiny_batch(12, shape)
    y = model(x).argmax(1)
    for threat in (hb.Linf(0.3), hb.L2(2.0)):
        ev = hb.evaluate(model, (x, y), threat=threat, suite="standard", quiet=True)
        assert ev.robust_accuracy < 1
    assert hb.evaluate(model, (x[:1], y[:1]), threat=hb.Linf(0.05), suite="standard", quiet=True).n == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_precisions(dtype, short_autoattack):
    model, x, y = sound(20)
    plain = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), suite="standard", quiet=True, diagnostics="cheap")
    ev = hb.evaluate(model.to(dtype), (x, y), threat=hb.Linf(0.02), suite="standard", quiet=True, diagnostics="cheap")
    assert abs(ev.robust_accuracy - plain.robust_accuracy) <= 0.1
    assert next(model.parameters()).dtype == dtype


def test_attacks_in_bfloat16_verdicts_in_full():
    model, x, y = sound(40)
    full = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), attacks=["apgd-ce"], quiet=True, diagnostics="cheap")
    half = hb.evaluate(
        model, (x, y), threat=hb.Linf(0.02), attacks=["apgd-ce"], precision="bf16", quiet=True, diagnostics="cheap"
    )
    assert abs(full.robust_accuracy - half.robust_accuracy) <= 0.05
    for example in half.examples:
        if example["broken_by"] == "apgd-ce":
            assert example["margin"] <= 0


def test_transfer_that_beats_gradients_is_a_sign():
    model = Quantised().eval()
    x, _ = tiny_batch(60)
    y = model(x).argmax(1)
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.08), attacks=["pgd-10"], surrogate=model.net, quiet=True)
    assert {d.name for d in ev.warnings} >= {"gradients", "transfer-pgd-20-beats-gradients"}
    with pytest.raises(hb.UserError, match="surrogate"):
        hb.evaluate(model, (x, y), threat=hb.Linf(0.08), attacks=["transfer-pgd-20"], quiet=True)


def test_a_card_in_the_style_of_robustbench(short_autoattack):
    model, x, y = sound(20)
    ev = hb.evaluate(model, (x, y), threat=hb.Linf("8/255"), suite="standard", quiet=True, diagnostics="cheap")
    card = ev.robustbench_card("ours", "cifar10", "tiny")
    assert card["eps"] == "8/255"
    assert card["autoattack_acc"] == f"{100 * ev.robust_accuracy:.2f}"
    quick = hb.evaluate(model, (x, y), threat=hb.Linf("8/255"), quiet=True, diagnostics="cheap")
    assert quick.robustbench_card("ours", "cifar10")["autoattack_acc"] is None


def test_a_margin_that_is_not_finite_is_null_in_every_file_and_in_memory_alike(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    plan = {"stages": {"fgsm": []}, "seed": 0, "n": 2, "bound": float("inf")}
    both, zero, one = np.arange(2), np.array([0]), np.array([1])
    with closing(RecordStore(tmp_path, plan)) as store:
        store.write(CLEAN, both, id=both + 5, label=1, predicted=1, margin=np.array([np.nan, 2.0]), right=True)
        store.write("fgsm", zero, broken=False, margin=np.inf)
        store.write("fgsm", one, broken=True, run=0, step=0, predicted=0, margin=-np.inf, norm=0.1)
        seen = store.records
    for path in (tmp_path / "plan.json", tmp_path / "verdicts-0.jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        assert all(json.loads(line, parse_constant=refuse) for line in lines)
    read = Records(2, ["fgsm"])
    read.read(tmp_path)
    with closing(RecordStore(tmp_path, plan)) as again:  # the same plan, although it holds no number there
        for other in (read, again.records):
            assert all(other[name].tolist().__repr__() == seen[name].tolist().__repr__() for name in (CLEAN, "fgsm"))
    nothing: dict = dict.fromkeys(
        ("threat", "suite", "sequential", "clean_accuracy", "robust_accuracy", "by_attack", "by_class")
    )
    nothing |= dict.fromkeys(("detection", "curve", "diagnostics", "provenance"))
    found = hb.Evaluation(**nothing, records=seen).examples
    assert [(e["clean_margin"], e["margin"]) for e in found] == [(None, None), (2.0, 2.0)]
    assert partial_result(tmp_path).at_most == 0.5


def test_all_json_is_written_by_one_function():
    root = ROOT / "src" / "hauberk"
    writers = {path.name for path in root.rglob("*.py") if re.search(r"json\.dumps?\(|JSONEncoder\(", path.read_text())}
    assert writers == {
        "draft.py",
        "io.py",
        "options.py",
        "reproduce.py",
        "toml.py",
    }  # the others write no JSON, but words and digests


def test_metrics_that_are_not_finite_are_null(tmp_path):
    from hauberk.training import MetricsLog
    from hauberk.training.callbacks import read_metrics

    MetricsLog(tmp_path).on_epoch_end(None, {"epoch": 1, "loss": float("nan")})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"epoch": 1, "loss": None}]


def test_adversarial_examples_that_were_lost_or_replaced_are_not_made_up(tmp_path):
    model, x, y = sound(8)
    how = {
        "threat": hb.Linf(0.02),
        "attacks": ["fgsm"],
        "quiet": True,
        "diagnostics": "cheap",
        "save_adversarials": True,
        "out": tmp_path,
    }
    hb.evaluate(model, (x, y), **how)
    path = tmp_path / "adversarials.npy"
    whole = path.read_bytes()
    path.write_bytes(b"something else")
    with pytest.raises(hb.UserError, match="not the array"):
        hb.evaluate(model, (x, y), **how)
    path.unlink()
    with pytest.raises(hb.UserError, match="is gone"):
        hb.evaluate(model, (x, y), **how)
    path.write_bytes(whole)
    hb.evaluate(model, (x, y), **how)  # nobody was locked out


@pytest.mark.parametrize(
    "threat",
    [
        hb.Linf(torch.tensor([0.1, 0.1, 0.0])),
        hb.Linf(torch.tensor([0.1, 0.1, 0.1]), low=0.0, high=float("inf")),
        make_threat("Linf", 0.1, 0.0, 1.0, monotone=torch.tensor([0, 1, 0])),
        hb.Linf(0.1),
    ],
    ids=["frozen", "unbounded", "one-way", "free"],
)
def test_only_a_whole_box_holds_an_adversarial_example_for_certain(threat):
    net = torch.nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, -0.1, -9.0], [-0.1, 0.1, 9.0]]))
        net.bias.copy_(torch.tensor([4.5, -4.5]))
    x = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = (x[:, 2] > 0.5).float()  # it decides, and is what cannot move freely
    result = hb.evaluate(net, (x, net(x).argmax(1)), threat=threat, attacks=["pgd-20"], quiet=True)
    verdicts = {d.name: d.verdict for d in result.diagnostics}
    assert verdicts.get("large-eps-breaks-everything", "none") == ("ok" if str(threat) == "Linf(0.1)" else "none")


def test_a_network_that_knows_one_class_only_hides_no_adversarial_example():
    net = torch.nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([0.0, 1.0]))
    x, y = torch.rand(60, 3), torch.arange(60) % 2
    verdicts = {
        d.name: d.verdict for d in hb.evaluate(net, (x, y), threat=hb.Linf(0.1), attacks=["pgd-20"], quiet=True).diagnostics
    }
    assert "large-eps-breaks-everything" not in verdicts
    assert verdicts["clean-accuracy"] == "invalid"
