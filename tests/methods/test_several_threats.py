import collections
import json
import random

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.attacks import PGD
from hauberk.cli import main
from hauberk.core.distributed import World
from hauberk.core.random import ExampleRng
from helpers import Signalling, count_passes, easy_data, settings, tiny_batch, tiny_net

LINF, L2, L1 = hb.Linf("8/255"), hb.L2(0.5), hb.L1(4.0)
RNG = ExampleRng(0, torch.arange(40))


def best_points(model, x, y, threats):
    """The point of the highest loss, misclassified ones first, that PGD from x visits under each."""
    return [PGD(10, "eps/4", "clean")(model, x, y, threat, seed=RNG).x_adv for threat in threats]


def test_max_at_takes_the_worst_point_of_each_example():
    model, (x, y) = tiny_net().double().eval(), tiny_batch(40, dtype=torch.float64)
    threats = [LINF, hb.L2(0.34), hb.L1(1.68)]
    method = hb.method("max-at", threats)
    out = method(model, x, y, rng=RNG)
    points = best_points(model, x, y, threats)
    losses = torch.stack([F.cross_entropy(model(point), y, reduction="none") for point in points])
    which = losses.argmax(0)
    assert len(which.unique()) > 1
    assert torch.equal(out.x_adv, torch.stack(points)[which, torch.arange(40)])
    assert torch.allclose(out.loss, losses.amax(0).mean(), atol=1e-12)
    assert (out.forwards, out.backwards) == (3 * 11 + 1, 30)
    soft = method(model, x, y, rng=RNG, targets=F.one_hot(y, 5).double())
    assert torch.allclose(soft.loss, out.loss)


def test_ramp_is_the_loss_of_the_public_code():
    """RAMP.py --kl --max --lbd 5: CE at the worse of the two points, KL of the predictions over the examples that x_1 keeps."""
    model, (x, y) = tiny_net().double().train(), tiny_batch(40, dtype=torch.float64)
    y = model.eval()(x).argmax(1)  # so that some are right under attack
    model.train()
    method = hb.method("ramp", [LINF, L1, L2])  # the third takes no part
    seen = count_passes(model)
    out = method(model, x, y, rng=RNG)
    assert (out.forwards, out.backwards) == (2 * 11 + 3, 20)
    assert seen["forwards"] == 25
    ours = torch.autograd.grad(out.loss, list(model.parameters()))
    fresh = tiny_net().double()
    one, other = best_points(fresh, x, y, [LINF, L1])
    z_one, z_other, z_worst = model(one), model(other), model(out.x_adv)
    right = z_one.argmax(1) == y
    assert 0 < int(right.sum()) < 40
    pairing = F.kl_div(F.log_softmax(z_other[right], 1), F.softmax(z_one[right], 1), reduction="sum") / right.sum()
    expected = F.cross_entropy(z_worst, y) + 5 * pairing
    assert torch.allclose(out.loss, expected, atol=1e-10)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(ours, theirs, strict=True))
    assert hb.method("ramp", [LINF, L1], ramp_lam=1.5).objective.ramp_lam == 1.5
    alone = hb.method("ramp", LINF)(model, x, y)
    assert torch.allclose(alone.loss, F.cross_entropy(alone.logits_adv, y))


def test_e_at_attacks_under_one_and_under_the_weaker_more_often():
    model, (x, y) = tiny_net().eval(), tiny_batch(40)
    y = model(x).argmax(1)
    easy, hard = hb.Linf(1e-5), hb.Linf(0.2)
    method = hb.method("e-at", [easy, hard])
    picked = collections.defaultdict(list)
    for step in range(120):
        out = method(model, x, y, epoch=step // 60)
        assert (out.forwards, out.backwards) == (12, 10)
        picked[step // 60].append(int((out.x_adv - x).abs().max() > 1e-3))
    assert 15 < sum(picked[0]) < 45  # all alike in the first epoch
    inner = method.inner
    shares = [float(robust / seen) for robust, seen in zip(inner.robust, inner.seen, strict=True)]
    assert shares[0] > 0.95
    assert shares[1] < 0.3
    assert inner.chances == pytest.approx([1 - share for share in shares], abs=1e-6)  # of the epoch before, here the same
    assert sum(picked[1]) > 50
    draws = [random.Random(f"0 {call}").choices(range(2), weights=[1.0, 1.0])[0] for call in range(60)]
    assert picked[0] == draws


def test_a_step_of_e_at_is_cross_entropy_at_the_worst_point_of_its_threat_model():
    """The formula in float64, with its gradient, and the shares that choose by hand over three epochs."""
    model, (x, y) = tiny_net().double().eval(), tiny_batch(40, dtype=torch.float64)
    y = model(x).argmax(1)
    threats = [LINF, hb.L2(0.34), hb.L1(1.68)]
    method, points = hb.method("e-at", threats), best_points(model, x, y, threats)
    kept = [int((model(point).argmax(1) == y).sum()) for point in points]
    drawn, attacked, withstood = [], [0] * 3, [0] * 3
    for call in range(12):
        if call % 4 == 0:
            chances = [1 - r / n for r, n in zip(withstood, attacked, strict=True)] if all(attacked) else [1.0] * 3
        which = random.Random(f"0 {call}").choices(range(3), weights=chances)[0]
        drawn.append(which)
        attacked[which] += 40
        withstood[which] += kept[which]
        out = method(model, x, y, epoch=call // 4, rng=RNG)
        assert torch.equal(out.x_adv, points[which])
        expected = F.cross_entropy(model(points[which]), y)
        assert torch.allclose(out.loss, expected, atol=1e-12)
        ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in (out.loss, expected))
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert len(set(drawn)) == 3
    assert (method.inner.seen, method.inner.robust.tolist()) == (attacked, withstood)
    assert len(set(chances)) > 1


def test_e_at_counts_the_examples_of_all_processes():
    class Alike(World):
        def all_gather_rows(self, mine, sizes):
            return torch.cat([mine, mine])

    model, (x, y) = tiny_net().eval(), tiny_batch(40)
    alone, both = (hb.method("e-at", [LINF, L2]) for _ in range(2))
    alone(model, x, y, 0, rng=RNG)
    both(model, x, y, 0, rng=RNG, world=Alike(0, 2), sizes=[40, 40])
    assert alone.inner.robust.sum() > 0
    assert torch.equal(both.inner.robust, 2 * alone.inner.robust)
    assert both.inner.seen == [2 * seen for seen in alone.inner.seen]


def test_the_choice_follows_the_seed_and_is_the_same_again():
    model, (x, y) = tiny_net().eval(), tiny_batch(8)

    def picks(seed):
        method = hb.method("e-at", [LINF, L2], seed=seed)
        return [bool(LINF.contains(method(model, x, y).x_adv, x).all()) for _ in range(20)]

    assert picks(0) == picks(0) != picks(1)
    assert len(set(picks(0))) == 2


def test_eps_grows_under_each_and_others_say_that_they_take_one():
    model, (x, y) = tiny_net().eval(), tiny_batch(8)
    out = hb.method("max-at", [LINF, L2])(model, x, y, eps_scale=0.25)
    small = hb.Linf(2 / 255).contains(out.x_adv, x) | hb.L2(0.125).contains(out.x_adv, x)
    assert small.all()
    for name in ("at", "trades", "ibp", "n-fgsm"):
        with pytest.raises(hb.UserError, match=r"trains under one threat model at a time, and there are Linf\(8/255\) and L2"):
            hb.method(name, [LINF, L2])
    with pytest.raises(hb.UserError, match="several that differ"):
        hb.method("max-at", [LINF, hb.Linf("8/255")])
    single = hb.method("max-at", [LINF])
    assert single.threat is LINF
    assert torch.equal(single(model, x, y, rng=ExampleRng(0, y)).x_adv, hb.method("e-at", LINF)(model, x, y).x_adv)
    assert hb.method("standard", [LINF, L2])(model, x, y).loss.requires_grad  # it sees none of them


@pytest.mark.parametrize("name", ["e-at", "ramp"])
def test_a_training_validates_under_all_keeps_them_and_goes_on_exactly(name, tmp_path):
    threats = [LINF, L1]

    def go(at, folder, resume=False):
        data = Signalling(easy_data(), at)
        how = settings(epochs=3, val_size=20)
        return hb.train("small-cnn", data, method=name, threat=threats, out=tmp_path / folder, resume=resume, **how)

    whole = go(0, "whole")
    assert go(280, "stopped").interrupted
    assert (tmp_path / "stopped" / "state.ckpt").exists()  # steps have been taken
    resumed = go(0, "stopped", resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for file in ("run.json", "best.json"):
        card = json.loads((tmp_path / "whole" / file).read_text())["threat"]
        assert [one["norm"] for one in card["threats"]] == ["Linf", "L1"]
    assert all(row["val_robust_accuracy"] <= row["val_clean_accuracy"] for row in whole.metrics)


def test_validation_counts_what_withstands_each(monkeypatch):
    """On a network that a linear attack in L∞ breaks at one half of the inputs and one in L2 at the other."""
    from hauberk.training import metrics

    def train_under(threat):
        run = hb.train("mlp", easy_data(), method="max-at", threat=threat, **settings(epochs=1, val_size=30, val_steps=5))
        return run.metrics[0]["val_robust_accuracy"]

    broken = {"Linf": torch.arange(30) % 2 == 0, "L2": torch.arange(30) % 3 == 0}

    def attack(attack, model, x, y, threat, **more):
        hurt = broken[str(threat.norm)][: len(x)].view(-1, 1, 1, 1)
        return type("Found", (), {"x_adv": torch.where(hurt, torch.full_like(x, torch.nan), x)})

    monkeypatch.setattr(metrics, "attack_batch", attack)
    both = train_under([LINF, L2])
    assert both <= min(train_under(LINF), train_under(L2))
    assert both <= 10 / 30 + 1e-9  # two thirds are broken by the one or the other


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = ["--epochs", "1", "--val-steps", "2", "--threads", "1", "--steps", "2", "--quiet", "--model", "mlp"]
    command = ["train", "--method", "max-at", "--eps", "0.1", "--union", "L2:0.5", "L1:2", *quick, "--out", "run"]
    assert main(command) == 0
    card = json.loads((tmp_path / "run" / "run.json").read_text())["threat"]
    assert [(one["norm"], one["eps"]) for one in card["threats"]] == [("Linf", "0.1"), ("L2", "0.5"), ("L1", "2")]
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", "--attacks", "fgsm", "--n", "20", "--quiet", "--diagnostics", "cheap"]) == 0
    assert "L2(0.5)" in capsys.readouterr().out
    assert main(["evaluate", "run", "--suite", "standard", "--quiet", "--card", "card.json"]) == 2
    assert "--card is of one threat model" in capsys.readouterr().err
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "--union L2:0.5 L1:2" in page
    assert main(["certify", "run", "--n", "2", "--quiet"]) == 2
    assert "certificates are under one threat model at a time" in capsys.readouterr().err
    assert main(["train", "--method", "at", "--union", "L2:0.5", *quick, "--out", "other"]) == 2
    assert "one threat model at a time" in capsys.readouterr().err
    assert main(["train", "--method", "max-at", "--union", "L2", *quick, "--out", "other"]) == 2
    assert "--union takes threat models such as L2:0.5" in capsys.readouterr().err
