import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.certification.records import CertificateRecords
from hauberk.evaluation import table
from hauberk.evaluation.certified import CONTROLS
from hauberk.evaluation.records import RecordStore

THREAT = hb.Linf(0.08)
SETTINGS = {"diagnostics": [], "quiet": True, "batch_size": 16}


def network(inputs=6, classes=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, classes))


def examples(n=60, inputs=6, wrong=5):
    """Inputs whose labels are the network's own answers, but for a few."""
    x = torch.rand(n, inputs, generator=torch.Generator().manual_seed(2))
    y = network(inputs)(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 3
    return x, y


@pytest.fixture
def short(short_autoattack):
    return short_autoattack


@pytest.mark.parametrize("threat", [THREAT, hb.L2(0.15), hb.L1(0.3)], ids=str)
def test_the_verdicts_are_those_without_certificates(short, threat):
    plain = hb.evaluate(network(), examples(), threat=threat, suite="standard", **SETTINGS)
    both = hb.evaluate(network(), examples(), threat=threat, suite="standard", certify=True, **SETTINGS)
    assert both.broken_by == plain.broken_by
    assert both.robust_accuracy == plain.robust_accuracy
    assert 0 < both.certified.accuracy <= both.robust_accuracy < both.clean_accuracy
    assert both.undecided == pytest.approx(both.robust_accuracy - both.certified.accuracy)
    alone = hb.certify(network(), examples(), threat=threat, quiet=True)
    assert both.certified.examples.tolist() == alone.certified.tolist()
    low, high = both.certified.interval
    assert low < both.certified.accuracy < high
    assert plain.certified is None
    assert plain.to_dict()["certified"] is None


def test_what_is_certified_is_attacked_no_more_but_for_a_few(short):
    plain = hb.evaluate(network(), examples(), threat=THREAT, suite="standard", **SETTINGS)
    both = hb.evaluate(network(), examples(), threat=THREAT, suite="standard", certify=True, **SETTINGS)
    for attack in ("apgd-t", "fab-t", "square"):
        seen = both.records[attack]["known"] & both.certified.examples
        assert seen.sum() == CONTROLS
    assert both.certified.examples.sum() > CONTROLS
    assert both.provenance["passes"]["forwards"] < 0.8 * plain.provenance["passes"]["forwards"]


def test_an_unsound_bound_stops_everything(short, monkeypatch):
    """Bounds that are too good by 10 prove everything; the controls, whose bounds are the least, tell."""
    from hauberk.certification import certify as module

    honest = module.METHODS["ibp"]
    monkeypatch.setitem(module.METHODS, "ibp", lambda some, steps: honest(some, steps) + 10)
    with pytest.raises(RuntimeError, match=r"was certified, and .* broke it all the same"):
        hb.evaluate(network(), examples(), threat=hb.Linf(0.3), attacks=["fgsm", "pgd-20"], certify=True, **SETTINGS)


def test_the_suite_fast_samples_what_is_undecided(short):
    whole = hb.evaluate(network(), examples(), threat=THREAT, suite="standard", certify=True, **SETTINGS)
    fast = hb.evaluate(network(), examples(), threat=THREAT, suite="fast", to=0, certify=True, **SETTINGS)
    assert [name is None for name in fast.broken_by] == [name is None for name in whole.broken_by]
    assert fast.robust_accuracy == whole.robust_accuracy
    first = [name for name in fast.records.attacks if fast.records[name]["known"].sum() > fast.sampled.estimate.survivors]
    standing = fast.records.right & ~fast.records.broken(first)
    assert fast.sampled.estimate.survivors == (standing & ~fast.records.spared).sum() < standing.sum()


def test_what_is_proved_counts_in_the_estimate_and_its_interval(short, monkeypatch):
    monkeypatch.setattr("hauberk.evaluation.estimate.PILOT", (1 / 40, 5, 200))
    fast = hb.evaluate(network(), examples(200), threat=THREAT, suite="fast", to=20, certify=True, **SETTINGS)
    found, proved, (low, high) = fast.sampled.estimate, fast.sampled.proved, fast.sampled.interval
    assert proved == fast.records.spared.sum() > 0
    assert found.sampled < found.survivors
    assert max(proved / fast.n, fast.interval[0]) <= low <= fast.robust_accuracy <= high < 1
    assert f"AutoAttack {100 * fast.robust_accuracy:.1f} % [" in str(fast)
    assert f"{found.survivors} survivors, {proved} others proved; " in str(fast)
    assert fast.to_dict()["estimate"]["proved"] == proved
    whole = replace(fast.sampled, estimate=replace(found, sampled=found.survivors))
    assert str(whole).endswith(f"%, all {found.survivors} survivors attacked, {proved} others proved")


@pytest.mark.parametrize(("store", "after"), [(RecordStore, 2), (CertificateRecords, 2), (RecordStore, 8)])
def test_an_interrupted_evaluation_goes_on(short, tmp_path, monkeypatch, store, after):
    settings = {**SETTINGS, "threat": THREAT, "suite": "standard", "certify": True}
    whole, write, calls = hb.evaluate(network(), examples(), **settings), store.write, []

    def stops(*args, **columns):
        calls.append(args)
        if len(calls) == after:
            raise KeyboardInterrupt
        write(*args, **columns)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            hb.evaluate(network(), examples(), out=tmp_path, **settings)
    again = hb.evaluate(network(), examples(), out=tmp_path, **settings)
    assert again.broken_by == whole.broken_by
    assert again.certified.proved_by == whole.certified.proved_by
    with pytest.raises(hb.UserError, match="certify"):
        hb.evaluate(network(), examples(), out=tmp_path, **settings | {"certify": False})


def test_the_result_says_both_ends(short, tmp_path):
    result = hb.evaluate(network(), examples(), threat=THREAT, attacks=["pgd-20"], certify=True, **SETTINGS)
    proved, robust = 100 * result.certified.accuracy, 100 * result.robust_accuracy
    assert f"certified {proved:.1f} % [" in str(result)
    assert f"≤ robust accuracy ≤ {robust:.1f} % [" in str(result)
    assert f"undecided {100 * result.undecided:.1f} %" in str(result)
    result.save(tmp_path / "evaluation.json")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["certified"]["accuracy"] == result.certified.accuracy
    assert sum(saved["certified"]["by"].values()) == result.certified.examples.sum()
    names = [example["certified_by"] for example in saved["examples"]]
    assert names == result.certified.proved_by
    assert all(e["broken_by"] is None for e in saved["examples"] if e["certified_by"])
    rows = table({"mine": result}).columns[0]._cells
    assert str(rows[-1]) == "certified, at least"


def test_the_union_is_certified_where_all_are(short):
    threats = [hb.Linf(0.05), hb.L2(0.12)]
    each = [hb.certify(network(), examples(), threat=threat, quiet=True).certified for threat in threats]
    union = hb.evaluate(network(), examples(), threat=threats, attacks=["pgd-20"], certify=True, **SETTINGS)
    assert union.certified.examples.tolist() == (each[0] & each[1]).tolist()
    assert union.certified.accuracy <= union.robust_accuracy
    assert np.logical_xor(*each).any()


def test_what_has_no_certificate_is_refused():
    x, y = examples()
    with pytest.raises(hb.UserError, match="no certificates for the norm"):
        hb.evaluate(network(), (x, y), threat=hb.L0(2), attacks=["sigma-zero-1000"], certify=True, **SETTINGS)
    wrong = lambda logits, y: logits.argmax(1) != y  # noqa: E731
    with pytest.raises(hb.UserError, match="there are none with criterion="):
        hb.evaluate(network(), (x, y), threat=THREAT, attacks=["pgd-20"], criterion=wrong, certify=True, **SETTINGS)
    with pytest.raises(hb.UserError, match="random model"):
        hb.evaluate(network(), (x, y), threat=THREAT, suite="rand", certify=True, **SETTINGS)
    gelu = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    with pytest.raises(hb.UserError, match=r"GELU.* has no bounds"):
        hb.evaluate(gelu, (x, gelu(x).argmax(1)), threat=THREAT, attacks=["pgd-20"], certify=True, **SETTINGS)


def test_nothing_stands(short):
    x, y = examples()
    result = hb.evaluate(network(), (x, (y + 1) % 3), threat=hb.Linf(0.4), attacks=["pgd-20"], certify=True, n=8, **SETTINGS)
    assert result.certified.accuracy == 0
