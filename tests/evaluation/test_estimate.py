"""The two-phase estimate of the suite "fast": limits, coverage, and the full protocol as its end."""

import io
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import hypergeom

import hauberk as hb
from hauberk.attacks import PRESETS, SUITES, find_attack, find_suite
from hauberk.evaluation import table
from hauberk.evaluation.estimate import combined_limits, exact_limits, expected_sample, next_sample
from hauberk.evaluation.evaluate import _by_class
from hauberk.evaluation.records import CLEAN, Records
from hauberk.report.evaluation import evaluation_page
from helpers import sound


@pytest.mark.parametrize("n", [1, 7, 12])
@pytest.mark.parametrize("error", [0.05, 0.3])
def test_exact_limits_are_those_of_the_definition_and_cover(n, error):
    for m in range(1, n + 1):
        limits = [exact_limits(k, m, n, error) for k in range(m + 1)]
        for k, (low, high) in enumerate(limits):
            possible = range(k, n - (m - k) + 1)
            assert low == min(t for t in possible if hypergeom.sf(k - 1, n, t, m) > error / 2)
            assert high == max(t for t in possible if hypergeom.cdf(k, n, t, m) > error / 2)
        for total in range(n + 1):
            covered = sum(hypergeom.pmf(k, n, total, m) for k, (low, high) in enumerate(limits) if low <= total <= high)
            assert covered >= 1 - error - 1e-12


@pytest.mark.parametrize(("sizes", "drawn"), [((6, 10), (4, 4)), ((5, 20), (4, 5)), ((4, 9), (4, 3)), ((3, 12), (0, 6))])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_combined_limits_of_two_strata_cover_whatever_is_broken_where(sizes, drawn, error):
    limits = {
        ks: combined_limits([(k, m, n) for k, m, n in zip(ks, drawn, sizes, strict=True)], error)[1:]
        for ks in itertools.product(range(drawn[0] + 1), range(drawn[1] + 1))
    }
    for totals in itertools.product(range(sizes[0] + 1), range(sizes[1] + 1)):
        chance = {
            ks: math.prod(hypergeom.pmf(k, n, t, m) for k, n, t, m in zip(ks, sizes, totals, drawn, strict=True))
            for ks in limits
        }
        covered = sum(chance[ks] for ks, (low, high) in limits.items() if low <= sum(totals) <= high)
        assert covered >= 1 - error - 1e-9


def test_a_part_of_many_divisions_is_enough(monkeypatch):
    counts = [((30, 80, 300), (5, 90, 900)), ((0, 40, 200), (2, 150, 3000)), ((60, 70, 120), (0, 30, 400))]
    few = [combined_limits(pair, 0.03) for pair in counts]
    monkeypatch.setattr("hauberk.evaluation.estimate._MANY", 10**6)
    assert few == [combined_limits(pair, 0.03) for pair in counts]


# Of each: examples in all, survivors, and how likely the rest of the protocol breaks one, by its rank of margin (0 to 1).
POPULATIONS = {
    "nothing more is broken": (2000, 900, lambda rank: 0 * rank),
    "few of the lowest": (2000, 900, lambda rank: 0.2 * (rank < 0.05)),
    "masked in part": (2000, 1600, lambda rank: np.where(rank < 0.1, 0.46, 0.03)),
    "weak first attacks": (2000, 1100, lambda rank: 0.75 * (1 - rank)),
    "margins that say the opposite": (2000, 1000, lambda rank: 0.3 * (rank > 0.95)),
    "few examples": (150, 80, lambda rank: 0.3 * (rank < 0.1)),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_covers_and_is_as_narrow_as_asked(name):
    n, survivors, chance = POPULATIONS[name]
    draws = np.random.default_rng(0)
    rank = np.arange(survivors) / survivors
    truth = (draws.random(survivors) < chance(rank)).astype(float)
    wanted, covered, errors, trials = 0.02 * n, 0, [], 60
    for _ in range(trials):
        order = draws.permutation(survivors)
        known = np.full(survivors, np.nan)
        while True:
            asked, found = next_sample(rank[order], known, wanted)
            if found is not None:
                break
            assert np.isnan(known[asked]).all()
            assert len(asked)
            known[asked] = truth[order][asked]
        assert found.sampled == np.isfinite(known).sum()
        assert found.low <= found.broken <= found.high
        assert (found.high - found.low) / 2 <= wanted
        assert found.weights.sum() == pytest.approx(survivors)
        assert found.weights @ np.nan_to_num(known) == pytest.approx(found.broken)
        assert ((found.weights > 0) == np.isfinite(known)).all()
        covered += found.low <= truth.sum() <= found.high
        errors.append(found.broken - truth.sum())
    assert covered >= 0.9 * trials  # 54 of 60: by chance below that once in 10,000 at 97 %
    assert abs(np.mean(errors)) <= 3 * np.std(errors) / trials**0.5 + 1e-9


def test_all_are_attacked_where_no_width_is_allowed_and_none_where_none_stands():
    asked, found = next_sample(np.zeros(70), np.full(70, np.nan), 0.0)
    assert found is None
    assert sorted(asked) == list(range(70))
    _, found = next_sample(np.zeros(70), np.arange(70) % 2.0, 0.0)
    assert (found.broken, found.low, found.high, found.sampled) == (35, 35, 35, 70)
    _, found = next_sample(np.zeros(0), np.zeros(0), 5.0)
    assert (found.survivors, found.sampled, found.broken) == (0, 0, 0)


def test_a_sample_that_is_expected_grows_with_precision():
    sizes = [expected_sample(5000, wanted) for wanted in (200, 100, 50, 20, 0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 500
    assert sizes[-1] == 5000


def test_robust_accuracy_of_a_class_is_a_share_whatever_was_sampled_of_it():
    records, weights = Records(10, ["first", "rest"]), np.array([1, 1, 1, 6, 0, 0, 0, 0, 0, 0.0])
    records.set(CLEAN, np.arange(10), label=np.array([0, 0, 0, 1, 1, 1, 1, 0, 2, 2]), right=True)
    records.set("first", np.array([0]), broken=True)
    survivors = ~records.broken(["first"])
    found = _by_class(records, survivors, weights)
    assert found == {0: 0.75, 1: 1.0, 2: 1.0}  # by weights alone class 1 would have 6 of 4, and class 2 none of 2
    records.set("rest", np.array([2]), broken=True)
    assert _by_class(records, survivors, weights) == {0: 0.375, 1: 1.0, 2: 7 / 8}
    records.set(CLEAN, np.arange(10), label=-1, right=True)
    assert _by_class(records, survivors, weights) == {}


def test_parts_of_an_attack_are_its_runs():
    name, part = find_attack("APGD-T[:3]")
    assert (name, part.runs, part.whole, part.attack) == ("apgd-t[:3]", (None, 3), "apgd-t", find_attack("apgd-t")[1].attack)
    with pytest.raises(hb.UserError, match="did you mean"):
        find_attack("apgd-s[:3]")
    suite = find_suite("fast")
    for form in (suite, suite.for_threat(hb.L2(1))):
        assert form.sequential
        for whole in ("apgd-ce", "apgd-t", "fab-t", "square"):  # together the parts are the whole, each run once
            parts = [range(9)[slice(*one.runs)] for name, one in form.attacks.items() if whole in (one.whole, name)]
            assert sorted(run for part in parts for run in part) == list(range(9))
        assert set(form.sampled) < set(form.stages) == set(form.attacks)
    assert "fab-t[:1]" in suite.for_threat(hb.L1(1)).stages
    assert list(SUITES["fast"].columns)[-1] == "autoattack"


def test_the_full_run_of_fast_is_standard_and_goes_on_from_the_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr("hauberk.evaluation.estimate.PILOT", (1 / 40, 5, 200))
    model, x, y = sound(70)
    how = {"threat": hb.Linf(0.01), "batch_size": 16, "quiet": True, "diagnostics": "cheap"}
    shorter = {"apgd-ce": 10, "apgd-t": 10, "fab-t": 5, "square": 60}
    for name, steps in shorter.items():
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], attack=replace(PRESETS[name].attack, steps=steps)))
    whole = hb.evaluate(model, (x, y), suite="standard", **how)
    first = hb.evaluate(model, (x, y), suite="fast", to=12.0, out=tmp_path / "a", **how)
    found = first.sampled.estimate
    assert 0 < found.sampled < found.survivors
    low, high = first.sampled.interval
    assert low <= whole.robust_accuracy <= high
    assert low <= first.robust_accuracy <= high
    assert first.by_attack["autoattack"] == first.robust_accuracy
    assert first.interval[0] <= low
    assert high <= first.interval[1]
    assert f"estimated from {found.sampled} of {found.survivors} survivors" in str(first)
    # Wherever it is shown, the estimate has the interval of its own, the others Wilson's.
    ends = ", ".join(f"{100 * end:.1f}" for end in first.interval)
    page = evaluation_page(json.loads(json.dumps(first.to_dict())), "a network")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table({"a network": first}))
    assert console.export_text().count(f"{100 * first.robust_accuracy:.1f} [{ends}]") == 2
    rows = {row[0]: row[3] for row in next(s for s in page.sections if s.heading == "Attacks").blocks[0].rows}
    assert rows["autoattack"] == rows["worst case"] != rows["apgd-ce[:1]"]
    assert str(first.sampled) in page.metrics[0].note
    classes = next(s for s in page.sections if s.heading == "Classes").blocks
    assert "too small for an interval of each class" in classes[0].caption
    assert classes[0].header == ["class", "examples whose fate is known", "accuracy, %"]
    assert sum(row[1] for row in classes[0].rows) == (first.sampled.weights > 0).sum() < len(y)
    assert sum(e["weight"] for e in first.examples) == pytest.approx(len(y))
    assert first.to_dict()["estimate"]["sampled"] == found.sampled
    for result in (  # the limit, from the same records and from nothing
        hb.evaluate(model, (x, y), suite="fast", to=0, out=tmp_path / "a", **how),
        hb.evaluate(model, (x, y), suite="fast", to=0, **how),
    ):
        assert [e["broken_by"] is None for e in result.examples] == [e["broken_by"] is None for e in whole.examples]
        assert result.robust_accuracy == whole.robust_accuracy
        assert result.by_class == whole.by_class
        assert result.interval == whole.interval
    # Each pass of the protocol is made once, so that it never costs more than the standard one.
    assert sum(result.provenance["passes"].values()) <= 1.1 * sum(whole.provenance["passes"].values())
    sampled = np.array([e["weight"] > 0 for e in first.examples])
    stands, stands_in_whole = (np.array([attack is None for attack in result.broken_by]) for result in (first, whole))
    assert (stands == stands_in_whole)[sampled].all()
    with pytest.raises(hb.UserError, match="to must be 0 to 100"):
        hb.evaluate(model, (x, y), suite="fast", to=-1.0, **how)
