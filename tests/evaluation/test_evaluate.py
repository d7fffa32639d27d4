import functools
import importlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import hauberk as hb
from hauberk.attacks import PRESETS, find_suite
from hauberk.evaluation import DIAGNOSTICS, DiagnosticSpec, Finding, table, wilson_interval
from hauberk.evaluation.diagnostics import run_diagnostics
from hauberk.evaluation.diagnostics.results import Verdicts
from hauberk.evaluation.records import CLEAN, Records, RecordStore
from hauberk.evaluation.runner import EvaluationRunner
from hauberk.evaluation.verify import read_columns
from hauberk.fastpath.precision import PrecisionPolicy
from helpers import CHECKPOINTS, MNIST, ROOT, THREAT, Noisy, small_mnist_net, sound, tiny_batch, tiny_net

evaluate_module = importlib.import_module("hauberk.evaluation.evaluate")  # the name of the function hides it


def evaluated(net, data, out, **more):
    how = {"threat": hb.Linf(0.01), "attacks": ["fgsm"], "diagnostics": "cheap", "quiet": True, "batch_size": 8}
    return hb.evaluate(net, data, out=out, **{**how, **more})


@pytest.mark.parametrize("kind", ["arrays", "items"])
@pytest.mark.parametrize("what", ["label", "pixel"])
def test_an_evaluation_of_other_data_is_refused(what, kind, tmp_path):
    x, y = tiny_batch(40)
    others = x.clone(), y.clone()
    if what == "label":
        others[1][-1] = (y[-1] + 1) % 5
    else:
        others[0][-1, -1, -1, -1] = 1 - x[-1, -1, -1, -1]
    net, pairs = tiny_net(), lambda x, y: (x, y) if kind == "arrays" else list(zip(x, y, strict=True))
    there = evaluated(net, pairs(x, y), tmp_path)
    assert evaluated(net, pairs(x, y), tmp_path).examples == there.examples
    says = "holds another evaluation .data: inputs, labels" if kind == "arrays" else "example 39 is another one"
    with pytest.raises(hb.UserError, match=says):
        evaluated(net, pairs(*others), tmp_path)
    assert evaluated(net, pairs(*others), None).n == 40


def test_an_evaluation_of_another_model_with_the_same_weights_is_refused(tmp_path):
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    net, other = nn.Linear(4, 3), Halved(4, 3)
    other.load_state_dict(net.state_dict())
    x = torch.rand(10, 4)
    evaluated(net, (x, torch.zeros(10, dtype=torch.int64)), tmp_path)
    with pytest.raises(hb.UserError, match=r"model_code: 'Linear, code .* there, '.*Halved, code"):
        evaluated(other, (x, torch.zeros(10, dtype=torch.int64)), tmp_path)


class Kept(nn.Module):
    """A network whose answers depend on more than its weights."""

    def __init__(self, kind, value):
        super().__init__()
        self.inner = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.inner.weight.copy_(torch.arange(12.0).view(3, 4))
        if kind == "buffer":
            self.register_buffer("scale", torch.tensor(value), persistent=False)
        else:
            self.scale = torch.tensor(value) if kind == "tensor" else value > 0

    def forward(self, x):
        return self.inner(x) * self.scale


def pushing(far):
    def attack(model, x, y, threat):
        return (x + far).clamp(0, 1)

    return attack


@pytest.mark.parametrize("kind", ["buffer", "tensor", "flag", "attack"])
def test_an_evaluation_is_bound_to_all_that_computes(kind, tmp_path):
    data, says = (torch.rand(10, 4), torch.zeros(10, dtype=torch.int64)), "model: its weights, buffers"
    if kind == "attack":
        first, other = ({"attacks": [pushing(far)]} for far in (0.0, 0.01))
        nets, says = (Kept("tensor", 1.0), Kept("tensor", 1.0)), r"code or settings of .*attack"
    else:
        first = other = {}
        nets = Kept(kind, 1.0), Kept(kind, -1.0)
        says = "model_code" if kind == "flag" else says
    evaluated(nets[0], data, tmp_path, **first)
    evaluated(nets[0], data, tmp_path, **first)
    with pytest.raises(hb.UserError, match=says):
        evaluated(nets[1], data, tmp_path, **other)


def test_an_evaluation_goes_on_under_the_same_version_only_and_says_other_threads(tmp_path, capsys):
    evaluated(tiny_net(), tiny_batch(10), tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"threads": 7}))
    evaluated(tiny_net(), tiny_batch(10), tmp_path, quiet=False)
    assert "begun with 7 threads: verdicts may differ by rounding" in capsys.readouterr().out
    evaluated(tiny_net(), tiny_batch(10), tmp_path, quiet=True)  # which hides progress, not this
    assert capsys.readouterr().err == f"{tmp_path} was begun with 7 threads: verdicts may differ by rounding\n"
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"hauberk": "0.0.1"}))
    with pytest.raises(hb.UserError, match=r"hauberk: '0\.0\.1' there"):
        evaluated(tiny_net(), tiny_batch(10), tmp_path)


class Linear(nn.Module):
    """Three classes; the distance of each point to the nearest boundary is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.5], [-1.0, 0.25], [0.0, -2.0]]))
        self.bias = nn.Parameter(torch.tensor([-0.3, 0.6, 0.4]))

    def forward(self, x):
        return x @ self.weight.T.to(x) + self.bias.to(x)

    def distance(self, x, y, dual):
        gaps = []
        for other in range(3):
            w = self.weight[y] - self.weight[other]
            gap = (x * w).sum(1) + self.bias[y] - self.bias[other]
            gaps.append(torch.where(y == other, torch.inf, gap / w.norm(p=dual, dim=1)))
        return torch.stack(gaps).amin(0)


@pytest.mark.parametrize(("make", "dual"), [(hb.Linf, 1), (hb.L2, 2), (hb.L1, torch.inf)])
def test_robust_accuracy_of_a_model_where_it_is_known(make, dual, device):
    model = Linear()
    x, _ = tiny_batch(400, (2,))
    y = model(x).argmax(1)
    y[:20] = (y[:20] + 1) % 3  # wrong without an attack
    right = torch.arange(400) >= 20
    distance = model.distance(x, model(x).argmax(1), dual).detach()
    ev = hb.evaluate(model.to(device), (x, y), threat=make(0.05, low=-1, high=2), attacks=["pgd-100", "cw-100"], quiet=True)
    sure = ((distance - 0.05).abs() > 0.002) & right
    stands = torch.tensor([who is None for who in ev.broken_by])
    assert torch.equal(stands[sure], (distance > 0.05)[sure])
    assert ev.clean_accuracy == 380 / 400
    assert ev.robust_accuracy == int(stands.sum()) / 400
    assert ev.broken_by[:20] == ["clean"] * 20
    assert ev.by_class == {c: int((stands & (y == c)).sum()) / int((y == c).sum()) for c in range(3)}


def test_the_worst_case_is_per_example_and_the_cheapest_attack_is_named():
    model = tiny_net(seed=2).eval()
    x, _ = tiny_batch(120)
    ev = hb.evaluate(model, (x, model(x).argmax(1)), threat=hb.Linf(0.03), attacks=["pgd-20", "fgsm", "cw-30"], quiet=True)
    assert list(ev.by_attack) == ["fgsm", "pgd-20", "cw-30"]
    assert ev.robust_accuracy <= min(ev.by_attack.values())
    assert ev.by_attack["fgsm"] == pytest.approx(1 - ev.broken_by.count("fgsm") / 120)
    assert 0 < ev.robust_accuracy < 1
    assert ev.provenance["passes"]["forwards"] > 0


def test_the_same_verdicts_at_any_batch_size_order_and_neighbours():
    model = tiny_net(seed=2).double().eval()
    x, y = tiny_batch(40, dtype=torch.float64)
    y = model(x).argmax(1)
    runs = [hb.evaluate(model, (x, y), threat=hb.Linf(0.02), batch_size=b, quiet=True).broken_by for b in (1, 7, 64)]
    assert runs[0] == runs[1] == runs[2]
    fewer = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), attacks=["pgd-20"], n=13, quiet=True)
    among_others = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), attacks=["pgd-20"], quiet=True).broken_by
    assert fewer.broken_by == among_others[:13]
    assert fewer.provenance["subset"] == "first 13 of 40"


class Sign(nn.Module):
    """Elementwise, so that passes of any size compute the same bits."""

    def forward(self, x):
        return torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1)


@pytest.mark.parametrize(("standing", "rows"), [(1, 1), (3, 4), (10, 16)])
def test_a_few_examples_that_stand_fill_a_few_rows(standing, rows):
    x = torch.full((64, 1), 0.51)
    x[20 : 20 + standing] = 0.9  # the others are broken at once
    y, passes = torch.zeros(64, dtype=torch.int64), []
    for steps in (40, 140):
        pgd = hb.attacks.PGD(steps)
        ev = hb.evaluate(Sign(), (x, y), threat=hb.Linf(0.1), attacks=[pgd], diagnostics=[], quiet=True)
        assert ev.robust_accuracy == standing / 64
        passes.append(ev.provenance["passes"]["forwards"])
    assert passes[1] - passes[0] == 100 * rows


def test_a_success_that_does_not_hold_again_does_not_count():
    class Forgets(nn.Module):
        """Wrong under gradients, right when looked at: what a claimed success must survive is a second look."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            score = x.flatten(1).sum(1)
            sign = -1 if x.requires_grad else 1
            return torch.stack([score * self.w * sign, -score * self.w * sign], 1)

    x = torch.rand(50, 3) + 0.01
    ev = hb.evaluate(
        Forgets(), (x.clamp(0, 1), torch.zeros(50, dtype=torch.long)), threat=hb.Linf(0.001), attacks=["pgd-20"], quiet=True
    )
    assert ev.robust_accuracy == 1.0
    assert next(d for d in ev.diagnostics if d.name == "unverified").verdict == "warning"


def test_wilson_agrees_with_scipy():
    for k, n in ((0, 10), (3, 10), (10, 10), (480, 1000), (1, 1)):
        exact = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(k, n) == pytest.approx((exact.low, exact.high), abs=1e-12)


def flags(right=850, unverified=0, n=1000, **broken):
    """Diagnostics of n verdicts, of which each attack breaks the first so many; attacks are named with _ for -."""
    suite = find_suite("", [name.replace("_", "-") for name in broken])
    records, i = Records(n, suite.stages), np.arange(n)
    records.set(CLEAN, i, id=0, label=0, predicted=0, margin=1.0, right=i < right)
    for name, count in broken.items():
        attacked = i[:right]
        verdicts = {"broken": attacked < count, "margin": 0.0, "unverified": attacked < unverified}
        records.set(name.replace("_", "-"), attacked, **verdicts)
    found = run_diagnostics(DIAGNOSTICS.values(), "verdicts", Verdicts(records, suite, 10, np.ones(records.n)))
    return {d.name: d.verdict for d in found}


def test_signs_raise_their_flag_and_no_other():
    sound = {"fgsm": 300, "pgd_20": 350, "cw_30": 360, "pgd_100": 355}
    assert set(flags(**sound).values()) == {"ok"}
    assert flags(**{**sound, "cw_30": 550})["cross-entropy-to-margin-gap"] == "warning"  # GAIRAT's sign
    assert flags(**{**sound, "fgsm": 400})["iterative-beats-single-step"] == "warning"
    assert flags(**{**sound, "pgd_100": 400})["more-steps-help"] == "warning"
    assert flags(**sound, apgd_t=550)["cross-entropy-to-margin-gap"] == "warning"
    assert flags(**sound, square=365)["square-beats-gradients"] == "warning"
    few = flags(right=58, n=60, pgd_20=5, pgd_100=7, apgd_t=8)  # two of 60 are more than 2 %, but may be chance
    assert {few["more-steps-help"], few["cross-entropy-to-margin-gap"]} == {"ok"}
    assert flags(right=110, fgsm=50)["clean-accuracy"] == "invalid"
    assert flags(unverified=20, fgsm=50)["unverified"] == "warning"


def test_a_model_that_is_no_better_than_one_answer_for_every_input_is_doubted():
    n = 400
    label = (np.arange(n) % 20 == 0).astype(int)

    def verdict(predicted, label=label):
        records, suite = Records(n, ["fgsm"]), find_suite("", ["fgsm"])
        records.set(CLEAN, np.arange(n), id=0, label=label, predicted=predicted, margin=1.0, right=predicted == label)
        specs = [DIAGNOSTICS["more-than-the-largest-class"]]
        return run_diagnostics(specs, "verdicts", Verdicts(records, suite, 2, np.ones(n)))

    constant, worse = verdict(0 * label), verdict(np.where(np.arange(n) < 20, 1, 0))
    assert [found.verdict for found in constant + worse] == ["warning", "warning"]
    assert constant[0].measured == "the model says class 0 for every input, and 95.0% of the examples are of the largest class"
    assert worse[0].measured.startswith("the model has 90.5% right")
    assert verdict(np.where(np.arange(n) < 40, label, 0))[0].verdict == "ok"
    assert verdict(0 * label, 0 * label) == []  # of one class nothing else is right
    x = torch.rand(60, 5)
    net = nn.Linear(5, 2)
    net.load_state_dict({"weight": torch.zeros(2, 5), "bias": torch.tensor([3.0, 0.0])})
    ev = evaluated(net, (x, torch.arange(60) // 57), None)
    assert "WARNING (more-than-the-largest-class)" in str(ev)


def test_what_is_no_number_is_the_worst_there_is():
    limits = {"ok": {}, "warning": {"warning": 1e9}, "invalid": {"warning": 0.0, "invalid": 1e9}}
    for verdict, of in limits.items():
        spec = DiagnosticSpec("mine", lambda evidence: [Finding(float("nan"), "not a number")], "sample", **of)
        assert [found.verdict for found in spec.run(None)] == [verdict]


def test_random_models_are_recognised():
    x, y = tiny_batch(20)
    state = torch.get_rng_state()
    ev = hb.evaluate(Noisy(), (x, y), threat=hb.Linf(0.01), attacks=["fgsm"], quiet=True)
    assert "deterministic" in {d.name for d in ev.warnings}
    assert ev.warnings[0].verdict == "invalid"
    assert torch.equal(state, torch.get_rng_state())


def test_saved_results_say_what_they_are(tmp_path):
    x, y = tiny_batch(20)
    ev = hb.evaluate(tiny_net(), (x, y), threat=hb.Linf("8/255"), quiet=True)
    ev.save(tmp_path / "ev.json")
    saved = json.loads((tmp_path / "ev.json").read_text())
    assert saved["bound"] == "upper"
    assert saved["n"] == 20
    assert saved["threat"] == "Linf(8/255)"
    assert saved["interval"] == list(ev.interval)
    assert set(saved["by_attack"]) == set(saved["provenance"]["attacks"]) == {"fgsm", "pgd-20", "cw-30", "pgd-100"}
    assert saved["provenance"]["versions"]["torch"] == torch.__version__
    assert "at most" in str(ev)
    assert table({"a": ev, "b": ev}).row_count == 6


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"suite": "quik"}, "did you mean 'quick'"),
        ({"attacks": ["pgd20"]}, "did you mean 'pgd-20'"),
        ({"n": 0}, "n must be 1 to 6"),
        ({"n": 7}, "n must be 1 to 6"),
        ({"batch_size": 0}, "batch_size"),
        ({"threat": hb.Linf(0.1, low=0.5, high=2.0)}, "outside the threat model's box"),
    ],
)
def test_mistakes_get_one_clear_line(kwargs, says):
    with pytest.raises(hb.UserError, match=says):
        hb.evaluate(tiny_net(), tiny_batch(), **{"threat": hb.Linf(0.1), "quiet": True, **kwargs})


def test_suites_name_whole_attacks_in_order_of_cost():
    assert list(find_suite("quick").stages) == ["fgsm", "pgd-20", "cw-30", "pgd-100"]
    assert list(find_suite("", ["pgd-plus-rst", "fgsm", "fgsm"]).stages) == ["fgsm", "pgd-plus-rst"]
    assert PRESETS["pgd-plus-rst"].attack.restarts == 5


def test_attacks_that_are_called_alike_all_run_and_are_numbered():
    some, strong = pushing(0.0), pushing(0.4)
    assert [name.rsplit(".", 1)[-1] for name in find_suite("", [some, strong, some]).stages] == ["attack", "attack #2"]
    lambdas = [hb.attacks.PGD(loss=lambda logits, y: logits.sum(1)), hb.attacks.PGD(loss=lambda logits, y: -logits.sum(1))]
    surrogates = [hb.attacks.Transfer(surrogate=nn.Linear(4, 3)) for _ in range(3)]
    partials = [functools.partial(pushing(0.0), far=far) for far in (0.0, 1.0)]
    assert [len(find_suite("", alike).stages) for alike in (lambdas, surrogates, partials)] == [2, 3, 2]
    model, x = nn.Linear(4, 2), torch.rand(40, 4)
    model.load_state_dict({"weight": torch.tensor([[-1.0] * 4, [1.0] * 4]), "bias": torch.tensor([2.0, -2.0])})
    data = x, model(x).argmax(1)
    alone, before, after = (
        evaluated(model, data, None, threat=hb.Linf(0.4), attacks=attacks)
        for attacks in ([strong], [strong, some], [some, strong])
    )
    assert before.robust_accuracy == after.robust_accuracy == alone.robust_accuracy < 1
    assert len(before.by_attack) == 2


def test_fab_goes_before_targeted_apgd_where_the_ball_is_no_box():
    suite, quick = find_suite("standard"), find_suite("quick")
    assert list(suite.for_threat(hb.Linf(0.1)).stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for threat in (hb.L2(0.1), hb.L1(0.1)):
        other = suite.for_threat(threat)
        assert list(other.columns) == ["apgd-ce", "fab-t", "apgd-t", "square"]
        assert other.sequential
        assert other.attacks == suite.attacks
        assert quick.for_threat(threat) is quick
    x, _ = tiny_batch(12)
    model = tiny_net(seed=2).eval()
    y = model(x).argmax(1)
    ev = hb.evaluate(model, (x, y), threat=hb.L2(0.2), suite="standard", diagnostics=[], quiet=True)
    assert list(ev.by_attack) == ["apgd-ce", "fab-t", "apgd-t", "square"]


def test_attacks_with_the_name_of_a_code_judge_what_it_judges():
    """The codes of TRADES, MART, MAIL, FAT and Madry judge where an attack ends; RST's counts every point."""
    last = {name for name, preset in PRESETS.items() if preset.attack.return_last}
    assert last == {name for name in PRESETS if name.endswith("-last")} | {
        *("pgd20-trades", "pgd100-mail", "cw20-mail", "cw30-fat", "pgd10-madry-cifar", "pgd40-madry-mnist")
    }

    class Band(torch.nn.Module):
        """Right at 0.35, wrong within 0.1 of 0.5: steps of 0.2 go there and back."""

        def forward(self, x):
            margin = (x - 0.5).abs() - 0.1
            return torch.cat([-margin, margin], 1)

    data, threat = (torch.full((4, 1), 0.35), torch.ones(4, dtype=torch.long)), hb.Linf(0.3)
    for steps, last, stands in ((7, False, 0.0), (7, True, 0.0), (8, False, 0.0), (8, True, 1.0)):
        attack = hb.attacks.PGD(steps, 0.2, "clean", return_last=last)
        ev = hb.evaluate(Band(), data, threat=threat, attacks=[attack], quiet=True, diagnostics="cheap")
        assert ev.by_attack[str(attack)] == stands, attack


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="reference networks are not at hand (../shared/checkpoints)")
@pytest.mark.parametrize(
    ("file", "eps", "clean", "attacks", "low", "high"),
    [
        # Official APGD-CE 85.4 and PGD-20 (ε/4) 88.4 on these 500; published AutoAttack 82.93 on all 10,000.
        (
            "fast_adversarial_mnist_fgsm.pth",
            0.3,
            (0.97, 0.995),
            {"apgd-ce": (0.834, 0.861), "pgd-20": (0.87, 0.90), "cw-30": (0.87, 0.90), "pgd-100": (0.86, 0.885)},
            0.82,
            0.88,
        ),
        # Certified: no attack may get below 94.2 % on the whole set; APGD finds 95.3 on the first 1,000.
        ("convex_adversarial_models_mnist.pth", 0.1, (0.975, 1.0), {"pgd-100": (0.945, 0.97)}, 0.942, 0.97),
    ],
)
def test_published_networks(file, eps, clean, attacks, low, high):
    model = hb.load(CHECKPOINTS / file, model=small_mnist_net())
    test = hb.data.load_data("mnist", "test", MNIST)
    ev = hb.evaluate(model, test, threat=hb.Linf(eps), attacks=list(attacks), n=500, quiet=True)
    assert clean[0] <= ev.clean_accuracy <= clean[1]
    for name, (least, most) in attacks.items():
        assert least <= ev.by_attack[name] <= most, name
    assert low <= ev.robust_accuracy <= high


def test_datasets_and_numpy_are_taken():
    x, y = tiny_batch(10)
    for data in ((x.numpy(), y.numpy()), torch.utils.data.TensorDataset(x, y), [x, np.asarray(y)]):
        assert hb.evaluate(tiny_net(), data, threat=hb.L2(0.1), attacks=["fgsm"], quiet=True).n == 10


def test_no_answer_under_attack_counts_as_broken_and_is_said(tmp_path):
    """Half of the examples lie where the model answers whatever the attack does, half where moving makes it NaN."""

    class HalfNan(Linear):
        def forward(self, x):
            moved = ((x != 0.25) & (x != 2.0)).any(1, keepdim=True) & (x < 1).all(1, keepdim=True)
            return torch.where(moved, torch.nan, torch.tensor([[9.0, 0.0, 0.0]]) + 1e-3 * super().forward(x))

    x = torch.tensor([[0.25, 0.25]] * 20 + [[2.0, 2.0]] * 20)
    y, threat = torch.zeros(40, dtype=torch.long), hb.Linf(0.01, low=0, high=3)
    ev = hb.evaluate(HalfNan(), (x, y), threat=threat, out=tmp_path, attacks=["pgd-20", "square"], quiet=True)
    assert ev.clean_accuracy == 1.0
    assert ev.robust_accuracy == 0.5
    assert ev.broken_by == ["pgd-20"] * 20 + [None] * 20
    found = next(d for d in ev.diagnostics if d.name == "finite-logits")
    assert (found.verdict, found.measured.split()[1]) == ("warning", "20")
    assert all(example["margin"] == 0.0 for example in ev.examples[:20])
    json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)  # neither NaN nor Infinity
    records = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "verdicts-0.jsonl").read_text().splitlines()
    ]
    assert sum(record.get("finite") is False for record in records) == 40  # two attacks, each on all
    sound = hb.evaluate(Linear(), (x, y), threat=threat, attacks=["pgd-20"], quiet=True, diagnostics="cheap")
    assert next(d for d in sound.diagnostics if d.name == "finite-logits").verdict == "ok"


def test_the_page_on_evaluation_has_every_diagnostic_with_its_thresholds():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    said = {name.strip(" `"): (warning.strip(), invalid.strip()) for name, _, warning, invalid in rows}

    def shown(limit):
        return "" if limit == np.inf else f"{limit:.4f}".rstrip("0").rstrip(".")

    limits = {name: (shown(spec.warning), shown(spec.invalid)) for name, spec in DIAGNOSTICS.items()}
    assert said == limits
    assert all(spec.advice for spec in DIAGNOSTICS.values())


def test_a_diagnostic_of_ones_own_runs_where_its_evidence_is():
    x, _ = tiny_batch(30)
    model = tiny_net(seed=2).eval()
    seen = []

    def measure(evidence):
        seen.append(type(evidence).__name__)
        return [Finding(0.5, "half")]

    kinds = ("model", "sample", "verdicts")
    mine = [
        DiagnosticSpec(f"my-{kind}", measure, kind, warning=w, advice="look")
        for kind, w in zip(kinds, (0.4, 0.6, 0.4), strict=True)
    ]
    how = {"threat": hb.Linf(0.01), "attacks": ["fgsm"], "quiet": True}
    ev = hb.evaluate(model, (x, model(x).argmax(1)), diagnostics=[*mine, "clean-accuracy"], **how)
    assert [(d.name, d.verdict) for d in ev.diagnostics] == [
        ("my-model", "warning"), ("my-sample", "ok"), ("my-verdicts", "warning"), ("clean-accuracy", "ok")
    ]  # fmt: skip
    assert seen == ["CleanInputs", "Sample", "Verdicts"]
    assert ev.curve
    assert str(ev).startswith("WARNING (my-model, my-verdicts)")
    assert {d.advice for d in ev.warnings} == {"look"}
    cheap = hb.evaluate(model, (x, model(x).argmax(1)), diagnostics="cheap", **how)
    names = {name for name, spec in DIAGNOSTICS.items() if spec.evidence == "sample"}
    assert not cheap.curve
    assert not {d.name for d in cheap.diagnostics} & names
    assert {d.name for d in cheap.diagnostics} >= {"logits", "deterministic", "clean-accuracy", "unverified"}
    for wrong, says in (("chaep", "did you mean 'cheap'"), (["gradient"], "did you mean 'gradients'")):
        with pytest.raises(hb.UserError, match=says):
            hb.evaluate(model, (x, model(x).argmax(1)), diagnostics=wrong, **how)
    with pytest.raises(hb.UserError, match="evidence must be 'model'"):
        DiagnosticSpec("x", measure, "verdict")


@pytest.mark.parametrize("precision", ["model", "fp32", "tf32", "bf16", "auto"])
def test_every_precision_finds_the_same_but_for_rounding_and_says_what_it_used(precision, tmp_path, monkeypatch):
    model = tiny_net(seed=2).eval()
    x, _ = tiny_batch(40)
    how = {"threat": hb.Linf(0.02), "attacks": ["pgd-10"], "quiet": True, "diagnostics": "cheap"}
    data = x, model(x).argmax(1)
    plain = hb.evaluate(model, data, precision="model", **how)
    monkeypatch.setattr(evaluate_module, "autotune_precision", lambda *given: PrecisionPolicy("bf16"))
    ev = hb.evaluate(model, data, precision=precision, out=tmp_path, **how)
    assert ev.provenance["precision"] == {"auto": "bf16"}.get(precision, precision)
    assert abs(ev.robust_accuracy - plain.robust_accuracy) <= 0.05
    if precision == "model":
        assert ev.examples == plain.examples
    # An evaluation that goes on does not measure again.
    monkeypatch.setattr(evaluate_module, "autotune_precision", lambda *given: PrecisionPolicy("fp32"))
    assert (
        hb.evaluate(model, data, precision=precision, out=tmp_path, **how).provenance["precision"] == ev.provenance["precision"]
    )
    with pytest.raises(hb.UserError, match="precision must be 'model', 'fp32', 'tf32', 'bf16' or 'auto'"):
        hb.evaluate(model, data, precision="full", **how)


def test_columns_are_read_together_to_the_last_bit():
    columns = {
        "id": torch.tensor([2**63 - 1, -(2**63), 2**53 + 1]),
        "margin": torch.tensor([0.1, -torch.inf, torch.nan]),
        "norm": torch.tensor([0.1, 5e-324, 1e308], dtype=torch.float64),
        "holds": torch.tensor([True, False, True]),
    }
    for name, column in read_columns(columns).items():
        expected = columns[name].numpy()
        assert np.array_equal(column, expected.astype(float) if name == "margin" else expected, equal_nan=name == "margin")
        assert column.dtype == (bool if name == "holds" else np.int64 if name == "id" else np.float64)


def test_what_is_found_takes_few_bytes_of_memory():
    n = 1000
    records = Records(n, ["a", "b", "c", "d"])
    size = sum(records[name].nbytes for name in (CLEAN, "a", "b", "c", "d"))
    assert size / n <= 160


def test_examples_are_written_many_at_once(tmp_path, monkeypatch):
    model = nn.Linear(4, 3)
    x = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    blocks = []
    whole = RecordStore._append
    monkeypatch.setattr(RecordStore, "_append", lambda self, lines: (blocks.append(lines.count("\n")), whole(self, lines)))
    data = x, model(x).argmax(1)
    hb.evaluate(model, data, threat=hb.Linf(0.02), attacks=["fgsm"], out=tmp_path, quiet=True, diagnostics="cheap")
    assert sum(blocks) == len((tmp_path / "verdicts-0.jsonl").read_text().splitlines()) >= 3800
    assert len(blocks) <= 2 + 3 * (2000 // 256 + 1)  # clean pass, verdicts, those that leave


class Changing(nn.Module):
    """Its answer, or its input, is changed by a function."""

    def __init__(self, answer=lambda z: z, point=lambda x: x):
        super().__init__()
        self.net, self.answer, self.point = tiny_net(), answer, point

    def forward(self, x):
        return self.answer(self.net(self.point(x)))


class Unreadable:
    def __len__(self):
        return 5

    def __getitem__(self, i):
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Changing(lambda z: (z, z)), r"must return logits of shape \(6, classes\).*wrap it in a module"),
        (lambda: Changing(lambda z: {"logits": z}), "wrap it in a module that returns the logits alone"),
        (lambda: Changing(lambda z: z.long()), "floating-point numbers, it returned torch.int64"),
        (lambda: Changing(lambda z: z.to(torch.complex64)), "floating-point numbers, it returned torch.complex64"),
        (lambda: Changing(point=lambda x: x.mul_(2)), "in.place"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "run one batch through it first"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5, device="meta")), "which hold nothing"),
        (lambda: tiny_net().forward, "must be a torch.nn.Module"),
        (lambda: nn.Linear, "must be a torch.nn.Module"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), "cannot take inputs of shape"),
    ],
)
def test_models_that_cannot_be_attacked_are_refused_by_all_that_attack(model, says):
    x, y = tiny_batch()
    for call in (
        lambda: hb.evaluate(model(), (x, y), threat=THREAT, diagnostics="cheap", quiet=True),
        lambda: hb.attacks.square(model(), x.clone(), y, THREAT, steps=2),
        lambda: hb.method("at", THREAT, steps=1)(model(), x.clone(), y),
    ):
        with pytest.raises(hb.UserError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threat": 8 / 255}, "threat must be a threat model, such as hb.Linf"),
        ({"batch_size": "8"}, "batch_size must be a whole number of 64 bits, got '8'"),
        ({"n": True}, "n must be a whole number"),
        ({"attacks": "fgsm"}, "attacks must be a list"),
        ({"attacks": [hb.attacks.PGD]}, "is a class, PGD; pass an instance"),
        ({"surrogate": nn.Linear(7, 5)}, "surrogate: the model cannot take inputs"),
        ({"diagnostics": [3]}, "each of it text or a DiagnosticSpec"),
        ({"test_set": {"x": 1, "y": 2}}, "data must be a pair"),
        ({"test_set": Unreadable()}, "fails at example 0: OSError: the disk is gone"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, says):
    with pytest.raises(hb.UserError, match=says):
        hb.evaluate(**{"model": tiny_net(), "test_set": tiny_batch(), "threat": THREAT, "quiet": True, **changes})


@pytest.mark.parametrize("suite", ["standard", "fast", "quick"])
def test_the_time_that_is_left_counts_the_passes_of_those_who_stand(suite, monkeypatch):
    """By a clock that goes with the passes, what is said to be left never rises by more than a quarter, and comes true."""
    runners, said, ticks, begin = [], [], itertools.count(), EvaluationRunner.clean_pass

    def clock():
        return (runners[0]._work_done + 1e-3 * next(ticks)) / 1000 if runners else 0.0

    def clean_pass(self):
        runners.append(self)
        begin(self)

    def reach(self, fraction, title, left):
        if left is not None:
            said.append((clock(), fraction, left))

    monkeypatch.setattr(EvaluationRunner, "clean_pass", clean_pass)
    monkeypatch.setattr("hauberk.evaluation.runner.time.monotonic", clock)
    monkeypatch.setattr("hauberk.core.progress.ProgressBar.reach", reach)
    monkeypatch.setattr("hauberk.evaluation.runner.SHOW_EVERY", 0.0)
    monkeypatch.setattr("hauberk.evaluation.runner._SHARE", 0)
    monkeypatch.setattr("hauberk.evaluation.estimate.PILOT", (1 / 40, 5, 200))
    for name, steps in {"apgd-ce": 20, "apgd-t": 20, "fab-t": 10, "square": 200}.items():
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], attack=replace(PRESETS[name].attack, steps=steps)))
    model, x, y = sound(60)
    hb.evaluate(model, (x, y), threat=hb.Linf(0.01), suite=suite, to=20.0, batch_size=16, diagnostics="cheap")
    assert len(said) > 20
    when, done, left = np.array(said).T
    assert (left[1:] <= 1.25 * np.minimum.accumulate(left)[:-1] + 0.02 * left[0]).all()
    assert (np.diff(done) >= -0.1).all()
    assert 0.5 <= left[0] / (when[-1] - when[0]) <= 3  # at first as if nobody were broken any more
    assert left[-1] < 0.1 * left[0]


def test_showing_the_progress_takes_a_small_part_of_the_time(monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr("hauberk.evaluation.runner.time.monotonic", lambda: clock[0])

    def show(self, *more):
        shown.append(clock[0])
        clock[0] += 0.9  # as with a million examples

    monkeypatch.setattr(EvaluationRunner, "_show", show)
    runner = object.__new__(EvaluationRunner)
    runner.records, runner._shown, runner.state_path = {"fgsm": {"known": np.zeros(3, dtype=bool)}}, 0.0, None
    queue = SimpleNamespace(part_done=lambda: 0.0)
    for hidden, least, most in ((True, 0, 0), (False, 2, 4)):
        runner.display = SimpleNamespace(hidden=hidden)
        clock[0] = 0.0
        while clock[0] < 100:
            clock[0] += 0.1
            runner._pause("fgsm", queue, np.arange(3))
        assert least <= len(shown) <= most


def test_a_table_of_several_threat_models_has_each_number_in_the_row_of_its_attacks():
    ev = evaluated(nn.Linear(6, 4), (torch.rand(12, 6), torch.zeros(12, dtype=torch.long)), None)

    def rows(sequential, *attacks):
        some = (replace(ev, sequential=sequential, by_attack=dict.fromkeys(names, 0.5)) for names in attacks)
        columns = table({str(k): one for k, one in enumerate(some)}).columns
        labels, *cells = ([str(cell) for cell in column.cells] for column in columns)
        return labels, [[k for k, cell in enumerate(column) if cell == "-"] for column in cells]

    boxed, round_one = (list(find_suite("standard").for_threat(threat).columns) for threat in (hb.Linf(0.1), hb.L2(0.1)))
    in_turn = ["apgd-ce", "+ apgd-t", "+ fab-t", "+ square", "+ fab-t", "+ apgd-t", "+ square"]
    assert rows(True, boxed, round_one) == (["clean", *in_turn, "worst case"], [[5, 6, 7], [2, 3, 4]])
    assert rows(True, boxed, boxed) == (["clean", *in_turn[:4], "worst case"], [[], []])
    quick = list(find_suite("quick").columns)
    assert rows(False, [*quick, "square-1000"], quick) == (["clean", *quick, "square-1000", "worst case"], [[], [5]])


def test_several_threat_models_give_each_and_their_union(tmp_path):
    model, x, y = sound(40)
    threats = [hb.Linf(0.01), hb.L2(0.1), hb.L1(0.5)]
    how = {"attacks": ["pgd-10", "fgsm"], "diagnostics": "cheap", "quiet": True, "batch_size": 16}
    union = hb.evaluate(model, (x, y), threat=threats, out=tmp_path, **how)
    alone = [hb.evaluate(model, (x, y), threat=threat, **how) for threat in threats]
    assert [r.examples for r in union.results.values()] == [one.examples for one in alone]
    robust = np.logical_and.reduce([[b is None for b in one.broken_by] for one in alone])
    assert 0 < robust.sum() <= min(sum(b is None for b in one.broken_by) for one in alone)
    assert union.robust_accuracy == robust.mean()
    assert union.interval == wilson_interval(int(robust.sum()), 40)
    assert union.by_attack == {str(threat): one.robust_accuracy for threat, one in zip(threats, alone, strict=True)}
    assert [b is None for b in union.broken_by] == robust.tolist()
    assert "Linf(0.01): pgd-10" in union.broken_by or "Linf(0.01): fgsm" in union.broken_by
    per_class = [robust[(y == c).numpy()].mean() for c in union.by_class]
    assert list(union.by_class.values()) == pytest.approx(per_class)
    assert union.provenance["passes"]["forwards"] == sum(one.provenance["passes"]["forwards"] for one in alone)
    assert f"L2(0.1) {100 * alone[1].robust_accuracy:.1f} %" in str(union)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["robust_accuracy"] == union.robust_accuracy
    digests = {one.provenance["threat_digest"] for one in (union, *union.results.values())}
    assert len(digests) == 4
    with pytest.raises(hb.UserError, match=r"card is of one threat model, and there are Linf\(0\.01\) and L2\(0\.1\) and"):
        union.robustbench_card("ours", "cifar10")
    assert union.results["L2(0.1)"].robustbench_card("ours", "cifar10")["eps"] == "0.1"
    assert (tmp_path / "L2-0-1" / "verdicts-0.jsonl").exists()
    assert hb.evaluate(model, (x, y), threat=threats, out=tmp_path, **how).examples == union.examples
    refused = (
        ([], "quick", "several that differ"),
        (threats[:1] * 2, "quick", "differ"),
        (threats, "fast", "one threat model at a time"),
    )
    for threat, suite, says in refused:
        with pytest.raises(hb.UserError, match=says):
            hb.evaluate(model, (x, y), threat=threat, suite=suite, quiet=True)
