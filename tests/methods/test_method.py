import warnings

import pytest
import torch

import hauberk as hb
from hauberk.methods import get_method_spec
from helpers import count_passes, further, settings, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        ("standard", 1, 0),
        ("at", 11, 10),
        ("mart", 12, 10),
        ("trades", 13, 10),
        ("gaussian", 1, 0),
        ("smoothadv", 11, 10),
    ],
)
def test_a_step_makes_no_pass_too_many(name, forwards, backwards):
    model = tiny_net().train()
    method = hb.method(name, THREAT)
    x, y = tiny_batch()
    seen = count_passes(model)
    out = method(model, x, y)
    assert (out.forwards, out.backwards) == (forwards, backwards)
    assert seen == {"forwards": forwards, "backwards": backwards}
    before = int(model[1].num_batches_tracked)
    method(model, x, y)
    assert int(model[1].num_batches_tracked) - before == (2 if name in ("mart", "trades") else 1)


@pytest.mark.parametrize("name", list(hb.list_methods()))
def test_one_line_in_anybodys_loop(name, device):
    method = hb.method(name, THREAT, **further(name)).with_schedule(epochs=100)
    model = tiny_net(classes=5 + method.extra_outputs).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03 if method.teacher else 0.1)
    x, y = (t.to(device) for t in tiny_batch(32))
    losses = []
    for epoch in range(15):
        out = method(model, x, y, epoch=epoch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(model)
        losses.append(float(out.loss.detach()))
    assert losses[-1] < losses[0]
    assert out.weights.shape == (32,)
    assert not out.weights.requires_grad
    if method.attack is not None:
        largest = getattr(method.objective, "largest_radius", 1.0)  # of the papers that give classes a larger ball
        reach = getattr(method.inner, "reach", lambda threat: threat)  # n-fgsm leaves the ball on purpose
        assert reach(THREAT.scaled(largest)).contains(out.x_adv, x).all()
    if method.sees_worst_cases:
        assert out.logits_adv.shape == (32, 5 + method.extra_outputs)


def test_the_loss_is_the_formula():
    model = tiny_net().eval()
    x, y = tiny_batch()
    for name in ("at", "trades", "mart"):
        out = hb.method(name, THREAT)(model, x, y)
        terms = getattr(hb.objectives, name)(out.logits, out.logits_adv, y)
        assert torch.allclose(out.loss, (out.weights * terms.robust + terms.regularizer).mean(), atol=1e-6)
        assert torch.allclose(out.logits_adv, model(out.x_adv), atol=1e-5)


def test_each_call_draws_new_starts_and_the_seed_repeats_them():
    model = tiny_net().eval()
    x, y = tiny_batch()
    first, second = (hb.method("at", THREAT, steps=1, seed=4) for _ in range(2))
    a, b = first(model, x, y).x_adv, first(model, x, y).x_adv
    assert not torch.equal(a, b)
    assert torch.equal(a, second(model, x, y).x_adv)


def test_class_weights_multiply_the_whole_term():
    model = tiny_net().eval()
    x, y = tiny_batch()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    out = hb.method("trades", THREAT)(model, x, y, class_weights=weights)
    terms = hb.objectives.trades(out.logits, out.logits_adv, y)
    assert torch.allclose(out.loss, (weights[y] * (terms.robust + terms.regularizer)).mean(), atol=1e-6)


def test_eps_scale_shrinks_the_ball():
    model = tiny_net().eval()
    x, y = tiny_batch()
    out = hb.method("at", THREAT)(model, x, y, eps_scale=0.25)
    assert float((out.x_adv - x).abs().max()) == pytest.approx(2 / 255, rel=1e-3)


def test_overrides_and_presets_reach_attack_and_objective():
    mart = hb.method("mart", THREAT, beta=1.5, steps=3, step_size="2/255")
    assert (mart.attack.steps, mart.attack.step_size, mart.settings["beta"]) == (3, "2/255", 1.5)
    official = hb.method("trades", hb.Linf(0.031), preset="official")
    assert official.attack.step_size == "7*eps/31"
    assert official.attack.start == "normal-unprojected"
    assert hb.method("fat-trades", THREAT, preset="official").attack.start == "normal"
    again = hb.method(**{**mart.to_dict(), "threat": THREAT})
    assert again.to_dict() == mart.to_dict()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.method("marts", THREAT), "did you mean 'mart'"),
        (lambda: hb.method("at", THREAT, stepsize=1), "did you mean 'step_size'"),
        (lambda: hb.method("at", THREAT, beta=1.0), "unknown setting of at"),
        (lambda: hb.method("mart", THREAT, beta=-1), "must not be negative"),
        (lambda: hb.method("mart", THREAT, beta=float("nan")), "beta must be a finite number"),
        (lambda: hb.method("at", 8 / 255), r"threat must be a threat model, such as hb.Linf\('8/255'\), got 0.03"),
        (lambda: hb.method("mail-trades", THREAT, slope="a"), "slope must be a finite number, got 'a'"),
        (lambda: hb.method("at", THREAT, seed=2**63), "seed must be a whole number of 64 bits"),
        (lambda: hb.Method(THREAT, objective=torch.nn.Linear), "objective is a class, Linear; pass an instance"),
        (
            lambda: hb.method("at", THREAT)(tiny_net().half(), *tiny_batch()),
            r"of torch.float16, the inputs of torch.float32; convert",
        ),
        (lambda: hb.method("at", THREAT)(tiny_net().requires_grad_(False), *tiny_batch()), "no gradient reaches the model"),
        (lambda: hb.method("at", THREAT)(tiny_net(), *tiny_batch(), class_weights=torch.ones(3)), "one number for each class"),
        (
            lambda: hb.method("at", THREAT, objective=lambda context: context.logits_adv)(tiny_net(), *tiny_batch()),
            "two tensors of",
        ),
        (lambda: hb.method("mart", THREAT, preset="code"), "preset is 'paper' or 'official' or 'note'"),
        (lambda: hb.method("at", THREAT, passes=("adversarial", "attack")), "passes are 'clean' and, after 'attack'"),
        (lambda: hb.method("standard", THREAT, passes=("attack", "adversarial")), "passes are 'clean'"),
        (lambda: hb.method("at", THREAT, passes=("step", "attack")), "one 'step' at most"),
        (lambda: hb.method("fat", THREAT, start="normal-unprojected"), "must be inside"),
        (lambda: hb.method("free-at", THREAT, evaluate_last=True), "unknown setting of free-at"),
        (lambda: hb.method("at", THREAT)(tiny_net(), *tiny_batch()[:1], torch.full((6,), 9)), "labels must be 0 to 4"),
        (lambda: hb.method("at", THREAT)(tiny_net(), tiny_batch()[0] * 4 - 2, tiny_batch()[1]), "normalisation belongs inside"),
        (lambda: hb.method("at", THREAT)(tiny_net(), tiny_batch()[0] * 255, tiny_batch()[1]), "divide by 255"),
        (
            lambda: hb.method("at", THREAT)(torch.nn.Sequential(tiny_net(), torch.nn.Softmax(1)), *tiny_batch()),
            "returns probabilities",
        ),
    ],
)
def test_mistakes_get_one_clear_line(make, says):
    with pytest.raises(hb.UserError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def quietly(method, *batch, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return method(*batch, **more)


def test_weights_that_are_1_by_default_are_said_once():
    model, batch = tiny_net().train(), tiny_batch(8)
    method = hb.method("mail-trades", THREAT)
    assert repr(method) == "method('mail-trades', Linf(8/255), burn_in=74)"
    says = r"mail-trades are 1 until epoch 74 \(counted from 0\): set burn_in=, or call with_schedule"
    with pytest.warns(UserWarning, match=says):
        out = method(model, *batch, epoch=3)
    assert out.burning_in
    assert torch.equal(out.weights, torch.ones(8))
    assert quietly(method, model, *batch, epoch=73).burning_in
    out = quietly(method, model, *batch, epoch=74)
    assert not out.burning_in
    assert not torch.equal(out.weights, torch.ones(8))
    for name in ("gairat", "mail-at"):
        with pytest.warns(UserWarning, match="are 1 until epoch 59|are 1 until epoch 76"):
            hb.method(name, THREAT, preset="official")(model, *batch, epoch=0)
    with pytest.warns(UserWarning, match="no epoch= is given"):  # chosen, and yet for ever
        hb.method("mail-trades", THREAT).with_schedule(epochs=8)(model, *batch)


def test_weights_that_are_1_by_choice_are_not_warned_of():
    model, batch = tiny_net().train(), tiny_batch(8)
    fitted = hb.method("mail-trades", THREAT).with_schedule(epochs=8)
    assert repr(fitted) == "method('mail-trades', Linf(8/255), burn_in=6)"
    assert quietly(fitted, model, *batch, epoch=5).burning_in
    assert not quietly(fitted, model, *batch, epoch=6).burning_in
    assert quietly(hb.method("gairat", THREAT, burn_in=2), model, *batch, epoch=1).burning_in
    assert quietly(hb.method("at", THREAT, weighting=lambda context: context.y, burn_in=2), model, *batch, epoch=1).burning_in
    assert not quietly(hb.method("gairat", THREAT, burn_in=0), model, *batch).burning_in
    assert repr(hb.method("mart", THREAT)) == "method('mart', Linf(8/255))"
    assert not quietly(hb.method("mart", THREAT), model, *batch).burning_in


@pytest.mark.parametrize(
    ("name", "settings", "epoch", "says"),
    [
        ("fat", {}, 0, r"fat changes in the course of 100 epochs: call with_schedule\(epochs=...\)"),
        ("fat-trades", {}, None, "fat-trades changes in the course of the training, and no epoch= is given"),
        ("gairat", {"lam_end": 1.0, "burn_in": 0}, 3, "gairat changes in the course of 100 epochs"),
        ("trades+awp", {"awp_warmup": 2}, None, r"trades\+awp perturbs no weights until epoch 2 .* no epoch= is given"),
    ],
)
def test_what_waits_for_the_epoch_says_so_once(name, settings, epoch, says):
    model, batch = tiny_net().train(), tiny_batch(8)
    method = hb.method(name, THREAT, **settings)
    with pytest.warns(UserWarning, match=says):
        method(model, *batch, epoch=epoch)
    quietly(method, model, *batch, epoch=epoch)
    quietly(hb.method(name, THREAT, **settings).with_schedule(epochs=8), model, *batch, epoch=1)


def test_training_that_plans_the_burn_in_does_not_warn(digits):
    few = digits["train"].fetch(torch.arange(80))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        hb.train("mlp", few, method="mail-at", threat=THREAT, epochs=2, quiet=True)


def test_a_warm_up_as_long_as_the_training_is_refused():
    method = hb.method("trades+awp", THREAT, awp_warmup=3)
    with pytest.raises(hb.UserError, match=r"warm-up of trades\+awp ends with epoch 3, the training with 3.*set awp_warmup"):
        method.with_schedule(epochs=3)
    assert method.with_schedule(epochs=4).first_full_epoch == 3
    assert hb.method("trades+awp", THREAT, awp_warmup=3, gamma=0.0).with_schedule(epochs=3).first_full_epoch == 0


def test_free_training_forgets_a_batch_that_was_not_finite():
    method, model, (x, y) = hb.method("free-at", hb.Linf(0.05)), tiny_net().eval(), tiny_batch()

    def loss(x):
        out = method(model, x, y)
        out.loss.backward()
        return float(out.loss.detach())

    loss(x)
    assert loss(torch.full_like(x, torch.nan)) != loss(x) < float("inf")
    loss(torch.where(x == x.max(), torch.inf, x))
    for _ in range(3):
        assert loss(x) < float("inf")
    assert hb.Linf(0.05).contains(method(model, x, y).x_adv, x).all()


@pytest.mark.parametrize("name", list(hb.list_methods()))
def test_a_step_where_float64_is_the_default(name):
    torch.set_default_dtype(torch.float64)
    try:
        method = hb.method(
            name + ("+awp" if name != "free-at" else ""),
            THREAT,
            **({"burn_in": 0} if name.startswith(("mail", "gair")) else {}),
            **further(name),
        ).with_schedule(epochs=100)
        model = tiny_net(classes=5 + method.extra_outputs).train()
        out = method(model, *tiny_batch(8, dtype=torch.float64), epoch=1)
        out.loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.loss.dtype == torch.float64
    assert all(value.isfinite() for value in out.report.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_equation_that_is_shown_is_the_one_that_is_computed():
    assert "KL(p(x)‖p(x'))" in get_method_spec("trades").objective.equation
    assert get_method_spec("mail-trades+awp").objective.equation == "ω·β·KL(p(x')‖p(x)) + CE(f(x), y)"
    model, (x, y) = tiny_net().eval(), tiny_batch()
    out = hb.method("mail-trades", THREAT, burn_in=1)(model, x, y, epoch=0)
    p, p_adv = out.logits.log_softmax(1), out.logits_adv.log_softmax(1)
    terms = 5.0 * (p_adv.exp() * (p_adv - p)).sum(1) + torch.nn.functional.cross_entropy(out.logits, y, reduction="none")
    assert torch.allclose(out.loss, terms.mean(), atol=1e-6)


def test_the_public_code_that_attacks_in_training_mode_is_followed():
    for name in ("at", "at+awp", "fgsm-at"):
        assert hb.method(name, THREAT).attack.mode == "eval"
        assert hb.method(name, THREAT, preset="official").attack.mode == "train"
    for name in ("trades", "trades+awp", "mart", "gairat", "mail-at", "fat"):
        assert hb.method(name, THREAT, preset="official").attack.mode == "eval"


@pytest.mark.parametrize(
    ("name", "settings", "updates", "forwards"),
    [
        ("at", {}, 1, 11),
        ("at", {"preset": "official"}, 13, 12),  # 10 of the attack, one at its last point, the loss's; after the step, x
        ("fgsm-at", {"preset": "official"}, 2, 2),
        ("trades", {}, 2, 13),
        ("trades", {"preset": "official"}, 3, 14),
        ("trades+awp", {}, 2, 15),
        ("trades+awp", {"preset": "official", "awp_warmup": 0}, 3, 16),
        ("mart", {"preset": "official"}, 2, 12),
        ("mart", {"preset": "note"}, 12, 12),
        ("at", {"passes": ("clean", "attack", "clean")}, 3, 13),
    ],
)
def test_passes_in_training_mode(name, settings, updates, forwards):
    """Those that a preset makes for BatchNorm's statistics alone are counted, and have no gradient."""
    model, batch = tiny_net().train(), tiny_batch()
    method = hb.method(name, THREAT, **settings)
    out = method(model, *batch)
    assert out.forwards == forwards
    out.loss.backward()
    method.after_step(model)
    assert int(model[1].num_batches_tracked) == updates
    method.after_step(model)  # makes nothing twice
    assert int(model[1].num_batches_tracked) == updates


def test_repeated_passes_move_statistics_and_nothing_else():
    order = ("attack", "adversarial", "clean", "clean")
    plain, twice = (hb.method("trades", THREAT, seed=3, **how) for how in ({}, {"passes": order}))
    models = [tiny_net().train() for _ in range(2)]
    batch = tiny_batch()
    losses = [method(model, *batch).loss for method, model in zip((plain, twice), models, strict=True)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert not torch.allclose(models[0][1].running_mean, models[1][1].running_mean)
    assert hb.method(**{**twice.to_dict(), "threat": THREAT}).passes_of_loss == ("adversarial", "clean", "clean")


def test_names_as_papers_write_them():
    assert hb.method("MAIL-TRADES+AWP", THREAT).name == "mail-trades+awp"
    assert hb.train(tiny_net(), tiny_batch(), method="AT", threat=THREAT, **settings(epochs=1, val_size=0)).metrics


def test_an_output_is_shown_in_short_and_gives_numbers_to_loggers():
    out = hb.method("mail-at", THREAT, burn_in=0, steps=2)(tiny_net(), *tiny_batch(), epoch=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = out.numbers()
    assert numbers["loss"] == out.loss.item()
    assert numbers.keys() == {"loss", *out.report}
    assert all(type(value) is float for value in numbers.values())
    assert len(repr(out)) < 300


def test_every_measure_goes_with_mma():
    for measure in ("pm-adv", "pm-nat", "pm-dif", "kappa", "lps"):
        out = hb.method("mma", THREAT, measure=measure, burn_in=0, steps=2)(tiny_net(), *tiny_batch(), epoch=0)
        assert out.weights.mean().isclose(torch.tensor(1.0))


@pytest.mark.parametrize(("name", "epoch"), [("at", 0), ("mail-at", 0), ("mail-at", 9)])
def test_what_a_method_returns_is_the_callers_to_write_to(name, epoch):
    model, batch = tiny_net().eval(), tiny_batch()

    def step():
        settings = {} if name == "at" else {"burn_in": 5}
        return hb.method(name, THREAT, steps=2, **settings)(model, *batch, epoch=epoch)

    out = step()
    before = out.weights.clone()
    for value in (out.weights, out.all_weights, out.measure):
        if value is not None:
            value.zero_()
    assert torch.equal(step().weights, before)
