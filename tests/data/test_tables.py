"""Tables: what is read, what an adversary may do to it, and that it never does more."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import hauberk as hb
from hauberk.cli import main
from hauberk.core.distributed import SINGLE_PROCESS
from hauberk.core.random import ExampleRng
from hauberk.data import class_overlap, find_dataset, infer_schema, make_table, reach_of, read_frame, read_schema, read_table
from hauberk.models import ModelSpec, StraightThroughRound
from hauberk.report.reproduce import train_command
from hauberk.threat import threat_from_dict
from hauberk.training.config import TrainConfig
from hauberk.training.metrics import chance_line, validate
from hauberk.training.plan import hold_out, make_plan
from helpers import ROOT

pd = pytest.importorskip("pandas")
SHARED = ROOT.parent / "shared" / "data"
DESCRIPTION = """
train = "rows.csv"
label = "late"
eps = 0.5
costs = [5, 1]

[features.income]
low = 0
change = "up"
[features.debt]
[features.months]
kind = "integer"
low = 1
high = 120
[features.children]
kind = "integer"
change = "none"
[features.job]
kind = "category"
values = ["clerk", "cook", "none"]
[features.sex]
kind = "category"
change = "none"
"""


def frame(n=400, seed=0):
    draw = np.random.default_rng(seed)
    income, debt, months = draw.gamma(4, 500, n), draw.normal(0, 1000, n), draw.integers(1, 121, n)
    late = (debt - income / 2 + 300 * draw.normal(size=n) > -700).astype(int)
    return pd.DataFrame(
        {
            "income": income,
            "debt": debt,
            "months": months,
            "children": draw.integers(0, 4, n),
            "job": draw.choice(["clerk", "cook", "none"], n),
            "sex": draw.choice(["f", "m"], n),
            "unused": draw.normal(size=n),
            "late": late,
        }
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loans.toml").write_text(DESCRIPTION)
    frame().to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path


def test_csv_and_parquet_read_alike(folder):
    table = read_table(folder / "loans.toml")
    frame().to_parquet(folder / "rows.parquet")
    (folder / "two.toml").write_text(DESCRIPTION.replace("rows.csv", "rows.parquet"))
    other = read_table(folder / "two.toml")
    torch.testing.assert_close(table.train.x, other.train.x)
    assert table.train.y.tolist() == other.train.y.tolist()
    assert [f"{column.feature}{column.value}" for column in table.columns] == [
        "income", "debt", "months", "children", "jobclerk", "jobcook", "jobnone", "sexf", "sexm",
    ]  # fmt: skip
    assert len(table.test) == 80
    assert abs(table.test.y.double().mean() - table.train.y.double().mean()) < 0.01


def test_rows_come_back_as_they_were(folder):
    data, table = frame(), read_table(folder / "loans.toml")
    whole = make_table(table.schema, data, data)
    back = whole.rows(whole.train.x)
    for name in ("months", "children", "job", "sex"):
        assert back[name].tolist() == data[name].tolist()
    np.testing.assert_allclose(back["income"], data["income"], rtol=1e-6)


def test_the_threat_model_says_what_may_change(folder):
    table = read_table(folder / "loans.toml")
    threat = table.threat
    std = table.train.x.double().std(0, correction=0)
    expected = [0.5 * std[0], 0.5 * std[1], (0.5 * std[2]).floor(), 0, 1, 1, 1, 0, 0]
    assert threat.eps.tolist() == pytest.approx([float(e) for e in expected])
    assert threat.monotone.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    again = threat_from_dict(json.loads(json.dumps(threat.to_dict(), allow_nan=False)))
    assert repr(again) == repr(threat)
    x, _ = table.test.fetch(torch.arange(20))
    torch.testing.assert_close(again.around(x).upper, threat.around(x).upper)
    assert find_dataset(str(folder / "loans.toml")).default_threat(eps="0.5").eps[0] == pytest.approx(float(0.25 * std[0]))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "fab"])
def test_no_attack_leaves_the_valid_rows(folder, norm, attack):
    table = read_table(folder / "loans.toml")
    torch.manual_seed(0)
    net, threat = table.default_model("mlp").build(), table.default_threat(norm)
    x, y = table.test.fetch(torch.arange(60))
    options = {"loss": "ce"} if attack == "apgd" else {"steps": 200} if attack == "square" else {}
    found = getattr(hb.attacks, attack)(net, x, y, threat, **options)
    assert threat.contains(found.x_adv, x).all()
    before, after = table.rows(x), table.rows(found.x_adv)
    for name in ("children", "sex"):
        assert after[name].tolist() == before[name].tolist()
    assert (after["income"] >= before["income"] - 1e-3).all()
    assert after["job"].isin(["clerk", "cook", "none"]).all()
    assert (after["months"] - before["months"]).abs().max() <= float(threat.eps[2])
    assert after["months"].between(1, 120).all()
    # What the network says of a point is what it says of the row it stands for.
    rows = after.assign(late=y.numpy().astype(str), unused=0.0)
    again = make_table(table.schema, rows, rows) if set(rows["late"]) == {"0", "1"} else None
    assert again is not None
    torch.testing.assert_close(net(again.train.x), net(found.x_adv), rtol=1e-4, atol=1e-4)


def test_attacks_find_the_worst_category(folder):
    """Rows of every job and many months are tried one by one; in a box without groups, values that rise together hide."""
    (folder / "jobs.toml").write_text(
        'label = "late"\neps = 0.1\n[features.months]\nkind = "integer"\n[features.job]\nkind = "category"\n'
        '[features.home]\nkind = "category"\n'
    )
    draw = np.random.default_rng(0)
    data = pd.DataFrame({"months": draw.integers(0, 60, 200), "job": draw.choice(list("abcdefgh"), 200)})
    data = data.assign(home=draw.choice(list("xyz"), 200), late=draw.integers(0, 2, 200))
    table = make_table(read_schema(folder / "jobs.toml"), data, data)
    torch.manual_seed(0)
    net = table.default_model("mlp").build()
    x, _ = table.test.fetch(torch.arange(60))
    with torch.no_grad():
        y = net(x).argmax(1)
    rows = [(d, a, b) for d in (-1, 0, 1) for a in range(1, 9) for b in range(9, 12)]
    worst, threat = torch.full((60,), torch.inf), table.threat
    for d, a, b in rows:
        point = torch.eye(12)[[a, b]].sum(0).expand(60, -1).clone()
        point[:, 0] = (x[:, 0] + d).clamp(x[:, 0] - threat.eps[0], x[:, 0] + threat.eps[0])
        logits = net(point).detach()
        worst = torch.minimum(worst, hb.objectives.functional.logit_margin(logits, y))
    broken = worst <= 0
    assert 15 < broken.sum() < 55
    for attack, missed in ((hb.attacks.PGD(20), 9), (hb.attacks.APGD(restarts=5), 1), (hb.attacks.Square(300), 1)):
        found, apart = (attack(net, x, y, one) for one in (threat, replace(threat, one_hot=None)))
        assert not (found.success & ~broken).any()
        assert (broken & ~found.success).sum() <= missed < (broken & ~apart.success).sum(), attack
    assert list(hb.attacks.find_suite("quick").for_threat(threat).stages)[-1] == "square-1000"
    ways = dict.fromkeys(("home", "job"), 0)
    for name in ways:
        ways[name] = (table.rows(found.x_adv)[name] != table.rows(x)[name]).sum()
    assert min(ways.values()) > 5


def test_one_way_features_in_a_queue_keep_their_own_start():
    threat = hb.Linf(0.2, monotone=[1, -1, 0])
    x = torch.rand(6, 3) * 0.5 + 0.25
    region = threat.around(x)
    part = region.index_select(torch.tensor([4, 2]))
    new = region.index_copy(torch.tensor([0, 1]), part)
    moved = new.random(ExampleRng(0, torch.arange(6)))
    base = x[[4, 2, 2, 3, 4, 5]]
    assert (moved[:, 0] >= base[:, 0]).all()
    down = new.project(base - 1)
    torch.testing.assert_close(down[:, 0], base[:, 0])
    torch.testing.assert_close(down[:, 1], base[:, 1] - 0.2)
    assert float(new.constraint_violation(down).max()) < 1e-6
    outside = base.clone()
    outside[:, 0] -= 0.1
    assert (new.constraint_violation(outside) > 0.09).all()
    with pytest.raises(hb.UserError, match="monotone"):
        hb.Linf(0.1, monotone=[2, 0, 0])


def test_the_nearest_row_has_the_gradient_of_the_identity():
    layer = StraightThroughRound([0], [[1, 2]])
    x = torch.tensor([[1.4, 0.3, 0.6]], requires_grad=True)
    assert layer(x).tolist() == [[1.0, 0.0, 1.0]]
    layer(x).mul(torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 3.0]]


WHOLE = """
label = "late"
eps = 1.0
[features.age]
kind = "integer"
[features.months]
kind = "integer"
[features.visits]
kind = "integer"
[features.loans]
kind = "integer"
eps = 0.1
"""


def whole_numbers(folder):
    """A table of integers."""
    (folder / "whole.toml").write_text(WHOLE)
    draw = np.random.default_rng(0)
    data = pd.DataFrame({name: draw.integers(0, top, 200) for name, top in (("age", 60), ("months", 30), ("visits", 9))})
    data["loans"] = draw.integers(0, 3, 200)
    data["late"] = (data["age"] / 20 + data["visits"] / 3 > 3).astype(int)
    return make_table(read_schema(folder / "whole.toml"), data, data, "whole")


class Lured(torch.nn.Module):
    """A network with the gradient of another, three times as large and turned round."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        lure = -3 * self.net(x)
        return self.net(x).detach() + lure - lure.detach()


def test_rounding_to_rows_is_no_doubt_of_the_network_behind_it(tmp_path):
    table = whole_numbers(tmp_path)
    torch.manual_seed(0)
    honest, lured = (table.wrap(net) for net in (torch.nn.Linear(4, 2), Lured(torch.nn.Linear(4, 2))))
    x, _ = table.test.fetch(torch.arange(60))
    for net, verdict in ((honest, "ok"), (lured, "invalid")):
        ev = hb.evaluate(net, (x, net(x).argmax(1)), threat=table.threat, attacks=["pgd-10"], quiet=True)
        found = {d.name: d for d in ev.diagnostics}["gradients-tell-the-truth"]
        assert found.verdict == verdict, found.measured
        assert "behind StraightThroughRound, which rounds on purpose" in found.measured
        assert net[0](x + 0.3).equal(x)  # it rounds again


def test_columns_that_may_change_but_cannot_are_named(tmp_path):
    table = whole_numbers(tmp_path)
    reach = reach_of(table.test, table.threat)
    assert reach.moving == ("age", "months", "visits")
    assert str(reach) == "3 of 4 columns can change; loans may change but cannot: ε is below 1 unit"
    assert reach_of(hb.data.Subset(table.test, torch.arange(5)), table.threat) == reach
    assert str(reach_of(table.test, table.default_threat("L2", 0.04))).startswith("0 of 4 columns can change; age, months")
    assert reach_of(hb.data.as_dataset((table.test.x, table.test.y)), table.threat) is None
    net = table.default_model("mlp").build()
    found = hb.evaluate(net, table.test, threat=table.threat, attacks=["fgsm"], n=20, diagnostics="cheap", quiet=True)
    said = {d.name: d for d in found.warnings}["columns-can-change"]
    assert (said.measured, said.verdict) == (str(reach), "warning")
    none = hb.evaluate(
        net, table.test, threat=table.default_threat("Linf", 0.01), attacks=["fgsm"], diagnostics="cheap", quiet=True
    )
    assert "columns-can-change" in str(none)
    assert str(none).startswith("INVALID")


NUMBERS = """
train = "rows.csv"
label = "odd"
eps = 1
[features.number]
"""


@pytest.mark.parametrize("eps", [0.4, 0.6])  # of two numbers side by side, 1 apart
def test_rows_that_cannot_both_stand_are_counted_where_attacks_find_nothing(eps, tmp_path):
    (tmp_path / "rows.toml").write_text(NUMBERS)
    rows = pd.DataFrame({"number": np.arange(40.0), "odd": np.arange(40) % 2})
    table = make_table(read_schema(tmp_path / "rows.toml"), rows, rows)
    threat = table.default_threat(eps=eps / rows["number"].std(ddof=0))

    class NearestNumber(torch.nn.Module):
        """Right for every row, and without a gradient; wrong beyond halfway to the next one."""

        def forward(self, x):
            odd = x.round() % 2
            return torch.cat([1 - odd, odd], 1) + 0 * x

    how = {"threat": threat, "diagnostics": ["robust-rows-stay-apart"], "quiet": True}
    found = hb.evaluate(NearestNumber(), table.test, attacks=["fgsm"], **how)
    (said,) = found.diagnostics
    assert found.robust_accuracy == 1
    if eps < 0.5:
        assert (said.verdict, said.measured) == ("ok", "no two of 40 rows that stand can be made the same")
    else:
        assert said.verdict == "invalid"
        assert said.measured == "of 40 rows that stand at least 20 do not: each can be made the same as one of another class"
    # True of every model, so of one that attacks break, too.
    found = hb.evaluate(NearestNumber(), table.test, attacks=["random-100"], **how)
    assert found.robust_accuracy == (1 if eps < 0.5 else 0)
    assert all(one.verdict == "ok" for one in found.diagnostics)
    certainly = class_overlap(table.test, threat).at_most
    assert found.robust_accuracy <= certainly == (1 if eps < 0.5 else 0.5)


def test_a_network_by_its_name_sees_rows_as_it_does_on_the_command_line(folder, monkeypatch):
    monkeypatch.chdir(folder)
    table = read_table("loans.toml")
    how = {"threat": table.threat, "epochs": 1, "val_size": 20, "quiet": True}
    words = ["--model", "mlp", "--epochs", "1", "--val-size", "20", "--quiet"]
    assert main(["train", "--data", "loans.toml", *words, "--out", "words"]) == 0
    hb.train("mlp", table.train, out="python", **how)
    part = hb.train("mlp", hb.data.Subset(table.train, torch.arange(100)), out="part", **how)
    specs = [
        ModelSpec.from_dict(json.loads((folder / name / "run.json").read_text())["model"])
        for name in ("words", "python", "part")
    ]
    assert specs == [table.default_model("mlp")] * 3
    ours, theirs = (hb.load(where).state_dict() for where in ("words", "python"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.isfinite(part.model(table.test.x)).all()


def test_a_draft_lets_every_column_move_and_says_how_far(tmp_path):
    draw = np.random.default_rng(0)
    rows = {"rate": draw.integers(1, 5, 300), "amount": draw.normal(0, 100, 300), "job": ["a", "b", "c"] * 100}
    rows |= {"owner": np.arange(300) % 2 == 0, "name": [f"n{k}" for k in range(300)], "same": 5, "late": [0, 1, 1] * 100}
    rows = pd.DataFrame(rows)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    text = infer_schema(rows, "late", "rows.csv", target="0")
    (tmp_path / "rows.toml").write_text(text)
    table = read_table(tmp_path / "rows.toml")
    assert table.classes == ("1", "0")  # that of interest last, which sorting would put first
    reach = reach_of(table.train, table.threat)
    assert str(reach) == "4 of 4 columns can change"
    assert text.startswith(f"# {reach}.")
    step = np.std(rows["amount"]) / 4
    assert reach.how["rate"] == "by up to 1, up or down"
    assert reach.how["job"] == "to any of its 3 values"
    assert f"# can change by up to {step:.6g}, up or down" in text
    for line in (
        'costs = [1, 1]  # of taking "0" for "1", of taking "1" for "0": yours to say',
        "# name is left out: 300 different values in 300 rows are no category",
        "# same is left out: it has only one value",
        "test_fraction = 0.2",
    ):
        assert line in text
    rows.loc[7, "amount"] = float("nan")
    text = infer_schema(rows, "late", "rows.csv", target="1")
    assert "# Cannot be read as it is: amount: 1 values are not finite or missing" in text
    for label, target, said in (
        ("late", "", r"which class is the one of interest, .* '0' \(100 rows\) or '1' \(200 rows\)\? Say it: --target"),
        ("late", "2", "unknown class '2'"),
        ("name", "", "300 different values in 300 rows, so it is no class"),
    ):
        with pytest.raises(hb.UserError, match=said):
            infer_schema(rows, label, "rows.csv", target)
    with pytest.raises(hb.UserError, match="incom"):
        infer_schema(rows, "late", "rows.csv", "1", ["incom"])
    for name, why in (("name", "name is left out: 300 different values"), ("late", "it is the label")):
        with pytest.raises(hb.UserError, match=f"{name} cannot change: {why}"):
            infer_schema(rows, "late", "rows.csv", "1", ["job", name])
    some = infer_schema(rows.fillna(0), "late", "rows.csv", "1", ["job"])
    assert some.startswith("# 1 of ")
    assert some.count('change = "any"') == 1
    assert some.index('[features."job"]') < some.index('change = "any"')
    several = infer_schema(rows, "job", "rows.csv")
    assert 'classes = ["a", "b", "c"]\n' in several
    assert "costs" not in several


def test_rows_are_split_by_date(folder):
    days = pd.date_range("2026-01-01", periods=100).strftime("%Y-%m-%d")
    frame().assign(day=np.resize(days, 400)).sample(frac=1, random_state=0).to_csv(folder / "rows.csv", index=False)
    (folder / "loans.toml").write_text('date = "day"\n' + DESCRIPTION)
    table, rows = read_table(folder / "loans.toml"), read_frame(folder / "rows.csv")
    assert len(table.test) == 80
    assert table.test.in_time_order
    late = rows[rows["day"] > "2026-03-21"].sort_values("day", kind="stable")
    np.testing.assert_allclose(table.test.x[:, 0], late["income"], rtol=1e-6)
    early = rows[rows["day"] <= "2026-03-21"].sort_values("day", kind="stable")
    held_out = hold_out(table.load("train"), TrainConfig())[1]
    np.testing.assert_allclose(held_out.fetch(torch.arange(32))[0][:, 0], early["income"][-32:], rtol=1e-6)
    (folder / "loans.toml").write_text('date = "day"\ntest = "rows.csv"\n' + DESCRIPTION)
    with pytest.raises(hb.UserError, match="leave out test or date"):
        read_table(folder / "loans.toml")


def test_a_card_with_columns_that_are_not_there_is_refused():
    card = ModelSpec("mlp", (3,), 2, integers=(0,), groups=((1, 2),)).to_dict()
    assert ModelSpec.from_dict(card).groups == ((1, 2),)
    for broken in ({"integers": [3]}, {"groups": [[]]}, {"groups": [[-1]]}, {"groups": 5}):
        with pytest.raises(hb.UserError, match="no readable model"):
            ModelSpec.from_dict(card | broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('kind = "integr"', "kind is one of"),
        ('knd = "integer"', "did you mean 'kind'"),
        ("low = 'x'", "wrong type"),
        ("low = 130", "low must be below high"),
        ("low = 20", "values are outside"),
        ("eps = -1", "eps must not be negative"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_in_a_line(folder, change, said):
    before = 'kind = "integer"\nlow = 1\n'
    after = f"{change}\nlow = 1\n" if "integ" in change else f'kind = "integer"\n{change}\n'
    text = DESCRIPTION.replace(before, after)
    (folder / "loans.toml").write_text(text)
    with pytest.raises(hb.UserError, match=said) as refused:
        read_table(folder / "loans.toml")
    assert "\n" not in str(refused.value)


def test_rows_that_do_not_fit_are_refused(folder):
    described = read_schema(folder / "loans.toml")
    good = frame()
    cases = {
        "not whole": good.assign(children=good["children"] + 0.5),
        "not finite or missing": good.assign(debt=[float("nan"), *good["debt"][1:]]),
        "not described: pilot": good.assign(job="pilot"),
        "a column of words is a category": good.assign(debt="much"),
        "unknown column": good.drop(columns="debt"),
        "only the value": good.assign(late=1),
    }
    for said, rows in cases.items():
        with pytest.raises(hb.UserError, match=said):
            make_table(described, rows, rows)
    (folder / "rows.csv").write_bytes(b"\x00\xff\xfe garbage")
    with pytest.raises(hb.UserError):
        read_table(folder / "loans.toml")
    with pytest.raises(hb.UserError, match="cannot read"):
        read_frame(folder / "nothing.csv")


def test_missing_categories_and_labels_are_counted_and_the_first_named(folder):
    described, good = read_schema(folder / "loans.toml"), frame()
    for name in ("job", "late"):
        rows = good.astype({name: object})
        rows.loc[[9, 30], name] = [None, float("nan")]
        said = f"^{name}: 2 values are missing, the first in row 9; leave such rows out"
        for schema in (described, replace(described, classes=())):
            with pytest.raises(hb.UserError, match=said):
                make_table(schema, rows, rows)
        rows.to_csv(folder / "rows.csv", index=False)
        if name == "late":
            with pytest.raises(hb.UserError, match=said):
                read_table(folder / "loans.toml")
            with pytest.raises(hb.UserError, match=said):
                infer_schema(read_frame(folder / "rows.csv"), "late", "rows.csv", "1")
        else:
            text = infer_schema(read_frame(folder / "rows.csv"), "late", "rows.csv", "1")
            assert "# Cannot be read as it is: job: 2 values are missing, the first in row 9" in text
            assert "nan" not in text
    for name, problem in {"job": "missing", "debt": "not finite or missing"}.items():  # of the file, not of its shuffled part
        good.assign(**{name: good[name].where(good.index != 37)}).to_csv(folder / "rows.csv", index=False)
        with pytest.raises(hb.UserError, match=f"^{name}: 1 values are {problem}, the first in row 37"):
            read_table(folder / "loans.toml")


def test_class_weights_count_in_validation_too():
    class Always(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, x):
            return self.bias.expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)

    source = hb.data.TensorDataset(torch.rand(100, 3), (torch.arange(100) >= 80).long(), 2)
    method = hb.method("at", hb.Linf(0.1))
    config = TrainConfig(batch_size=32, val_steps=2, val_size=0)
    plan = replace(make_plan(ModelSpec("mlp", (3,), 2), method, config, source), val=source)
    plain = validate(Always(), plan, SINGLE_PROCESS)
    weighed = validate(Always(), replace(plan, class_weights=torch.tensor([0.625, 2.5])), SINGLE_PROCESS)
    of_all = {"val_worst_class_robust_accuracy": 0.0, "val_predicted_classes": 1}
    assert plain == {"val_clean_accuracy": 0.8, "val_robust_accuracy": 0.8, **of_all}
    assert weighed == {"val_clean_accuracy": 0.5, "val_robust_accuracy": 0.5, **of_all}
    assert "takes all clean held-out examples for the same class" in chance_line(weighed, 2)
    assert chance_line(plain | {"val_predicted_classes": 2}, 2) == ""


def test_the_commands_take_a_description(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "loans.toml").write_text(DESCRIPTION + "[features.visits]\nkind = 'integer'\n")  # ε 0.4
    frame().assign(visits=np.arange(400) % 3).to_csv(folder / "rows.csv", index=False)
    reach = "4 of 7 columns can change; visits may change but cannot: ε is below 1 unit"
    assert main(["data", "loans.toml"]) == 0
    said = capsys.readouterr().out
    assert "320 of 10" in said
    assert reach in said
    assert "  job can change to any of its 3 values" in said
    table = read_table(folder / "loans.toml")
    assert f"Whatever the network, {class_overlap(table.train, table.threat)}" in said
    assert main(["data", "loans.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reach"]["stuck"] == {"ε is below 1 unit": ["visits"]}
    assert found["overlap"]["n"] == 320
    assert main(["data", "rows.csv", "--label", "late"]) == 2
    assert "which class is the one of interest" in capsys.readouterr().err
    assert main(["data", "rows.csv", "--label", "late", "--target", "1", "--can-change", "job", "income"]) == 0
    (folder / "draft.toml").write_text(capsys.readouterr().out)
    draft = read_table(folder / "draft.toml")
    assert set(reach_of(draft.train, draft.threat).moving) == {"job", "income"}
    words = ["--model", "mlp", "--epochs", "3", "--lr", "0.02", "--class-weights", "balanced", "--threads", "1"]
    assert main(["train", "--data", "loans.toml", "--method", "mart", *words, "--out", "run"]) == 0
    assert reach in capsys.readouterr().out
    assert main(["report", "run"]) == 0
    html = (folder / "run" / "report.html").read_text()
    assert "4 of 7 columns can change" in html
    overlap = class_overlap(table.train, table.threat)
    assert overlap.meeting > 0
    assert f"{overlap.meeting} of 320 training rows can be made the same as one of another class" in html
    assert "ε is below 1 unit" in html
    assert main(["train", "--resume", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--attacks", "pgd-20", "--n", "60", "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Of the class 'late = 1': recall" in said
    assert "a miss costs 5, a false alarm 1)" in said
    assert f"WARNING columns-can-change: {reach}" in said
    assert main(["evaluate", "run", "--attacks", "pgd-20", "--n", "60", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["risk"]["auc_attacked"] <= 1
    assert main(["report", "run"]) == 0
    html = " ".join((folder / "run" / "report.html").read_text().split())
    head = html[: html.index("<nav")]
    assert reach in head
    assert "4 of 7 columns can change</dd>" in head
    assert re.search(r'class="subject">loans.toml, mlp, 4 of 7 columns can change, one network, seed \d+ ', head)
    assert "per feature" not in head  # in words, and not every ε
    command = train_command(json.loads((folder / "run" / "run.json").read_text()))
    assert main([*shlex.split(command)[1:], "--quiet"]) == 0
    ours, theirs = (hb.load(where).state_dict() for where in ("run", "runs/loans-mart"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the credit sets are not at hand (../shared/data)")
def test_the_example_runs():
    command = [sys.executable, str(ROOT / "examples" / "credit.py"), str(SHARED / "german_credit" / "german_credit.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    for method in ("standard", "at", "mart", "mail-at", "mail-trades"):
        assert f"│ {method}" in done.stdout
    assert "no longer after these changes" in done.stdout
