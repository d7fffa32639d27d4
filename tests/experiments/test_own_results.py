"""Evaluations of other loops side by side: numbers against SciPy and by hand, refusals, files that are found and sorted."""

import csv
import io
import json
from dataclasses import replace
from math import comb, isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

import hauberk as hb
from hauberk.experiments import find_results
from hauberk.experiments.comparison import Comparison
from hauberk.experiments.paired_tests import mcnemar

X = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0.5).long() + (X[:, 1] > 0.5).long()


def network(seed):
    """A linear network of three classes, better than chance, that no other seed has."""
    draw = torch.Generator().manual_seed(seed)
    net = torch.nn.Linear(4, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]) * 4)
        net.weight.add_(0.7 * torch.randn(3, 4, generator=draw))
        net.bias.copy_(torch.tensor([3.0, 0.5, -5]))
    return net


def evaluated(seed, x=X, y=Y, **more):
    how = {"threat": hb.Linf(0.05), "diagnostics": "cheap", "quiet": True}
    return hb.evaluate(network(seed), (x, y), **{**how, **more})


@pytest.fixture(scope="module")
def six():
    return {name: [evaluated(first + seed) for seed in range(3)] for name, first in (("at", 0), ("mine", 10))}


def exact(b, c):
    """McNemar's p-value by the sum of binomial coefficients."""
    return min(1.0, 2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))


def test_means_deviations_and_the_paired_test_are_those_of_the_evaluations(six):
    found = hb.compare_results(six)
    assert found.columns == ("clean", "fgsm", "pgd-20", "cw-30", "pgd-100", "worst case")
    for name, some in six.items():
        for column in found.columns:
            values = [100 * one.accuracies[column][0] for one in some]
            assert found.values[name][column] == pytest.approx(values)
            assert found.mean(name, column) == pytest.approx(np.mean(values))
            assert found.deviation(name, column) == pytest.approx(np.std(values, ddof=1))
    p = ttest_rel(*(found.values[name]["worst case"] for name in ("mine", "at"))).pvalue
    assert found.p_values("worst case") == {"mine": pytest.approx(p)}
    assert found.n == 60
    for said in ("arrays", "Linf(0.05)", "suite quick", "3 seeds", "60 test examples"):
        assert said in found.about
    assert "chance alone" in str(found)


@pytest.mark.parametrize("kind", ["evaluations", "paths", "texts"])
def test_one_seed_has_mcnemars_test_over_the_examples(six, kind, tmp_path):
    mine, at = six["mine"][0], six["at"][0]
    given = {"mine": mine, "at": [at]}
    if kind != "evaluations":
        for name, one in (("mine", mine), ("at", at)):
            one.save(tmp_path / f"{name}.json")
        given = {name: (str if kind == "texts" else Path)(tmp_path / f"{name}.json") for name in given}
    found = hb.compare_results(given, baseline="at")
    ours, theirs = mine.records.robust, at.records.robust
    b, c = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert b + c > 0
    assert found.discordant["worst case"] == {"mine": (b, c)}
    assert found.p_values("worst case") == {"mine": pytest.approx(exact(b, c))}
    right, wrong = mine.records.right & ~at.records.right, at.records.right & ~mine.records.right
    assert found.discordant["clean"] == {"mine": (int(right.sum()), int(wrong.sum()))}
    assert isnan(found.p_values("pgd-20")["mine"])  # a file does not say which examples PGD-20 alone leaves
    text = str(found)
    assert "| `mine` | " in text
    assert "worst case against `at`" in text
    assert "McNemar's exact test" in text
    assert "One seed says nothing about training" in text


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (9, 3), (40, 12), (5, 5)])
def test_mcnemars_exact_test(b, c):
    assert mcnemar(b, c) == pytest.approx(exact(b, c))


def test_of_an_estimate_there_is_no_test_over_examples():
    some = {name: evaluated(seed, suite="fast", to=50) for name, seed in (("at", 0), ("mine", 10))}
    assert some["at"].to_dict()["estimate"] is not None
    found = hb.compare_results(some)
    assert not found.discordant[found.columns[-1]]
    assert isnan(found.p_values(found.columns[-1])["mine"])
    assert "One seed: no deviation, no test." in str(found)


def test_the_worst_case_is_a_column_unless_autoattack_is_the_same():
    papers = {name: evaluated(seed, suite="papers") for name, seed in (("at", 0), ("mine", 10))}
    last = papers["at"].by_attack["autoattack"]
    for factor in (1.0, 0.9):  # as it would be if another attack of the suite broke more
        at = replace(papers["at"], robust_accuracy=factor * last, by_attack=papers["at"].by_attack | {"autoattack": last})
        alike = replace(at, provenance=at.provenance | {"model_id": "other"})
        found = hb.compare_results({"at": at, "mine": alike})
        assert found.columns[-1] == ("autoattack" if factor == 1 else "worst case")
        assert found.discordant[found.columns[-1]] == {"mine": (0, 0)}
        assert found.p_values(found.columns[-1]) == {"mine": 1.0}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"threat": hb.Linf(0.1)}, r"same threat model \(Linf\(0.05\) and Linf\(0.1\)\)"),
        ({"threat": hb.Linf(0.05, low=-1.0)}, "same (threat model|box and constraints)"),
        ({"suite": "papers"}, r"same suite \(quick and papers\)"),
        ({"attacks": ["fgsm", "pgd-20", "cw-30", "pgd-100"]}, "same suite"),
        ({"n": 40}, r"same number of test examples \(60 and 40\)"),
        ({"x": X.flip(0), "y": Y.flip(0)}, "same test examples in the same order$"),
        ({"x": 1 - X}, "same test examples in the same order$"),
    ],
    ids=["eps", "box", "suite", "custom", "n", "order", "inputs"],
)
def test_what_cannot_be_compared_is_refused_in_one_line(six, changed, says):
    with pytest.raises(hb.UserError, match=says) as error:
        hb.compare_results({"at": six["at"][0], "mine": evaluated(10, **changed)})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("at[0] and mine[0] cannot be compared")


def test_other_attacks_of_ones_own_are_refused():
    few = {name: evaluated(0, attacks=list(names)) for name, names in (("at", ("fgsm",)), ("mine", ("fgsm", "pgd-20")))}
    with pytest.raises(hb.UserError, match=r"same attacks \(fgsm and fgsm, pgd-20\)"):
        hb.compare_results(few)


def test_mistakes_are_refused_in_one_line(six, tmp_path):
    at, mine = six["at"], six["mine"]
    (tmp_path / "card.json").write_text('{"format": "hauberk-run/2"}')
    at[0].save(tmp_path / "evaluation.json")
    damaged = json.loads((tmp_path / "evaluation.json").read_text())
    del damaged["by_attack"]
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    for results, more, says in (
        ({"at": at}, {}, "two methods at least"),
        ({"at": at, "mine": mine[:2]}, {}, r"'at' has 3 evaluation\(s\), 'mine' has 2; give as many"),
        ({"at": at[:2], "mine": [mine[0], mine[0]]}, {}, r"mine\[0\] and mine\[1\] are of the same network"),
        ({"at": at, "mine": mine}, {"baseline": "att"}, "unknown baseline 'att'; did you mean 'at'"),
        ({"at": at, "mine": mine}, {"seeds": (1, 2)}, "seeds needs a number for each"),
        ({"at": at, "mine": []}, {}, "'mine' needs evaluations"),
        ({"at": at, "mine": [0.5, 0.6, 0.7]}, {}, "'mine' needs evaluations, or the paths of saved ones, got 0.5"),
        ({"at": at[0], "mine": tmp_path / "none.json"}, {}, "does not exist"),
        ({"at": at[0], "mine": tmp_path / "card.json"}, {}, "card.json is no evaluation"),
        ({"at": at[0], "mine": tmp_path / "damaged.json"}, {}, "damaged"),
        ([at, mine], {}, "results must be a dict"),
    ):
        with pytest.raises(hb.UserError, match=says) as error:
            hb.compare_results(results, **more)
        assert "\n" not in str(error.value)


def test_a_file_of_an_earlier_version_is_compared_by_what_it_says(six, tmp_path):
    six["at"][0].save(tmp_path / "at.json")
    old = json.loads((tmp_path / "at.json").read_text())
    del old["provenance"]["data_digest"], old["provenance"]["threat_digest"]
    (tmp_path / "at.json").write_text(json.dumps(old))
    found = hb.compare_results({"at": tmp_path / "at.json", "mine": six["mine"][0]})
    assert found.discordant["worst case"]["mine"]


def test_doubts_are_marked_in_every_form(six):
    doubted = hb.evaluation.Diagnostic("gradients", "zero", "invalid", "look")
    found = hb.compare_results({"at": six["at"][0], "mine": replace(six["mine"][0], diagnostics=[doubted])})
    assert found.doubts["mine"] == ["INVALID: gradients (1 of 1)"]
    table = found.table()
    assert "`mine` (INVALID)" in table.to_markdown()
    assert "mine (INVALID)" in table.to_latex()
    assert "INVALID: gradients" in table.to_csv()
    assert [label.get_text() for label in found.figure().axes[0].get_yticklabels()] == ["at", "mine (INVALID)"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_everything_is_saved_and_read_again(six, seeds, tmp_path):
    found = hb.compare_results({name: some[:seeds] for name, some in six.items()}, seeds=range(7, 7 + seeds))
    written = found.save(tmp_path / "new" / "folder")
    assert {path.suffix for path in written} == {".json", ".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    assert all(path.stat().st_size for path in written)
    read = Comparison(**json.loads((tmp_path / "new" / "folder" / "comparison.json").read_text()))
    assert str(read) == str(found)
    rows = list(csv.DictReader(io.StringIO(written[3].read_text())))
    assert {row["seed"] for row in rows} == {str(seed) for seed in found.seeds}
    assert len(rows) == 2 * seeds * len(found.columns)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_shows_means_and_what_its_bars_are(six, seeds):
    found = hb.compare_results({name: some[:seeds] for name, some in six.items()})
    picture = found.figure()
    (axes,) = picture.axes
    assert axes.get_xlim() == (0, 100)
    for container, column in zip(axes.containers, ("clean", "worst case"), strict=True):
        assert container[0].get_xdata() == pytest.approx([found.mean(name, column) for name in found.methods])
        (bars,) = container[2]
        for name, line in zip(found.methods, bars.get_segments(), strict=True):
            one = six[name][0]
            ends = one.interval if column == "worst case" else one.interval_of(one.clean_accuracy)
            spread = found.deviation(name, column)
            middle = found.mean(name, column)
            wanted = [100 * end for end in ends] if seeds == 1 else [middle - spread, middle + spread]
            assert line[:, 0] == pytest.approx(wanted)
    said = " ".join(picture.get_supxlabel().split())
    assert ("95 % interval" if seeds == 1 else "standard deviation over 3 seeds") in said
    assert found.about in said


def write(folder, name, one):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save(path)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("{}-{}/evaluation.json", "{}-seed-{}/evaluation.json"),
        ("{}/seed-{}/evaluation.json", "{}/{}/evaluation.json"),
        ("{}-{}.json", "{}_s{}.json"),
    ],
)
def test_method_and_seed_are_read_from_names(six, names, tmp_path):
    for name, pattern in zip(six, names, strict=True):
        for seed in (2, 0, 10):
            write(tmp_path, pattern.format(name, seed), six[name][0])
    found, seeds = find_results([str(tmp_path)])
    assert list(found) == ["at", "mine"]
    assert seeds == (0, 2, 10)
    assert found["mine"] == [tmp_path / names[1].format("mine", seed) for seed in (0, 2, 10)]


def test_method_and_seed_are_those_of_the_run(six, tmp_path):
    for folder, name, seed in (("a", "at", 4), ("b", "mail-trades", 4)):
        path = write(tmp_path, f"{folder}/evaluations/quick-0123/evaluation.json", six["at"][0])
        run = {"method": {"name": name, "seed": 9}, "settings": {"seed": seed}}
        (path.parents[2] / "run.json").write_text(json.dumps(run))
    found, seeds = find_results([str(tmp_path / "a"), str(tmp_path / "b" / "evaluations" / "quick-0123")])
    assert seeds == (4,)
    assert list(found) == ["at", "mail-trades"]
    write(tmp_path, "a/evaluations/standard-4567/evaluation.json", six["at"][0])
    with pytest.raises(hb.UserError, match=r"a has 2 evaluations; name one: .*quick-0123.*standard-4567"):
        find_results([str(tmp_path)])


def test_an_experiment_of_a_comparison_is_found_once(six, tmp_path):
    folder = tmp_path / "trades:beta=1" / "seed-3"
    for name in ("evaluation.json", "evaluation/evaluation.json"):
        write(folder, name, six["at"][0])
    record = {"method": "trades", "label": "trades:beta=1", "seed": 3}
    (folder / "experiment.json").write_text(json.dumps(record))
    assert find_results([str(tmp_path)]) == ({"trades:beta=1": [folder / "evaluation.json"]}, (3,))


def test_what_does_not_belong_together_is_refused(six, tmp_path):
    paths = [write(tmp_path, f"{name}.json", six["at"][0]) for name in ("at-0", "at-1", "mine-0", "mine-2", "x/at-0")]
    at, more, mine, last, twice = map(str, paths)
    with pytest.raises(hb.UserError, match=r"different seeds .'at': 0, 1; 'mine': 0, 2.* NAME=PATH,PATH"):
        find_results([at, more, mine, last])
    with pytest.raises(hb.UserError, match=r"both of 'at' with seed 0; .* NAME=PATH,PATH"):
        find_results([at, twice])
    with pytest.raises(hb.UserError, match="does not exist"):
        find_results([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(hb.UserError, match="holds no evaluation"):
        find_results([str(tmp_path / "empty")])
    found, seeds = find_results([f"at={at},{more}", f"other = {mine},{last}"])
    assert found == {"at": paths[:2], "other": paths[2:4]}
    assert seeds == ()
    for folder, beta in (("a", 1), ("b", 6)):
        write(tmp_path, f"{folder}/evaluation.json", six["at"][0])
        run = {"method": {"name": "trades", "beta": beta}, "settings": {"seed": beta}}
        (tmp_path / folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(hb.UserError, match=r"both of 'trades', with other method; .* NAME=PATH,PATH"):
        find_results([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_folder_that_cannot_be_told_apart_from_a_number_keeps_its_name(six, tmp_path):
    write(tmp_path, "resnet18/evaluation.json", six["at"][0])
    write(tmp_path, "standard/evaluation.json", six["at"][0])
    found, seeds = find_results([str(tmp_path)])
    assert list(found) == ["resnet18", "standard"]
    assert seeds == ()
