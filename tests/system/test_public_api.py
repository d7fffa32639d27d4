"""Wild calls of the public API: each works, or says in one line of a UserError what is wrong. Nothing else is ever raised."""

import math
import warnings
from collections import Counter
from functools import partial
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hauberk as hb
from hauberk.data import (
    ColumnSchema,
    ConcatDataset,
    MapDataset,
    Subset,
    TableSchema,
    as_dataset,
    long_tail,
    make_table,
    pseudo_label,
    read_table,
    standard_subset,
)
from hauberk.evaluation import wilson_interval
from hauberk.experiments import Experiment
from hauberk.methods import registry
from hauberk.training.config import TrainConfig
from helpers import long_or

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.rand(6, 4, generator=GENERATOR), torch.arange(6) % 3
Z = torch.randn(6, 3, generator=GENERATOR)
THREAT = hb.Linf(0.1)


class Changed(nn.Module):
    """A network whose answer, or input, is changed by a function."""

    def __init__(self, answer=lambda z: z, point=lambda x: x):
        super().__init__()
        self.net, self.answer, self.point = nn.Linear(4, 3), answer, point

    def forward(self, x):
        return self.answer(self.net(self.point(x)))


class Unready(nn.Module):
    """It forgets to call ``super().__init__()``."""

    def __init__(self):
        self.scale = 1.0


class Failing:
    """A data set that cannot be read."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        raise OSError("the disk is gone")


def under_inference_mode():
    with torch.inference_mode():
        return nn.Linear(4, 3)


# Values that fit hardly anywhere; what is made anew for each call is a function of nothing, in ``MADE``.
WRONG = (
    None, "x", "", "8/255", b"x", True, False, math.nan, math.inf, -1, 0, 1.5, 3 + 4j, 2**70, -(2**70), 10**400, [], {},
    (), [None],
    ("a", "b"), {"x": X, "y": Y}, [X, Y], object(), nn.Linear, hb.Linf, hb.attacks.PGD, ValueError, lambda: 0, lambda x: x,
    lambda context: None, lambda a, b, c, d: None, np.ones(6), np.arange(6), np.float32(0.5), np.int64(3), np.array(["a"]),
    Z, X[:5], X - 1, X * 255, X * math.nan, X.half(), X.double(), X.long(), (X * 255).byte(), X > 0.5, X.to(torch.complex64),
    X.to_sparse(), X.to("meta"), torch.tensor(1.0), torch.rand(0, 4), Y - 1, Y + 7, Y.float(), Y[:3], Y.to(torch.int8),
    Y.to("meta"),
    torch.full((6,), -100), nn.functional.one_hot(Y), Y > 0, THREAT, hb.Linf([0.1, 0.2]), hb.L1(1.0), hb.L2(0.0),
    hb.AWP(0.01),
    hb.attacks.PGD(1), hb.weighting.Mail(burn_in=0), hb.objectives.Trades(), "cuda:99", "meta", "at", "MART", "pgd-20",
    "mlp", "/dev/null",
)  # fmt: skip
MADE = (
    lambda: Changed(lambda z: (z, z)), lambda: Changed(lambda z: {"logits": z}), lambda: Changed(lambda z: None),
    lambda: Changed(lambda z: z.to(torch.complex64)), lambda: Changed(lambda z: z.long()), lambda: Changed(lambda z: z > 0),
    lambda: Changed(lambda z: z * math.nan), lambda: Changed(lambda z: z.detach()), lambda: Changed(lambda z: z[:, :1]),
    lambda: Changed(lambda z: z.flatten()), lambda: Changed(lambda z: z.detach().numpy()),
    lambda: Changed(lambda z: z.softmax(1)),
    lambda: Changed(lambda z: {}["x"]), lambda: Changed(point=lambda x: x.mul_(2)), Unready, Failing, under_inference_mode,
    lambda: nn.Linear(5, 3), lambda: nn.Linear(4, 3).half(), lambda: nn.Linear(4, 3).double(), lambda: nn.LazyLinear(3),
    nn.Identity,
    lambda: nn.Linear(4, 3, device="meta"), lambda: nn.Linear(4, 3).requires_grad_(False),
    lambda: torch.jit.script(nn.Linear(4, 3)),
)  # fmt: skip

BATCH = {"model": [lambda: nn.Linear(4, 3)], "x": [X.clone], "y": [Y], "threat": [THREAT, hb.L2(0.3)]}
ATTACK = {
    **BATCH,
    "seed": [0, 7],
    "steps": [1, 2],
    "eot_iter": [1],
    "target": [None],
    "bpda": [None],
    "criterion": [None, hb.attacks.fooled],
    "radius_fraction": [None, torch.ones(6)],
}
SEVERAL = {"restarts": [1, 2], "loss": ["ce", "cw", "dlr"], "targets": [2]}
PGD = {
    **SEVERAL, "step_size": [0.01, "eps/4", "2/255"], "start": ["uniform", "clean", X], "confidence": [0.0, 50.0],
    "momentum": [0.0, 0.9],
    "mode": ["eval", "train"], "return_last": [False, True], "evaluate_last": [True], "tau": [None], "step_noise": [0.0],
    "nesterov": [0.0, 0.75], "step_size_factors": [(), (0.5, 1.0)],
}  # fmt: skip
LOGITS = {"logits": [Z], "logits_adv": [Z + 0.1], "y": [Y], "beta": [1.0, 6], "preset": ["paper", "official"]}
SET = {"train_set": [(X, Y), (X.numpy(), Y.numpy())]}
TRAINING = {
    "epochs": [1], "batch_size": [4, 6], "lr": [0.1], "momentum": [0.9], "weight_decay": [0.0], "schedule": ["one-cycle",
    "steps", "cosine", "linear", "triangular"], "nesterov": [False, True], "filter_bias_and_bn": [False, True],
    "clip_grad": [0.0, 1.0], "decay_rate": [0.1, (0.5, 0.2)], "pct_start": [-1.0, 0.1], "warmup_epochs": [0.0, 0.5],
    "ema_warmup": [False], "swa_start": [0.0], "fawa": [0.0], "fawa_threshold": [0.2], "save_every": [0, 1],
    "milestones": [(0.5,), (75.0, 90.0)], "scheduler_interval": ["epoch"], "eps_warmup": [0.0, 0.5], "ema": [0.0, 0.9, -1],
    "augment": ["none"],
    "augment_again": ["none"], "again_threshold": [1.5], "again_tries": [2], "again_share": [0.0],
    "class_weights": ["none", "balanced", (1.0, 2.0, 1.0)], "val_size": [0, 2], "val_steps": [1],
    "mixup": [0.0, 1.0], "cutmix": [0.0], "mixup_prob": [1.0, 0.5],
    "extra_share": [0.5], "patience": [0, 1], "seed": [0, 5], "threads": [0, 1], "precision": ["fp32", "tf32"],
    "deterministic": [True, False],
    "on_divergence": ["stop"],
    "sync_batchnorm": [False], "save_minutes": [10.0],
}  # fmt: skip


def computed(precision):
    with hb.float32_mode(precision):
        return X @ X.T


def made(**arguments):
    """Make a method and take two steps by it."""
    call = {key: arguments.pop(key) for key in ("model", "x", "y", "epoch", "index", "class_weights", "rng", "eps_scale")}
    model, x, y = call.pop("model"), call.pop("x"), call.pop("y")
    method = hb.method(**arguments)
    for _ in range(2):
        out = method(model, x, y, **call)
    return repr(method), out


def trained(**arguments):
    """Train for an epoch at most."""
    return hb.train(**{"quiet": True, "threads": 1, "device": "cpu"} | arguments)


def composed(**arguments):
    """A method of parts that are given."""
    arguments, model = dict(arguments), nn.Linear(4, 3)
    return hb.Method(**arguments)(model, X.clone(), Y, epoch=0)


FRAME = pd.DataFrame({"amount": [1, 2, 3, 4, 5, 6], "sex": list("fmfmfm"), "default": list("010101")})
COLUMNS = {"amount": ColumnSchema("integer"), "sex": ColumnSchema("category", "none")}


def tabled(**arguments):
    """A table, with all that it makes."""
    norm, eps, module, x = (arguments.pop(key) for key in ("norm", "eps", "module", "x"))
    table = make_table(**arguments)
    table.default_threat(norm, eps)
    return table.wrap(module), table.rows(x)


def looked_at(kind, **arguments):
    """A data set of others, and its first two examples."""
    return kind(**arguments).fetch(torch.arange(2))


PARTS = {
    "attack": [hb.attacks.PGD(1)],
    "objective": [None, hb.objectives.AT()],
    "weighting": [None],
    "weight_perturbation": [None],
}
# Each function, and values for its arguments that fit.
CALLS = {
    "pgd": (hb.attacks.pgd, ATTACK | PGD),
    "fgsm": (hb.attacks.fgsm, ATTACK | PGD | {"steps": [1]}),
    "cw": (hb.attacks.cw, ATTACK | PGD),
    "lm_pgd": (hb.attacks.lm_pgd, ATTACK | PGD),
    "friendly_pgd": (hb.attacks.friendly_pgd, ATTACK | {"tau": [0, 2]}),
    "apgd": (hb.attacks.apgd, ATTACK | SEVERAL),
    "fab": (hb.attacks.fab, ATTACK | {"restarts": [1], "targeted": [True, False], "targets": [2]}),
    "square": (hb.attacks.square, ATTACK | {"restarts": [1]}),
    "random_search": (hb.attacks.random_search, ATTACK),
    "transfer": (hb.attacks.transfer, BATCH | {"surrogate": [lambda: nn.Linear(4, 3)], "attack": [hb.attacks.PGD(1)],
    "seed": [0]}),
    "run_attack": (hb.attacks.run_attack, BATCH | {"attack": [hb.attacks.PGD(1), hb.attacks.Square(2)], "seed": [0]}),
    "method": (made, BATCH | PARTS | {
        "attack": [None], "name": ["at", "trades", "mart", "mail-at", "gairat", "MAIL-TRADES", "free-at", "mma",
        "standard", "at+awp"],
        "preset": ["paper", "official"], "seed": [0, 3], "precision": ["model", "tf32"], "compiled": [False], "epoch": [0,
        90, None],
        "index": [None, torch.arange(6)], "class_weights": [None, torch.ones(3)], "rng": [None], "eps_scale": [1.0, 0.5],
    }),
    "hyperparameters": (made, BATCH | {
        "name": ["mail-trades"], "epoch": [0], "index": [None], "class_weights": [None], "rng": [None], "eps_scale": [1.0],
        "steps": [1, 2], "slope": [1.0], "bias": [0.0], "measure": ["pm-adv", "kappa"], "burn_in": [0, "first-drop"],
        "gamma": [0.01],
        "awp_warmup": [0], "beta": [5.0], "direction": ["adv-to-clean"], **{k: v for k, v in PGD.items() if k in ("loss",
        "start", "mode")},
    }),
    "Method": (composed, PARTS | {"threat": [THREAT], "seed": [0], "precision": ["model"], "compiled": [False],
    "burn_in": [None, 0]}),
    "register_method": (hb.register_method, {"name": ["at"], "build": [lambda threat: None]}),
    "train": (trained, BATCH | SET | {
        "method": ["at", "standard", hb.method("trades", THREAT, steps=1)], "epochs": [1], "out": [None], "resume": [False],
        "optimizer": ["", torch.optim.Adam], "scheduler": [""], "augmentation": ["", lambda x: x], "callbacks": [(),
        [lambda row: None]],
        "schedule_preset": ["published", "express", "robust"], "val_set": [None, (X, Y)],
        "extra": [None, (X, Y)], "init": [""],
        "report_every": [1], "device": ["cpu"],
    }),
    "settings": (trained, {"model": [lambda: nn.Linear(4, 3)], "train_set": [(X, Y)], "threat": [THREAT]} | TRAINING),
    "TrainConfig": (TrainConfig, TRAINING | {"optimizer": ["sgd", "adamw"], "callbacks": [()]}),
    "evaluate": (hb.evaluate, {
        "model": BATCH["model"], "test_set": [(X, Y), as_dataset((X, Y))], "threat": [THREAT], "suite": ["quick"],
        "attacks": [["fgsm"], [hb.attacks.PGD(1)], [lambda model, x, y, threat: x]], "sequential": [False, True],
        "n": [None, 2],
        "batch_size": [4], "seed": [0], "precision": ["fp32", "tf32"], "surrogate": [None], "bpda": [None],
        "criterion": [None, hb.attacks.fooled], "loss": [None], "has_reject_class": [False],
        "diagnostics": ["cheap"], "out": [None], "save_adversarials": [False], "quiet": [True],
    }),
    "certify": (hb.certify, {
        "model": BATCH["model"], "test_set": [(X, Y), as_dataset((X, Y))], "threat": [THREAT, hb.L2(0.3), hb.L1(0.5)],
        "methods": [("ibp",), ("crown", "alpha-crown")], "steps": [1, 3], "n": [None, 2], "batch_size": [4], "out": [None],
        "quiet": [True],
    }),
    "certify_smoothed": (hb.certify_smoothed, {
        "model": BATCH["model"], "test_set": [(X, Y), as_dataset((X, Y))], "sigma": [0.25, 1], "draws": [20],
        "selection_draws": [5], "alpha": [0.001, 0.5], "n": [None, 2], "batch_size": [7, 100], "seed": [0],
        "precision": ["fp32", "model"], "out": [None], "quiet": [True],
    }),
    "predict_smoothed": (hb.predict_smoothed, {
        "model": BATCH["model"], "x": [X.clone()], "sigma": [0.25], "draws": [20], "alpha": [0.1], "batch_size": [50],
        "seed": [0],
    }),
    "SmoothAdv": (hb.attacks.SmoothAdv, {"steps": [2], "sigma": [0.1], "draws": [1, 2]}),
    "benchmark": (hb.benchmark, {
        "model": BATCH["model"], "n_examples": [4], "dataset": [(X, Y)], "threat_model": ["Linf", "L2"], "eps": [0.1],
        "batch_size": [4], "data_dir": ["data"], "subset": ["first", "standard"], "suite": ["quick"], "seed": [0],
        "out": [None],
    }),
    "standard_subset": (standard_subset, {"data": [(X, Y)], "n": [3]}),
    "float32_mode": (computed, {"precision": ["model", "fp32", "tf32", "bf16"]}),
    "Linf": (hb.Linf, {"eps": [0.1, "8/255", [0.1] * 4], "low": [0.0], "high": [1.0], "frozen": [None, [1]],
    "monotone": [None, [1] * 4], "one_hot": [None, [0, 0, 1, 1]]}),
    "around": (lambda **a: hb.L2(**a).around(X), {"eps": [0.1], "low": [0], "high": [1], "frozen": [None],
    "monotone": [None], "one_hot": [None]}),
    "load": (hb.load, {"path": ["/nowhere/x.pth"], "model": [None, lambda: nn.Linear(4, 3)], "which": ["best"],
    "device": ["cpu"]}),
    "load_data": (hb.data.load_data, {"name": ["digits"], "split": ["test"], "folder": ["data"], "verify": [True]}),
    "as_dataset": (as_dataset, {"data": [(X, Y)]}),
    "pseudo_label": (pseudo_label, {"model": BATCH["model"], "x": [X, X.numpy()], "least_confidence": [0.0]}),
    "long_tail": (long_tail, {"y": [Y], "ratio": [2.0]}),
    "Subset": (partial(looked_at, Subset), {"dataset": [as_dataset((X, Y))], "indices": [Y + 1]}),
    "ConcatDataset": (partial(looked_at, ConcatDataset), {"datasets": [[as_dataset((X, Y))] * 2]}),
    "MapDataset": (partial(looked_at, MapDataset), {"items": [list(zip(X, Y.tolist(), strict=True))]}),
    "ColumnSchema": (ColumnSchema, {"kind": ["number"], "change": ["any"], "eps": [0.1], "low": [0], "high": [9.0],
    "values": [()]}),
    "TableSchema": (TableSchema, {"features": [COLUMNS], "label": ["default"], "classes": [("0", "1")], "eps": [0.1],
    "train": ["a.csv"], "test": [""], "test_fraction": [0.2], "date": [""], "costs": [(5.0, 1.0)]}),
    "table": (tabled, {"schema": [TableSchema(COLUMNS, "default")], "train": [FRAME], "test": [FRAME], "name": ["table"],
    "norm": ["Linf", "L2"], "eps": [1.0, ""], "module": [lambda: nn.Linear(3, 2)], "x": [X[:, :3]]}),
    "read_table": (read_table, {"path": ["/nowhere/table.toml"]}),
    "at": (hb.objectives.at, LOGITS),
    "standard": (hb.objectives.standard, LOGITS),
    "trades": (hb.objectives.trades, LOGITS | {"direction": ["clean-to-adv"]}),
    "mart": (hb.objectives.mart, LOGITS),
    "alp": (hb.objectives.alp, LOGITS | {"pairing": ["logits", "probabilities"]}),
    "clp": (hb.objectives.clp, LOGITS | {"pairing": ["logits", "probabilities"]}),
    "mma": (hb.objectives.mma, LOGITS | {"within": [None, Y > 0], "clean_share": [0.3]}),
    "adversarial_class": (hb.objectives.adversarial_class, LOGITS),
    "probabilistic_margin": (hb.probabilistic_margin, {"logits": [Z], "y": [Y]}),
    "margin_difference": (hb.weighting.margin_difference, {"logits": [Z], "logits_lps": [Z], "y": [Y]}),
    "mail": (hb.weighting.mail, {"margin": [X[:, 0]], "slope": [10.0], "bias": [-0.5], "preset": ["paper", "official"]}),
    "gairat": (hb.weighting.gairat, {"kappa": [Y], "steps": [10], "lam": [-1.0], "kind": ["tanh", "discrete"]}),
    "Mail": (hb.weighting.Mail, {"slope": [1.0], "bias": [0.0], "measure": ["pm-adv"], "burn_in": [0], "preset": ["paper"]}),
    "Gairat": (hb.weighting.Gairat, {"kind": ["tanh"], "lam": [0.0], "lam_end": [None], "measure": ["kappa"],
    "burn_in": [3]}),
    "Trades": (hb.objectives.Trades, {"beta": [1.0], "direction": ["clean-to-adv"]}),
    "AWP": (hb.AWP, {"gamma": [0.01], "warmup": [0]}),
    "RelativeStep": (hb.attacks.RelativeStep, {"times": [1.0], "over": [4]}),
    "find_suite": (hb.attacks.find_suite, {"suite": ["quick"], "attacks": [[]], "sequential": [False]}),
    "wilson_interval": (wilson_interval, {"successes": [3], "n": [10]}),
    "Experiment": (Experiment, {"method": ["at"], "seed": [0], "settings": [{}], "surrogate": [""], "label": [""]}),
}  # fmt: skip


@st.composite
def calls(draw):
    """A function, and arguments for it: three at most do not fit."""
    name = draw(st.sampled_from(list(CALLS)))
    function, fitting = CALLS[name]
    values = {key: draw(st.sampled_from(some)) for key, some in fitting.items()}
    for key in draw(st.lists(st.sampled_from(list(fitting)), max_size=3, unique=True)):
        values[key] = draw(st.sampled_from((*WRONG, *MADE)))
    return name, function, values


def is_made(value):
    return value in MADE or getattr(value, "__name__", "") in ("clone",) or any(value is one for one in BATCH["model"])


SEEN = Counter()


@settings(
    max_examples=long_or(150, 2000), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(calls())
def test_a_wild_call_works_or_says_in_one_line_what_is_wrong(call):
    name, function, values = call
    arguments = {key: value() if callable(value) and is_made(value) else value for key, value in values.items()}
    with warnings.catch_warnings(), patch.dict(registry._BUILDERS):
        warnings.simplefilter("ignore")
        said = ""
        try:
            function(**arguments)
        except hb.UserError as error:
            said = str(error)
    SEEN["refused" if said else "works"] += 1
    assert "\n" not in said, name
    assert len(said) < 700, name


def test_wild_calls_are_of_both_kinds():
    if SEEN:
        assert min(SEEN["works"], SEEN["refused"]) > sum(SEEN.values()) / 10
