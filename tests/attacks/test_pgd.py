import copy
import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hauberk as hb
from hauberk.attacks import (
    APGD,
    PGD,
    PRESETS,
    Attack,
    AttackInputs,
    AttackPreset,
    AttackState,
    ModelQueries,
    initial_state,
    run_attack,
)
from hauberk.attacks.apgd_l1 import APGDL1
from hauberk.attacks.minimum_norm.base import MinimumNormAttack
from hauberk.attacks.scheduler import ContinuousBatcher
from hauberk.attacks.step_size import RelativeStep, parse_step_size
from hauberk.core.random import ExampleRng
from hauberk.methods.inner_attacks.minimum_margin import MinimumMargin
from hauberk.objectives.functional import ATTACK_LOSSES, cw_loss, dlr_loss, evades, logit_margin, make_goal
from helpers import count_passes, fingerprint, same, tiny_batch, tiny_net

THREATS = [hb.Linf("8/255"), hb.L2(0.5), hb.L1(4.0)]


@pytest.mark.parametrize("mode", ["eval", "train-frozen"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_callers_model_is_sacred(mode, threat, device):
    model = tiny_net(dropout=0.3).to(device)
    model.train()
    model[1].eval()  # a mixture of modes is kept too
    model[0].weight.requires_grad_(False)
    x, y = (t.to(device) for t in tiny_batch())
    torch.nn.functional.cross_entropy(model(x), y).backward()  # gradients to be kept
    before = fingerprint(model)
    for attack in (
        lambda: hb.attacks.pgd(model, x, y, threat, steps=3, restarts=2, mode=mode),
        lambda: hb.attacks.pgd(model, x, y, threat, steps=3, loss="kl", start="normal", mode=mode, momentum=0.9),
        lambda: hb.attacks.pgd(model, x, y, threat, steps=3, loss="dlr", return_last=True, mode=mode),
        lambda: hb.attacks.fgsm(model, x, y, threat),
        lambda: hb.attacks.cw(model, x, y, threat, steps=3),
        lambda: hb.evaluate(model, (x.cpu(), y.cpu()), threat=threat, attacks=["fgsm", "pgd-10"], quiet=True),
    ):
        attack()
        assert same(before, fingerprint(model))


def test_the_model_is_put_back_when_the_attack_fails():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()
            self.passes = 0

        def forward(self, x):
            self.passes += 1
            if self.passes > 2:
                raise RuntimeError("out of luck")
            return self.net(x)

    model = Fails().train()
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        hb.attacks.pgd(model, *tiny_batch(), THREATS[0])
    assert same(before, fingerprint(model))


def test_a_graph_of_the_caller_survives():
    model = tiny_net().eval()
    x, y = tiny_batch()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    hb.attacks.pgd(model, x, y, THREATS[0])
    loss.backward()
    assert model[0].weight.grad is not None


def test_mode_train_updates_batchnorm_and_train_frozen_sees_batch_statistics():
    x, y = tiny_batch()
    model = tiny_net()
    before = model[1].running_mean.clone()
    hb.attacks.pgd(model, x, y, THREATS[0], steps=2, mode="train")
    assert not torch.equal(before, model[1].running_mean)
    model = tiny_net().eval()
    frozen = hb.attacks.pgd(model, x, y, THREATS[0], steps=5, mode="train-frozen")
    plain = hb.attacks.pgd(model, x, y, THREATS[0], steps=5)
    assert not torch.equal(frozen.logits, plain.logits)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_inside_no_grad(context):
    model = tiny_net().eval()
    with context():
        x, y = tiny_batch()
        inside = hb.attacks.pgd(model, x, y, THREATS[0])
    assert torch.equal(inside.x_adv, hb.attacks.pgd(model, *tiny_batch(), THREATS[0]).x_adv)


@pytest.mark.parametrize(
    ("settings_", "forwards"),
    [
        (PGD(10, return_last=True, evaluate_last=False), 10),
        (PGD(10), 11),
        (PGD(10, return_last=True), 11),
        (PGD(10, loss="kl", start="normal", return_last=True, evaluate_last=False), 11),
        (PGD(4, restarts=3), 15),
    ],
)
def test_passes_are_as_few_as_the_formula_needs_and_are_reported(settings_, forwards):
    model = tiny_net().eval()
    seen = count_passes(model)
    found = settings_(model, *tiny_batch(), THREATS[0])
    assert seen == {"forwards": forwards, "backwards": settings_.steps * settings_.restarts}
    assert (found.forwards, found.backwards) == (seen["forwards"], seen["backwards"])


def test_what_it_saw_agrees_with_a_slow_replay():
    model = tiny_net(seed=3).eval()
    x, y = tiny_batch(32)
    y = model(x).argmax(1).where(torch.arange(32) % 4 > 0, y)
    threat = hb.Linf(0.05)
    found = hb.attacks.pgd(model, x, y, threat, steps=6, step_size=0.01, start="clean", return_last=True)
    point, right = x, []
    for _ in range(6):
        point = point.detach().requires_grad_()
        logits = model(point)
        right.append(logits.argmax(1) == y)
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), point)
        point = (point + 0.01 * grad.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    right.append(model(point).argmax(1) == y)
    steps = torch.stack(right)
    assert torch.equal(found.kappa, steps[:6].sum(0))
    first = [(~steps[:, i]).nonzero().flatten().tolist()[:1] or [-1] for i in range(32)]
    assert found.first_success.tolist() == [f[0] for f in first]
    assert torch.allclose(found.x_adv, point, atol=1e-6)
    assert torch.allclose(found.logits, model(found.x_adv), atol=1e-5)
    assert torch.equal(found.success, ~steps[6])


def test_best_ever_keeps_successes_and_its_logits_belong_to_it():
    model = tiny_net(seed=5).eval()
    x, y = tiny_batch(64)
    y = model(x).argmax(1)
    best = hb.attacks.pgd(model, x, y, hb.Linf(0.1), steps=8, step_size="2*eps")
    last = hb.attacks.pgd(model, x, y, hb.Linf(0.1), steps=8, step_size="2*eps", return_last=True)
    assert (best.first_success >= 0).equal(best.success)  # nothing that was visited is lost
    assert best.success.sum() >= last.success.sum()
    assert torch.allclose(model(best.x_adv), best.logits, atol=1e-5)
    more = hb.attacks.pgd(model, x, y, hb.Linf(0.1), steps=8, step_size="2*eps", restarts=4)
    assert (more.success | ~best.success).all()  # the first restart is the run without restarts


def test_a_given_start_outside_is_used_but_never_returned():
    model = tiny_net().eval()
    x, y = tiny_batch()
    threat = hb.Linf(0.01)
    found = hb.attacks.pgd(model, x, y, threat, steps=1, step_size=1e-9, start=x + 0.5)
    assert threat.contains(found.x_adv, x).all()


@settings(max_examples=40, deadline=None)
@given(
    threat=st.sampled_from([*THREATS, hb.Linf(torch.rand(3, 8, 8) * 0.1), hb.L2(0.3, frozen=list(range(50))), hb.L1(1.0)]),
    loss=st.sampled_from(["ce", "kl", "cw", "dlr"]),
    start=st.sampled_from(["uniform", "normal", "normal-unprojected", "clean"]),
    steps=st.integers(1, 5),
    size=st.sampled_from(["eps/4", "eps", "10*eps"]),
    returned=st.sampled_from([{}, {"return_last": True}, {"return_last": True, "evaluate_last": False}]),
    momentum=st.sampled_from([0.0, 0.9]),
    restarts=st.integers(1, 2),
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_no_attack_ever_leaves_ball_or_box(threat, loss, start, steps, size, returned, momentum, restarts, double, seed):
    dtype = torch.float64 if double else torch.float32
    model = tiny_net(seed=seed % 7).to(dtype).eval()
    x, y = tiny_batch(seed=seed, dtype=dtype)
    x = (x * 3 - 1).clamp(0, 1)  # many pixels at the bounds
    found = PGD(steps, size, start, loss, 0.0, restarts, momentum, **returned)(model, x, y, threat, seed=seed)
    assert found.x_adv.dtype == dtype
    assert threat.contains(found.x_adv, x).all()
    assert threat.constraint_violation(found.x_adv, x).max() < (1e-12 if double else 2e-6)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_results_do_not_depend_on_the_batch(threat):
    model = tiny_net().double().eval()
    x, y = tiny_batch(12, dtype=torch.float64)
    ids = torch.arange(100, 112)
    whole = hb.attacks.pgd(model, x, y, threat, steps=5, restarts=2, seed=ExampleRng(3, ids))
    order = torch.tensor([7, 2, 11, 0])
    part = hb.attacks.pgd(model, x[order], y[order], threat, steps=5, restarts=2, seed=ExampleRng(3, ids[order]))
    assert torch.allclose(whole.x_adv[order], part.x_adv, atol=1e-12)


class ByRow(nn.Module):
    """A network that computes the same bits for an example, whatever is beside it."""

    def __init__(self, generator):
        super().__init__()
        self.first = nn.Parameter(torch.randn(20, 6, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(5, 20, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return ((x[:, None] * self.first).sum(2).tanh()[:, None] * self.last).sum(2)


def masked(x):
    """Frozen features, others for each example; of some all are."""
    return (x > 0.7) | (x[:, :1] < 0.2)


WIDE = [0.02, 0.3, 0.1, 0.0, 0.1, 0.2]
ATTACKS = {
    "absolute step": PGD(5, 0.05, start="clean", return_last=True),
    "step in eps": PGD(5, "eps/4", loss="cw", momentum=0.5, restarts=2),
    "step for each feature": PGD(5, torch.tensor(WIDE).double() / 4, loss="kl", nesterov=0.5),
    "line search": PGD(4, "0.1", step_size_factors=(0.5, 2.0), return_last=True),
    "apgd": APGD(10, restarts=2),
    "apgd-t": APGD(10, loss="dlr-targeted", targets=2),
    "fab-t": hb.attacks.FAB(steps=8, targets=2),
    "fab": hb.attacks.FAB(steps=8, targeted=False),
    "square": hb.attacks.Square(30),
    "random-search": hb.attacks.RandomSearch(20),
    "fmn": hb.attacks.FMN(steps=10, restarts=2),
    "ddn": hb.attacks.DDN(steps=20),
    "deepfool": hb.attacks.DeepFool(steps=5),
    "cw-l2": hb.attacks.CWL2(steps=20, searches=3),
    "sigma-zero": hb.attacks.SigmaZero(steps=20),
}


ROW_THREATS = [
    hb.Linf(WIDE, frozen=masked), hb.Linf(WIDE, one_hot=[1, 1, 1, 0, 0, 0]), hb.L2(0.6, frozen=masked), hb.L2(WIDE),
    hb.L1(WIDE, frozen=masked), hb.L0(3, frozen=masked),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "threat"),
    [pair for pair in itertools.product(ATTACKS, ROW_THREATS) if ATTACKS[pair[0]].defined_in(pair[1].norm)],
)
def test_no_row_sees_another(name, threat):
    attack = ATTACKS[name]
    generator = torch.Generator().manual_seed(0)
    x, ids = torch.rand(3, 6, generator=generator, dtype=torch.float64), torch.arange(50, 53)
    x[0, 0] = 0.1
    model = ByRow(generator)
    y = model(x).argmax(1)
    for fraction in (None, torch.tensor([0.7, 0.5, 1.0])):
        whole = attack(model, x, y, threat, seed=ExampleRng(3, ids), radius_fraction=fraction)
        for i in range(len(x)):
            own = None if fraction is None else fraction[i : i + 1]
            alone = attack(model, x[i : i + 1], y[i : i + 1], threat, seed=ExampleRng(3, ids[i : i + 1]), radius_fraction=own)
            assert torch.allclose(alone.x_adv[0], whole.x_adv[i], rtol=0, atol=1e-12)
            assert bool(alone.success[0]) == bool(whole.success[i])


def test_seeds_and_numbers_repeat():
    model = tiny_net().eval()
    x, y = tiny_batch()
    one, two = (hb.attacks.pgd(model, x, y, THREATS[0], steps=1, seed=s).x_adv for s in (0, 1))
    assert torch.equal(one, hb.attacks.pgd(model, x, y, THREATS[0], steps=1, seed=0).x_adv)
    assert not torch.equal(one, two)


def test_zero_and_nan_gradients_move_nothing():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.cat([x.flatten(1).sum(1, keepdim=True) * 0, torch.ones(len(x), 1)], 1)

    class Poisoned(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            return torch.stack([torch.sqrt(flat[:, 0] - flat[:, 0].detach()) + flat.sum(1), flat[:, 1]], 1)

    x, y = tiny_batch(classes=2)
    for threat in THREATS:
        assert torch.equal(hb.attacks.pgd(Flat(), x, y, threat, start="clean").x_adv, x)
        assert hb.attacks.pgd(Poisoned(), x, y, threat).x_adv.isfinite().all()


def test_losses_by_hand():
    logits = torch.tensor([[-3.0, -1.0, -2.0], [4.0, 1.0, 0.0]])
    y = torch.tensor([1, 0])
    assert logit_margin(logits, y).tolist() == [1.0, 3.0]  # negative logits: a mask of zeros would say -1
    assert cw_loss(logits, y, confidence=0.0).tolist() == [-1.0, -3.0]
    assert cw_loss(logits, 1 - y, confidence=2.0).tolist() == [2.0, 2.0]
    assert torch.allclose(dlr_loss(logits, y), torch.tensor([-0.5, -0.75]))
    with pytest.raises(hb.UserError, match="at least 3 classes"):
        dlr_loss(logits[:, :2], torch.tensor([1, 0]))


def test_presets_run_and_say_where_they_come_from():
    model = tiny_net().eval()
    x, y = tiny_batch(2)
    for name, preset in PRESETS.items():
        assert preset.source
        assert preset.attack.cost() >= 1
        if name.startswith("transfer"):
            continue
        for threat in (hb.Linf(0.031), hb.L2(0.5), hb.L1(2.0), hb.L0(3)):
            if not preset.attack.defined_in(threat.norm):
                continue
            program, note = replace(preset, attack=replace(preset.attack, steps=10)).adapted(threat, 5)
            found = run_attack(program, model, x, y, threat)
            assert not note
            assert threat.contains(found.x_adv, x).all(), name
    with pytest.raises(hb.UserError, match="did you mean 'pgd-20'"):
        hb.attacks.find_attack("pgd20")


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"step_size": "eps/0"}, "not a number"),
        ({"step_size": "fast"}, "not a number"),
        ({"step_size": -0.1}, "must be positive"),
        ({"start": "random"}, "start must be .uniform., .normal., .normal-unprojected. or .clean. or a torch tensor"),
        ({"mode": "test"}, "mode must be .eval."),
        ({"loss": "hinge"}, "unknown attack loss"),
        ({"start": torch.zeros(6, 3, 8, 8), "restarts": 2}, "would all be the same"),
    ],
)
def test_bad_settings_say_why(kwargs, says):
    with pytest.raises(hb.UserError, match=says):
        hb.attacks.pgd(tiny_net(), *tiny_batch(), THREATS[0], **kwargs)


@pytest.mark.parametrize(
    ("size", "value"), [("eps/4", 0.02), ("2*eps", 0.16), ("7*eps/31", 0.56 / 31), ("2/255", 2 / 255), (0.5, 0.5)]
)
def test_step_sizes_in_the_notations_of_the_field(size, value):
    read = parse_step_size(size)
    assert (read.of(0.08) if isinstance(read, RelativeStep) else read) == pytest.approx(value)


def test_half_precision_models_get_float32_losses():
    model = copy.deepcopy(tiny_net()).to(torch.bfloat16).eval()
    x, y = tiny_batch()
    found = hb.attacks.pgd(model, x.bfloat16(), y, hb.Linf(0.1))
    assert found.x_adv.dtype == torch.bfloat16
    assert hb.Linf(0.1).contains(found.x_adv, x.bfloat16()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ATTACKS)
def test_inputs_in_half_precision_are_attacked_as_well_as_others(name, dtype):
    """Numbers such as 1e-30 and 1e12 are none in float16, and short steps and lengths of an attack would be lost in it."""
    attack = ATTACKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5)).to(dtype)
        x = torch.rand(20, 6).to(dtype)
    y = model(x).argmax(1)
    for threat in (hb.Linf(0.1), hb.L2(0.2, frozen=[0]), hb.L1(0.4), hb.L0(1)):
        if not attack.defined_in(threat.norm):
            continue
        found, wide = attack(model, x, y, threat), attack(copy.deepcopy(model).float(), x.float(), y, threat)
        assert found.x_adv.dtype == dtype
        assert torch.equal(model(found.x_adv).argmax(1) != y, found.success)
        assert abs(int(found.success.sum()) - int(wide.success.sum())) <= 2
        if not isinstance(attack, MinimumNormAttack):  # whose points are the nearest, inside or not
            assert threat.contains(found.x_adv, x).all()


class Stream:
    """Twenty-four examples that go through an attack in five rows, set up three at a time."""

    def __init__(self, attack):
        self.net, (self.x, y), self.threat = tiny_net().double().eval(), tiny_batch(24, dtype=torch.float64), hb.Linf(0.03)
        self.clean = self.net(self.x).detach()
        self.y = torch.where(torch.arange(24) % 4 == 0, y, self.clean.argmax(1))  # three in four are right without an attack
        self.right = [i for i in range(24) if self.clean[i].argmax() == self.y[i]]
        self.rng, self.left, self.broken = ExampleRng(3, torch.arange(24)), {}, {}
        calls = self.fetch, self.verify, self.leave
        self.batcher = ContinuousBatcher(attack, ModelQueries(self.net), *calls, range(attack.n_runs(5)), 5, 3)

    def fetch(self, examples, runs):
        index = torch.tensor(examples)
        feasible, rng = self.threat.around(self.x[index]), self.rng.index_select(index)
        return AttackInputs(feasible, self.y[index], self.clean[index], torch.tensor(runs), rng)

    def verify(self, state, places, examples, runs):
        self.broken.update(zip(examples, runs, strict=True))
        return np.ones(len(examples), dtype=bool)

    def leave(self, state, places, examples):
        self.left.update(zip(examples, state.best[places], strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        PGD(6, "eps/4", "clean"),
        PGD(6, "eps/4", "normal", momentum=0.9),
        PGD(6, "eps/4", "clean", "cw", confidence=2.0, nesterov=0.75, step_size_factors=(0.5, 1.0, 2.0)),
        PGD(6, torch.tensor(0.02).expand(3, 8, 8), "clean", "kl"),
        PGD(6, "eps/4", "uniform", "ce-targeted", targets=2),
    ],
    ids=["plain", "momentum", "nesterov", "kl, a step for each feature", "targets in turn"],
)
def test_a_stream_and_a_batch_are_the_same_attack(settings):
    """Rows at their own steps, and a batch in step: the same points for those that stand, the same verdicts for all."""
    stream = Stream(settings)
    batch = settings(stream.net, stream.x, stream.y, stream.threat, seed=3)
    stream.batcher.add(stream.right)
    stream.batcher.run()
    assert set(stream.left) | set(stream.broken) == set(stream.right)
    assert stream.left
    assert stream.broken
    for i in stream.right:
        assert bool(batch.success[i]) == (i in stream.broken)
        if i in stream.left and settings.n_runs(5) == 1:
            assert torch.equal(stream.left[i], batch.x_adv[i])


def test_a_stream_goes_on_from_its_state():
    """Stopped at every rest in turn, with examples that are under way, set up, and waiting."""
    attack = PGD(6, "eps/4", "uniform", "ce-targeted", targets=2)
    whole = Stream(attack)
    whole.batcher.add(whole.right)
    whole.batcher.run()

    def stop():
        raise InterruptedError

    stream, todo = Stream(attack), set(whole.right)
    stream.batcher.add(whole.right)
    rests = 0
    while todo:
        try:
            stream.batcher.run(stop)
        except InterruptedError:
            rests += 1
        todo -= {*stream.left, *stream.broken}
        again = Stream(attack)
        again.left, again.broken = stream.left, stream.broken
        if todo:
            assert again.batcher.load_state_dict(stream.batcher.state_dict(), todo, stream.threat) == todo
        stream = again
    assert rests > 5
    assert stream.broken == whole.broken
    assert set(stream.left) == set(whole.left)
    assert all(torch.equal(point, whole.left[i]) for i, point in stream.left.items())


@pytest.mark.parametrize(
    "settings",
    [PGD(mode="train"), PGD(tau=1, return_last=True), PGD(step_noise=0.1), PGD(start=torch.zeros(1))],
    ids=["mode", "tau", "noise", "start"],
)
def test_settings_of_training_are_refused_in_an_evaluation(settings):
    with pytest.raises(hb.UserError, match="are for training"):
        settings.adapted(hb.Linf(0.1), 5)


def test_with_a_class_of_adversarial_inputs_a_target_must_beat_both():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.5], [0.0, 1.0, -1.0, 4.0]])
    loss = ATTACK_LOSSES["evade-targeted"](logits, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert torch.equal(loss, torch.tensor([3.0 - 1.0, -1.0 - 4.0]))


def test_a_chosen_class_is_aimed_at():
    net, (x, y) = tiny_net().eval(), tiny_batch(12)
    y, threat = net(x).argmax(1), hb.Linf(0.3)
    for shift in (1, 3):
        target = (y + shift) % 5
        found = hb.attacks.pgd(net, x, y, threat, steps=20, target=target)
        assert threat.contains(found.x_adv, x).all()
        assert (found.logits.argmax(1) == target).float().mean() > 0.9
        assert torch.allclose(net(found.x_adv), found.logits, atol=1e-5)


def test_a_loss_and_its_target_belong_together():
    net, (x, y) = tiny_net().eval(), tiny_batch()
    for loss in ("kl", "cw", "dlr"):
        with pytest.raises(hb.UserError, match="takes no target"):
            hb.attacks.pgd(net, x, y, hb.Linf(0.1), loss=loss, target=y)
    y, threat = net(x).argmax(1), hb.Linf(0.05)
    likely = net(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    aimed = hb.attacks.pgd(net, x, y, threat, loss="ce-targeted", targets=1)  # without one: the most likely wrong class
    assert torch.equal(aimed.x_adv, hb.attacks.pgd(net, x, y, threat, target=likely).x_adv)
    assert (aimed.forwards, aimed.backwards) == (12, 10)


A = hb.attacks
EVERY_ATTACK = {
    "pgd": lambda *batch: A.pgd(*batch, steps=2),
    "fgsm": lambda *batch: A.fgsm(*batch),
    "cw": lambda *batch: A.cw(*batch, steps=2),
    "friendly_pgd": lambda *batch: A.friendly_pgd(*batch, steps=2),
    "lm_pgd": lambda *batch: A.lm_pgd(*batch, steps=2),
    "margin_pgd": lambda *batch: MinimumMargin(A.PGD(2)).search(*batch, radius_fraction=torch.ones(6))[0],
    "apgd": lambda *batch: A.apgd(*batch, steps=2),
    "fab": lambda *batch: A.fab(*batch, steps=2),
    "square": lambda *batch: A.square(*batch, steps=2),
    "random_search": lambda *batch: A.random_search(*batch, steps=2),
    "transfer": lambda *batch: A.transfer(*batch, surrogate=tiny_net(seed=5).eval()),
    "autoattack": lambda *batch: A.autoattack(*batch),
    "method": lambda *batch: hb.method("trades", batch[3])(*batch[:3]),
}
# What is done to inputs and labels, and what is said of it.
MISTAKES = {
    "NaN": (lambda x, y: (x.clone().fill_(torch.nan), y), "1152 NaN or infinite values"),
    "one infinite value": (lambda x, y: (torch.where(x == x.max(), torch.inf, x), y), "1 NaN or infinite values"),
    "normalised outside": (lambda x, y: (x - 1, y), "normalisation belongs inside the model"),
    "images up to 255": (lambda x, y: (x * 255, y), "divide by 255"),
    "a label of -1": (lambda x, y: (x, y - 1 - y), "labels must be 0 or more, found -1 to -1"),
    "labels of -100": (lambda x, y: (x, torch.full_like(y, -100)), "labels must be 0 or more"),
    "a label too large": (lambda x, y: (x, torch.full_like(y, 5)), "labels must be 0 to 4, found 5 to 5"),
    "an empty batch": (lambda x, y: (x[:0], y[:0]), "the batch is empty"),
    "one-hot": (lambda x, y: (x, torch.nn.functional.one_hot(y, 5)), r"y\.argmax\(1\)"),
    "fewer labels": (lambda x, y: (x, y[:5]), r"need labels of shape \(6,\), got \(5,\)"),
    "float labels": (lambda x, y: (x, y.float()), r"labels must be integers, got torch.float32; y\.long\(\)"),
    "bool labels": (lambda x, y: (x, y > 2), "labels must be integers, got torch.bool"),
    "uint8 images": (lambda x, y: ((x * 255).byte(), y), "inputs have dtype torch.uint8; divide by 255"),
    "half inputs": (lambda x, y: (x.half(), y), r"inputs.*torch.float16.*x\.to\(torch.float32\)"),
    "double inputs": (lambda x, y: (x.double(), y), r"inputs.*torch.float64.*x\.to\(torch.float32\)"),
    "NumPy inputs": (lambda x, y: (x.numpy(), y), "must be a torch tensor.*got a ndarray"),
    "a list of labels": (lambda x, y: (x, y.tolist()), "must be a torch tensor.*got \\["),
}


@pytest.mark.parametrize("attack", EVERY_ATTACK)
def test_what_an_attack_is_handed_is_checked(attack):
    net, (x, y), threat = tiny_net().eval(), tiny_batch(), hb.Linf("8/255")
    before = fingerprint(net)
    for name, (spoilt, says) in MISTAKES.items():
        with pytest.raises(hb.UserError, match=says) as caught:
            EVERY_ATTACK[attack](net, *spoilt(x, y), threat)
        assert "\n" not in str(caught.value), name
        assert not net._forward_hooks, name
    assert same(before, fingerprint(net))


@pytest.mark.parametrize("attack", EVERY_ATTACK)
def test_labels_may_be_integers_of_any_width(attack, short_autoattack):
    net, (x, y), threat = tiny_net().eval(), tiny_batch(), hb.Linf("8/255")
    expected = EVERY_ATTACK[attack](net, x, y, threat).x_adv
    for dtype in (torch.int8, torch.int16, torch.int32, torch.uint8):
        assert torch.equal(EVERY_ATTACK[attack](net, x, y.to(dtype), threat).x_adv, expected)


def test_a_method_that_refused_a_batch_checks_the_next_one_too():
    method, net, (x, y) = hb.method("at", hb.Linf(0.1)), tiny_net(), tiny_batch()
    for _ in range(2):
        with pytest.raises(hb.UserError, match="divide by 255"):
            method(net, x * 255, y)
    again, fresh = (m(net.eval(), x, y).x_adv for m in (method, hb.method("at", hb.Linf(0.1))))
    assert torch.equal(again, fresh)


class OnlyAtGrey(nn.Module):
    """Finite, and class 0, where all features are 0.5; anywhere else its logits are not finite."""

    def __init__(self, otherwise=torch.nan):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 0.1, 0.0]).expand(4, 3).clone())
        self.otherwise = otherwise

    def forward(self, x):
        grey = (x == 0.5).all(1, keepdim=True)
        return torch.where(grey, x @ self.weight + torch.tensor([1.0, 0.78, 0.0]), self.otherwise)


@pytest.mark.parametrize("otherwise", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_no_answer(otherwise, short_autoattack):
    net, x, y, threat = OnlyAtGrey(otherwise), torch.full((6, 4), 0.5), torch.zeros(6, dtype=torch.long), hb.Linf(0.1)
    for name, attack in EVERY_ATTACK.items():
        if name in ("method", "transfer", "friendly_pgd"):
            continue
        found = attack(net, x, y, threat)
        assert found.success.all(), name
        assert threat.contains(found.x_adv, x).all(), name
    assert A.friendly_pgd(net, x, y, threat).steps_taken.tolist() == [0] * 6  # the start is no answer already


def test_a_wrong_answer_is_a_better_find_than_none():
    x, y, yes = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.tensor([True, True])
    looks = [(1, torch.tensor([torch.nan, 0.5])), (2, torch.tensor([-3.0, torch.nan])), (3, torch.tensor([-4.0, torch.nan]))]
    inputs = AttackInputs(hb.Linf(9.0, low=0, high=9).around(x), y, torch.zeros(2, 3), y, ExampleRng(0, y))
    state = AttackState(**initial_state(inputs))
    for value, loss in looks:
        state.offer(torch.full_like(x, value), torch.zeros(2, 3), loss, yes)
    assert state.best[:, 0].tolist() == [2.0, 1.0]
    assert x.eq(0).all()  # the inputs are not written into


def test_a_model_made_under_inference_mode_is_attacked_and_left_as_it_was(device):
    with torch.inference_mode():
        net = tiny_net().to(device).eval()
    usual = tiny_net().to(device).eval()
    x, y = (t.to(device) for t in tiny_batch())
    net[0].bias.requires_grad_(False)
    before = [(p, p.requires_grad) for p in net.parameters()]
    for attack in (A.pgd, A.fab, A.square):
        assert torch.equal(attack(net, x, y, hb.Linf(0.1), steps=3).x_adv, attack(usual, x, y, hb.Linf(0.1), steps=3).x_adv)
    assert all(p is other and p.requires_grad == flag for (p, flag), other in zip(before, net.parameters(), strict=True))
    assert [flag for _, flag in before].count(True) == len(before) - 1
    with pytest.raises(hb.UserError, match=r"under torch\.inference_mode cannot be trained"):
        hb.method("at", hb.Linf(0.1))(net, x, y)


@dataclass(frozen=True)
class Corner(Attack):
    """A user's own attack: a look at the upper corner."""

    looks: list = field(default_factory=list)
    check_every = 1
    max_steps = 1

    def init(self, inputs):
        return AttackState(**initial_state(inputs))

    def step(self, state, queries, host_steps):
        self.looks.append(len(state.y))
        point = state.feasible.project(state.feasible.upper)
        logits = queries.logits(point)
        state.observe(point, logits, logits[:, 0])


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_an_attack_of_ones_own_is_never_replaced(threat, monkeypatch):
    mine = Corner()
    monkeypatch.setitem(PRESETS, "corner", AttackPreset(mine, "this test"))
    monkeypatch.setitem(PRESETS, "apgd-3", AttackPreset(APGD(steps=7, loss="ce-targeted", targets=2, restarts=3), "this test"))
    program, _ = PRESETS["corner"].adapted(threat, 5)
    assert program is mine
    net, (x, y) = tiny_net().eval(), tiny_batch(20)
    y = net(x).argmax(1)
    for attack in ("corner", mine):
        mine.looks.clear()
        hb.evaluate(net, (x, y), threat=threat, attacks=[attack], diagnostics="cheap", quiet=True)
        assert sum(mine.looks) >= 20
    apgd, _ = PRESETS["apgd-3"].adapted(threat, 5)
    assert (apgd.steps, apgd.loss, apgd.targets, apgd.restarts) == (7, "ce-targeted", 2, 3)
    assert isinstance(apgd, APGDL1) == (threat.norm.name == "L1")
    assert PRESETS["corner"].adapted(threat, 5, make_goal(evades))[0] is mine


def test_autoattacks_rows_have_their_own_numbers_in_l1():
    """Of the official code: 5 restarts in L1, of the targeted attack 5 targets."""
    numbers = {}
    for name in ("apgd-ce", "apgd-t", "apgd-dlr", "apgd-ce-5", "apgd-dlr-5"):
        program, _ = PRESETS[name].adapted(hb.L1(1.0), 10)
        assert isinstance(program, APGDL1)
        numbers[name] = (program.steps, program.n_runs(10))
    assert set(numbers.values()) == {(100, 5)}


def test_an_attack_of_ones_own_may_write_into_its_state(device):
    @dataclass(frozen=True)
    class Writing(hb.attacks.PGD):
        def step(self, state, queries, host_steps):
            super().step(state, queries, host_steps)
            for value in (state.step, state.found_at, state.right, state.moves):
                value.add_(1)
            state.found.fill_(True)

        def init(self, inputs):
            state = super().init(inputs)
            for value in (state.step, state.found_at, state.right, state.moves, state.best_loss):
                value.add_(5)
            state.found.fill_(True)
            return state

    model, (x, y), threat = tiny_net().to(device).eval(), tiny_batch(), hb.Linf(0.1)
    x, y = x.to(device), y.to(device)
    before = hb.attacks.pgd(model, x, y, threat, steps=3)
    Writing(3)(model, x, y, threat)
    after = hb.attacks.pgd(model, x, y, threat, steps=3)
    for name in ("x_adv", "success", "kappa", "first_success", "steps_taken"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
