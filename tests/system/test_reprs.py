"""What a notebook shows of each object is one short line: no pixels, no weights."""

import pytest
import torch

import hauberk as hb
from hauberk.data import DATASETS, ColumnSchema, ConcatDataset, MapDataset, Subset, TableSchema, make_table

THREAT = hb.Linf("8/255")


@pytest.fixture(scope="module")
def shown(digits):
    x, y = digits["train"].fetch(torch.arange(40))
    run = hb.train("mlp", (x, y), method="trades", threat=THREAT, epochs=1, val_steps=1, quiet=True)
    model, few = run.model, (x[:6], y[:6])
    method = hb.method("mail-trades+awp", THREAT, burn_in=0)
    evaluated = hb.evaluate(model, few, threat=THREAT, attacks=["fgsm"], certify=True, quiet=True)
    things = {
        "Run(Sequential, 1 epochs": run,
        "method('mail-trades+awp', Linf(8/255)": method,
        "Step(Sequential, method(": hb.Step(model, method),
        "Output(loss=": method(model, *few, epoch=0),
        "<Evaluation: ": evaluated,
        "<Certified: ": evaluated.certified,
        "AttackResult(6 examples, ": hb.attacks.pgd(model, *few, THREAT),
        "<Certificates: ": hb.certify(model, few, threat=THREAT, methods=["ibp"], quiet=True),
        "<SmoothedCertificates: ": hb.certify_smoothed(model, few, sigma=0.25, draws=20, quiet=True),
        "<RobustnessCurve: ": hb.robustness_curve(model, few, threat=THREAT, quiet=True),
        "<Comparison of a, b, 1 seeds: ": hb.compare_results({"a": [evaluated], "b": [evaluated]}),
        "Subset('digits', 9 examples": Subset(digits["train"], torch.arange(9)),
        "TensorDataset('digits', ": digits["train"],
        "ConcatDataset('digits', ": ConcatDataset([digits["train"], digits["train"]]),
        "MapDataset('list', 1 examples)": MapDataset([(torch.rand(3), 1)]),
        "DatasetInfo('mnist', 70,000": DATASETS["mnist"],
        "Linf(per feature, 0 to 0.1, box per feature, 1 frozen": hb.Linf([0, 0.1], low=[-1, 0], frozen=[1]),
        "Linf(8/255) and L1(3)": hb.method("max-at", [THREAT, hb.L1(3)]).threat,
    }
    return {begin: repr(thing) for begin, thing in things.items()}


def test_objects_show_themselves_in_a_line(shown):
    for begin, text in shown.items():
        assert text.startswith(begin), text
        assert "\n" not in text
        assert len(text) < 420, text
        assert "tensor(" not in text
        assert "Linear(" not in text
        assert " at 0x" not in text


def test_a_table_shows_itself_in_a_line():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"amount": [1, 2, 3, 4], "sex": list("fmfm"), "bad": list("0101")})
    schema = TableSchema({"amount": ColumnSchema("integer"), "sex": ColumnSchema("category", "none")}, "bad")
    table = make_table(schema, frame, frame, "credit")
    assert repr(table) == "Table('credit', 4 training and 4 test rows of 2 columns, classes bad = 0, bad = 1)"
    assert repr(table.train) == "TableDataset('credit', 4 examples, 2 classes)"


def test_a_comparison_is_a_table_in_a_notebook(digits):
    x, y = digits["test"].fetch(torch.arange(6))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    found = hb.evaluate(net, (x, y), threat=THREAT, attacks=["fgsm"], diagnostics="cheap", quiet=True)
    assert hb.compare_results({"a": [found], "b": [found]})._repr_markdown_().count("|") > 20
