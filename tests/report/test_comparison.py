"""The first sentences of a report of a comparison, and how its tables are laid out."""

from dataclasses import replace

import pytest

from hauberk.experiments import Comparison
from hauberk.experiments.paired_tests import CLEAN
from hauberk.report.comparison import _pictures, summarise_comparison
from hauberk.report.html import Table


def compared(values, *, last=None, doubts=None, discordant=None):
    """A comparison of clean and robust accuracies: by method, pairs of lists over seeds."""
    methods, column = list(values), "pgd-20"
    seeds = len(values[methods[0]][0])

    def by_column(pairs):
        return {m: {CLEAN: pair[0], column: pair[1]} for m, pair in pairs.items()}

    return Comparison(
        about="nothing", methods=methods, seeds=range(seeds), columns=[CLEAN, column], values=by_column(values),
        doubts=doubts or {}, published={}, baselines=dict.fromkeys(methods[1:], methods[0]), last=by_column(last or {}),
        discordant=discordant or {},
    )  # fmt: skip


AT, TRADES, MART = ([80.0, 82.0, 81.0], [40.0, 42.0, 41.0]), ([78.0] * 3, [50.0, 52.5, 51.0]), ([70.0] * 3, [41.0, 40.0, 43.0])


def test_the_first_sentence_names_the_best_and_the_worst():
    said = summarise_comparison(compared({"at": AT, "trades": TRADES}))
    assert "trades is right most often under attack (pgd-20): for 51.2 % (78.0 % without an attack)" in said[0]
    assert "the least, at, for 41.0 %" in said[0]


def test_what_is_more_than_chance_is_told_from_what_is_not():
    both = summarise_comparison(compared({"at": AT, "trades": TRADES, "mart": MART}))[1]
    assert "over 3 seeds" in both
    assert "trades over at by +10.2 points; 1 other could be chance" in both
    assert "mart over" not in both
    assert summarise_comparison(compared({"at": AT, "mart": MART}))[1].startswith("No difference is more than chance")


@pytest.mark.parametrize(
    ("pairs", "words"), [((0, 9), "not over trainings"), ((5, 5), "No difference"), (None, "cannot be said")]
)
def test_of_one_seed_the_examples_are_tested_and_it_is_said(pairs, words):
    one = {"at": ([80.0], [41.0]), "trades": ([78.0], [50.0])}
    found = compared(one, discordant={"pgd-20": {"trades": pairs}} if pairs else {})
    assert words in summarise_comparison(found)[1]


def test_published_numbers_are_lines_in_the_picture_of_the_last_column_of_the_same_data_and_threat_model_only():
    found = compared({"at": AT, "trades": TRADES})
    for threat, there in (("Linf(8/255)", [44.9, 50.6, 64.25]), ("Linf(4/255)", [])):
        clean, attacked = _pictures(replace(found, data="cifar10", threat=threat), "")
        axes = attacked.picture.axes[0]
        assert [line.get_xdata()[0] for line in axes.lines if "%" in str(line.get_label())] == there
        assert not [line for line in clean.picture.axes[0].lines if "%" in str(line.get_label())]
        assert clean.picture.axes[0].get_xlim() == axes.get_xlim()
        assert ("published" in attacked.caption) == bool(there)


def test_the_last_epoch_is_spoken_of_where_it_was_evaluated():
    last = {"at": (AT[0], [38.0, 38.0, 38.0]), "trades": (TRADES[0], TRADES[1])}
    said = summarise_comparison(compared({"at": AT, "trades": TRADES}, last=last))
    assert any("at loses the most, 3.0 points" in sentence for sentence in said)
    assert not any("last one" in sentence for sentence in summarise_comparison(compared({"at": AT, "trades": TRADES})))


def test_doubts_are_named_last():
    said = summarise_comparison(compared({"at": AT, "trades": TRADES}, doubts={"at": ["gradients"], "trades": []}))
    assert "With care: there are warnings about at." in said[-1]
    assert "No evaluation raised a warning" in summarise_comparison(compared({"at": AT}))[-1]


def test_every_column_is_drawn_on_the_same_axis():
    pictures = _pictures(compared({"at": AT, "trades": TRADES}), "")
    assert {figure.picture.axes[0].get_xlim() for figure in pictures} == {(40.0, 90.0)}


def test_columns_of_numbers_are_known_and_rows_below_another_belong_to_it():
    rows = [
        ["`at`", "40.0 ± 2.0", "89.8 to 96.5 %", "+1.2 (p 0.222)", "3 of 4"],
        ["  last epoch", 38.5, "", "best 2", "x"],
        ["`b`", "1e-3", "1,000", "", ""],
    ]
    table = Table("t", "", ["a", "b", "c", "d", "e"], rows)
    assert table.numeric == [False, True, True, False, False]
    assert table.groups == [0, 0, 1]
    assert Table("t", "", ["a"], []).numeric == [False]
