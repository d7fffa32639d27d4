import csv
import re

import onnxruntime
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import hauberk as hb
from hauberk.certification.vnnlib import export_vnnlib, read_verdicts

X = torch.tensor([[0.2, 0.5, 0.9], [0.5, 0.5, 0.5], [0.0, 1.0, 0.25], [0.75, 0.125, 0.5]])
Y = torch.tensor([0, 1, 2, 1])
THREAT = hb.Linf(0.1, frozen=[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))


def linear():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 3))


def bounds_in(text):
    """Bounds of each input that a question states, as floats."""
    found = [dict(re.findall(rf"\(assert \({sign} X_(\d+) (\S+)\)\)", text)) for sign in (">=", "<=")]
    return [[float(side[str(j)]) for j in range(len(side))] for side in found]


def solve(net, text):
    """A verifier for linear networks: is there an input in the box that satisfies one of the alternatives? Exact."""
    low, high = bounds_in(text)
    weight, bias = net[0].weight.detach().double(), net[0].bias.detach().double()
    for other, label in re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", text):
        gap = weight[int(label)] - weight[int(other)]
        least = linprog(gap.numpy(), bounds=list(zip(low, high, strict=True))).fun + float(bias[int(label)] - bias[int(other)])
        if least <= 0:
            return "sat"
    return "unsat"


def test_questions_hold_the_whole_threat_model(tmp_path):
    export_vnnlib(network(), (X, Y), tmp_path / "out", threat=THREAT, seconds=7)
    rows = list(csv.reader((tmp_path / "out" / "instances.csv").read_text().splitlines()))
    assert rows == [["model.onnx", f"vnnlib/{i}.vnnlib", "7"] for i in range(4)]
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        text = (tmp_path / "out" / "vnnlib" / f"{i}.vnnlib").read_text()
        low, high = (torch.tensor(side, dtype=torch.float64) for side in bounds_in(text))
        around = THREAT.around(x[None])
        assert (low <= around.lower[0].double()).all()
        assert (high >= around.upper[0].double()).all()
        assert float((around.lower[0] - low).max()) < 1e-5  # and hardly more
        assert float((high - around.upper[0]).max()) < 1e-5
        assert float(high[1] - low[1]) < 1e-5  # the frozen feature
        assert set(re.findall(r">= (Y_\d) (Y_\d)", text)) == {(f"Y_{k}", f"Y_{y}") for k in range(3) if k != y}
        assert len(re.findall("declare-const", text)) == 6
        assert "e-" not in "".join(re.findall(r"X_\d (\S+)\)\)", text))


def test_inputs_outside_the_box_are_refused(tmp_path):
    with pytest.raises(hb.UserError, match="outside"):
        export_vnnlib(network(), (torch.cat([X, X + 2]), torch.cat([Y, Y])), tmp_path, threat=THREAT)


def test_a_convolution_is_the_same(tmp_path):
    net = nn.Sequential(nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 2, (1, 2), stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    export_vnnlib(net, (X, Y), tmp_path, threat=THREAT)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": X.numpy()})[0]), net(X).detach())


def test_the_model_is_the_same(tmp_path):
    net = network()
    export_vnnlib(net, (X, Y), tmp_path, threat=THREAT)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": X.numpy()})[0]), net(X).detach())


def test_verdicts_come_back_to_their_examples(tmp_path):
    net = linear()
    labels = net(X).argmax(1)
    some = torch.tensor([3, 0, 2])
    export_vnnlib(net, (X, labels), tmp_path, threat=THREAT, examples=some)
    said = {i: solve(net, (tmp_path / "vnnlib" / f"{i}.vnnlib").read_text()) for i in some.tolist()}
    lines = [f"test,model.onnx,/elsewhere/vnnlib/{i}.vnnlib,0.1,{word},2.5" for i, word in said.items()]
    (tmp_path / "results.csv").write_text("category,onnx,vnnlib,prepare,result,seconds\n" + "\n".join(lines))
    proved = read_verdicts(net, (X, labels), tmp_path, tmp_path / "results.csv", threat=THREAT)
    assert proved.tolist() == [said.get(i) == "unsat" for i in range(4)]
    assert 0 < proved.sum() < 4
    # An exact verifier: what it proves no corner of the box contradicts, and what it does not some corner does.
    for i in some.tolist():
        around = THREAT.around(X[i : i + 1])
        corners = torch.cartesian_prod(*torch.stack([around.lower[0], around.upper[0]], 1))
        assert bool((net(corners).argmax(1) == labels[i]).all()) == bool(proved[i])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vnnlib/9.vnnlib,unsat", "no question"),
        ("vnnlib/a.vnnlib,unsat", "no question"),
        ("vnnlib/1.vnnlib,perhaps", "must have one verdict"),
        ("vnnlib/1.vnnlib,unsat,sat", "must have one verdict"),
        ("vnnlib/1.vnnlib,unsat\nvnnlib/1.vnnlib,sat", "two verdicts"),
    ],
)
def test_verdicts_that_fit_nothing_are_refused(tmp_path, line, said):
    export_vnnlib(network(), (X, Y), tmp_path, threat=THREAT)
    (tmp_path / "results.csv").write_text(line)
    with pytest.raises(hb.UserError, match=said):
        read_verdicts(network(), (X, Y), tmp_path, tmp_path / "results.csv", threat=THREAT)


def test_verdicts_are_bound_to_what_they_are_about(tmp_path):
    net = network()
    export_vnnlib(net, (X, Y), tmp_path, threat=THREAT)
    (tmp_path / "results.csv").write_text("vnnlib/1.vnnlib,timeout\n")
    assert not read_verdicts(net, (X, Y), tmp_path, tmp_path / "results.csv", threat=THREAT).any()
    with pytest.raises(hb.UserError, match="another model"):
        read_verdicts(linear(), (X, Y), tmp_path, tmp_path / "results.csv", threat=THREAT)
    with pytest.raises(hb.UserError, match="another threat model"):
        read_verdicts(net, (X, Y), tmp_path, tmp_path / "results.csv", threat=hb.Linf(0.05))
    with pytest.raises(hb.UserError, match="another test set"):
        read_verdicts(net, (X, 2 - Y), tmp_path, tmp_path / "results.csv", threat=THREAT)
    with pytest.raises(hb.UserError, match="cannot read"):
        read_verdicts(net, (X, Y), tmp_path, tmp_path / "none.csv", threat=THREAT)


def test_what_cannot_be_said_is_refused(tmp_path):
    with pytest.raises(hb.UserError, match="VNN-LIB says boxes only"):
        export_vnnlib(network(), (X, Y), tmp_path, threat=hb.L2(0.5))
    for given in ({"examples": torch.tensor([4])}, {"examples": torch.tensor([-1])}, {"n": 5}, {"n": 0}, {"n": -1}):
        with pytest.raises(hb.UserError, match="of the 4 in the test set"):
            export_vnnlib(network(), (X, Y), tmp_path, threat=THREAT, **given)
