"""Windows of time series: what is in them, splits without leakage, and what of them can change."""

import runpy

import numpy as np
import pytest
import torch

import hauberk as hb
from hauberk.data import Before, make_windows, split_by_date, window_constraints
from hauberk.threat import threat_from_dict
from helpers import ROOT

DAYS = np.arange("2026-01-01", "2026-03-02", dtype="datetime64[D]")


def two_accounts():
    """Rows of two accounts, mixed as a log has them: the value is 1000 · account + day."""
    values = np.concatenate([np.arange(60.0), 1000 + np.arange(60.0)])
    account, dates = np.repeat(["a", "b"], 60), np.concatenate([DAYS, DAYS])
    order = np.argsort(dates, kind="stable")
    return values[order, None], (values[order] % 3).astype(int), dates[order], account[order]


def test_windows_hold_one_series_and_the_label_of_later():
    values, labels, dates, account = two_accounts()
    data = make_windows(values, labels, dates, length=5, horizon=2, stride=3, series=account, with_time=True)
    assert data.x.shape == (2 * 18, 5, 2)
    steps = data.x[:, :, 0].diff(dim=1)
    assert torch.equal(steps, torch.ones_like(steps))  # never from one account to the other
    assert data.y.tolist() == ((data.x[:, -1, 0] + 2) % 1000 + (data.x[:, -1, 0] // 1000) * 1000).long().remainder(3).tolist()
    assert torch.equal(data.x[:, :, 1], data.x[:, :, 0] % 1000)  # days since the first
    assert (data.ends - data.starts == np.timedelta64(6, "D")).all()
    texts = make_windows(values, labels, [str(day) for day in dates], length=5, horizon=2, stride=3, series=account)
    assert torch.equal(texts.x, data.x[..., :1])


@pytest.mark.parametrize(("fraction", "gap"), [(0.3, 0), (0.5, 4), (0.15, 10)])
def test_no_value_or_label_is_in_training_and_test(fraction, gap):
    values, labels, dates, account = two_accounts()
    data = make_windows(values, labels, dates, length=5, horizon=2, series=account)
    train, test = data.split(fraction, gap=gap)
    assert len(train) > 3 < len(test)
    last, first = train.ends.max(), test.starts.min()
    assert first - last > np.timedelta64(gap, "D")
    known = data.ends >= test.ends.min() - np.timedelta64(6, "D")
    assert known.mean() <= fraction  # those that are left out are of the latest, too
    assert all(part.in_time_order and (np.diff(part.ends) >= np.timedelta64(0)).all() for part in (train, test))
    rest, val = train.split(0.45)
    assert rest.ends.max() < val.starts.min() <= val.ends.max() <= train.ends.max()
    place = [int((data.x == x).all((1, 2)).nonzero()[0]) for x in val.x]  # no two windows are alike
    assert torch.equal(val.y, data.y[place])
    assert (val.ends == data.ends[place]).all()


def test_dates_are_never_parted_and_nonsense_is_refused():
    dates = np.repeat(np.arange(10), 10)
    train, test = split_by_date(np.random.default_rng(0).permutation(dates), 0.25)
    assert (len(train), len(test)) == (80, 20)
    shuffled = np.random.default_rng(0).permutation(dates)
    assert shuffled[train].max() < shuffled[test].min()
    for wrong, said in (
        (([1, 2], 1.5), "between 0 and 1"),
        ((["soon", "late"], 0.5), "numbers or dates"),
        (([1.0, float("nan")], 0.5), "1 are missing, the first in row 1"),
        (([3, 3, 3], 0.5), "leaves 0 examples to train on"),
        ((np.zeros((2, 2)), 0.5), "one for each example"),
    ):
        with pytest.raises(hb.UserError, match=said):
            split_by_date(*wrong)
    values, labels, dates, account = two_accounts()
    how = {"length": 5, "series": account}
    for change, said in (
        ({"dates": dates[::-1]}, "dates must rise within a series"),
        ({"length": 61}, "no series has 61 rows"),
        ({"labels": labels + 0.5}, "whole numbers"),
        ({"values": values[:-1]}, "need a label, a date and a series"),
    ):
        with pytest.raises(hb.UserError, match=said):
            make_windows(**{"values": values, "labels": labels, "dates": dates, **how, **change})


NAMES = ("amount", "count", "limit")


@pytest.mark.parametrize("norm", [hb.Linf, hb.L2, hb.L1])
def test_attacks_change_what_the_constraints_allow(norm):
    constraints = window_constraints(6, NAMES, change={"amount": "down", "limit": "none"}, last=2)
    threat = norm([0.3, 0.2, 0.3], **constraints)
    x = torch.rand(30, 6, 3)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 3))
    for attack in (hb.attacks.PGD(20), hb.attacks.APGD(steps=20), hb.attacks.Square(60)):
        x_adv = attack(net, x, net(x).argmax(1), threat).x_adv
        change = x_adv - x
        assert not change[:, :4].any()
        assert not change[:, :, 2].any()
        assert (change[:, :, 0] <= 0).all()
        assert change[:, 4:, 0].any()
        assert (change[:, 4:, 1] > 0).any()
        assert threat.contains(x_adv, x).all()
    for wrong, said in (({"last": 7}, "0 to 6 steps"), ({"change": {"sum": "up"}}, "unknown feature"),
                        ({"change": {"count": "sideways"}}, "change is one of")):  # fmt: skip
        with pytest.raises(hb.UserError, match=said):
            window_constraints(6, NAMES, **wrong)


def test_what_was_before_a_date_stays():
    values, labels, dates, account = two_accounts()
    data = make_windows(values / 2000, labels, dates, length=5, series=account, with_time=True)
    threat = hb.Linf([0.1, 0.0], low=-1.0, high=100.0, frozen=Before(40.0))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(10, 3))
    x = data.x
    region = threat.around(x)
    assert torch.equal(region.radius[..., 0] > 0, x[..., 1] >= 40)
    part = region.index_select(torch.tensor([3, 40])).radius
    assert torch.equal(part, region.radius[[3, 40]])
    ev = hb.evaluate(net, data, threat=threat, attacks=["pgd-10", "square-1000"], quiet=True)  # every step of the engine
    change = hb.attacks.pgd(net, x, data.y, threat).x_adv - x
    assert not change[x[..., 1] < 40].any()
    assert change[..., 0][x[..., 1] >= 40].any()
    assert not change[..., 1].any()
    untouched = x[:, -1, 1] < 40
    right = net(x).argmax(1) == data.y
    assert not (ev.records.broken(["pgd-10", "square-1000"]) & (untouched & right).numpy()).any()
    both = hb.Linf([0.1, 0.0], low=-1.0, high=100.0, frozen=Before(40.0, torch.eye(5, 2) > 0)).around(x)
    assert not both.radius[:, 0, 0].any()
    assert "frozen by Before" in repr(threat)
    with pytest.raises(hb.UserError, match="freezes features by a function"):
        threat_from_dict(threat.to_dict())
    assert threat.to_dict()["frozen"] != hb.Linf(0.1, frozen=Before(41.0)).to_dict()["frozen"]
    with pytest.raises(hb.UserError, match="frozen must return a boolean mask"):
        hb.Linf(0.1, frozen=lambda x: x).around(x)


def test_the_example_runs(capsys, monkeypatch):
    names = runpy.run_path(str(ROOT / "examples" / "fraud_series.py"))
    monkeypatch.setitem(names["main"].__globals__, "ACCOUNTS", 8)
    train = hb.train
    monkeypatch.setattr(hb, "train", lambda *given, **how: train(*given, **how | {"epochs": 1}))
    names["main"]()
    said = capsys.readouterr().out
    assert "520 windows to train on" in said
    for word in ("standard", "mail-at", "->", "2026-12"):
        assert word in said
