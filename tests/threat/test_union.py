import json

import pytest
import torch

import hauberk as hb
from hauberk.threat import ThreatUnion, as_threat, only_threat, read_threat, threats_of
from helpers import tiny_batch

LINF, L2 = hb.Linf("8/255"), hb.L2(0.5)


def test_a_union_is_a_sequence_and_contains_what_any_of_them_does():
    x, _ = tiny_batch(4)
    union = as_threat([LINF, L2])
    assert (len(union), union[1], str(union)) == (2, L2, "Linf(8/255) and L2(0.5)")
    far = x.clone()
    far[0, 0, 0, 0] += 0.4 * (1 - 2 * (x[0, 0, 0, 0] > 0.5))  # one pixel: within L2
    far[1] += 7 / 255 * (1 - 2 * (x[1] > 0.5))  # all pixels: within L∞
    far[2] += 20 / 255 * (1 - 2 * (x[2] > 0.5))  # neither
    assert union.contains(far, x).tolist() == [True, True, False, True]
    assert [str(one) for one in union.scaled(0.5)] == ["Linf(0.5*(8/255))", "L2(0.5*(0.5))"]


def test_cards_hold_them_all():
    union = ThreatUnion((LINF, hb.L1(12, low=-1.0)))
    again = read_threat(json.loads(json.dumps(union.to_dict())))
    assert str(again) == str(union)
    assert read_threat(LINF.to_dict()).eps_text == "8/255"
    with pytest.raises(hb.UserError, match="no readable threat model"):
        read_threat({"norm": "union", "threats": [{"norm": "L2"}]})
    with pytest.raises(hb.UserError, match="no readable threat models"):
        read_threat({"norm": "union"})


def test_one_is_no_union_and_mistakes_are_said():
    assert as_threat([LINF]) is LINF is as_threat(LINF)
    assert threats_of(LINF) == (LINF,)
    assert only_threat(LINF, "it is") is LINF
    with pytest.raises(
        hb.UserError, match=r"certificates are under one threat model at a time, and there are Linf\(8/255\) and"
    ):
        only_threat(ThreatUnion((LINF, L2)), "certificates are")
    for wrong in ([LINF, LINF], [], [LINF, 0.1], 0.1, "Linf"):
        with pytest.raises(hb.UserError, match="threat"):
            as_threat(wrong)


def test_threat_models_that_print_alike_are_numbered(tmp_path):
    first, second = (hb.Linf(0.1, frozen=[k]) for k in (0, 1))
    union = as_threat([first, second])
    assert str(union) == "Linf(0.1, 1 frozen) and Linf(0.1, 1 frozen) #2"
    with pytest.raises(hb.UserError, match=r"several that differ, got Linf\(0.1, 1 frozen\), Linf\(0.1, 1 frozen\)$"):
        as_threat([first, hb.Linf(0.1, frozen=[0])])
    model, x = torch.nn.Linear(4, 3), torch.rand(20, 4)
    how = {"attacks": ["fgsm"], "quiet": True, "diagnostics": []}
    found = hb.evaluate(model, (x, model(x).argmax(1)), threat=union, out=tmp_path, **how)
    assert found.threat == str(union)
    assert list(found.results) == found.threat.split(" and ") == list(found.by_attack)
    alone = hb.evaluate(model, (x, model(x).argmax(1)), threat=second, **how)
    assert found.results["Linf(0.1, 1 frozen) #2"].examples == alone.examples
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["Linf-0-1-1-frozen", "Linf-0-1-1-frozen-2"]


def test_an_evaluation_takes_a_union():
    x, y = tiny_batch(6)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    found = hb.evaluate(net, (x, y), threat=ThreatUnion((LINF, L2)), attacks=["fgsm"], quiet=True, diagnostics=[])
    assert found.threat == "Linf(8/255) and L2(0.5)"
    assert len(found.results) == 2
