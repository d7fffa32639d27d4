"""Training settings by data set, network and method, each with where it comes from. Data only, free of torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from hauberk.core.errors import UserError
from hauberk.training.config import TrainConfig

_NONE: Mapping[str, Any] = MappingProxyType({})
_RESNET = re.compile(r"((?:preact-)?resnet18)(?:-\d+)?(?:-silu)?$")  # of any width and activation


@dataclass(frozen=True)
class Published:
    """Settings that differ from the defaults, and who says so.

    Attributes:
        settings: fields of ``TrainConfig``.
        source: a paper's section, a public code, or "measured here".
        hyperparameters: of the method in the same source, where they differ from its row in the table of methods.
        methods: names of the methods that ``hyperparameters`` is for; empty for every one that the row is found by.
    """

    settings: dict[str, Any]
    source: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()


def _steps(epochs: int, lr: float, weight_decay: float, *milestones: float) -> dict[str, Any]:
    return {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "schedule": "steps", "milestones": milestones}


# FAT's and GAIRAT's scripts halve the rate once more near the end.
_HALVED_LAST = _steps(120, 0.1, 2e-4, 60.0, 90.0, 110.0) | {"decay_rate": (0.1, 0.1, 0.5)}


_MAIL_RESNET = Published(_steps(100, 0.01, 3.5e-3, 75.0, 90.0), "MAIL paper, Section 4.1, for every method it compares")
_MAIL_WRN = Published(_steps(100, 0.1, 7e-4, 75.0, 90.0), "MAIL paper, Section 4.1, for every method it compares")
_RICE = Published(
    _steps(200, 0.1, 5e-4, 101.0, 151.0) | {"augment": "crop-flip-reflect"},
    "robust_overfitting and AT-AWP (Rice 2020, Wu 2020)",
)

# By data set and network; "" stands for any network.
BY_DATA: dict[tuple[str, str], Published] = {
    ("digits", ""): Published({"epochs": 40, "batch_size": 64}, "measured here: about 15 s per method on two CPU cores"),
    ("mnist", ""): Published(
        {"epochs": 8, "eps_warmup": 0.3},
        "measured here: over 93 % PGD-40 accuracy; without ε warm-up the loss stays at log 10",
    ),
    ("fashion-mnist", ""): Published({"epochs": 10, "eps_warmup": 0.3}, "as MNIST"),
    **{(data, "resnet18"): _MAIL_RESNET for data in ("cifar10", "cifar100", "svhn")},
    **{(data, "wrn"): _MAIL_WRN for data in ("cifar10", "cifar100", "svhn")},
    **{(data, "preact-resnet18"): _RICE for data in ("cifar10", "cifar100")},
    ("svhn", "preact-resnet18"): Published(
        _steps(200, 0.01, 5e-4, 101.0, 151.0),
        "AT-AWP (Wu 2020), SVHN: step 1/255 at ε 8/255",
        {"step_size": "eps/8"},
        ("at", "at+awp"),
    ),
}

# What the authors' training scripts use on CIFAR-10, by method and network: taken with preset "official". Epochs count from 1.
OFFICIAL: dict[tuple[str, str], Published] = {
    ("at", "wrn"): Published(
        _steps(205, 0.1, 2e-4, 103.0, 154.0), "cifar10_challenge: 80,000 steps, drops at 40,000 and 60,000"
    ),
    ("fgsm-at", "preact-resnet18"): Published(
        {"epochs": 15, "lr": 0.2, "schedule": "triangular"}, "fast_adversarial: 15 epochs, cyclic rate from 0 to 0.2 and back"
    ),
    ("trades", "wrn"): Published(_steps(76, 0.1, 2e-4, 75.0), "train_trades_cifar10.py, WRN-34-10"),
    ("mart", "resnet18"): Published(_steps(120, 0.01, 3.5e-3, 75.0, 90.0, 100.0), "MART, train_resnet.py"),
    ("mart", "wrn"): Published(_steps(90, 0.1, 7e-4, 75.0, 90.0), "MART, train_wideresnet.py, WRN-34-10", {"beta": 6.0}),
    ("trades+awp", "wrn"): Published(
        _steps(200, 0.1, 5e-4, 100.0, 150.0), "TRADES-AWP, train_trades_cifar.py, WRN-34-10: step 2/255 at ε 8/255"
    ),
    ("fat-trades", "wrn"): Published(_steps(85, 0.1, 2e-4, 75.0), "FAT_for_TRADES.py, WRN-34-10"),
    ("fat-mart", "wrn"): Published(_steps(90, 0.1, 2e-4, 60.0, 90.0), "FAT_for_MART.py, WRN-34-10"),
    ("fat", "wrn"): Published(_HALVED_LAST, "FAT.py, WRN-32-10"),
    ("gairat", "wrn"): Published(_HALVED_LAST, "GAIRAT.py, WRN-32-10: drops at 1/2, 3/4 and 11/12"),
    **{
        (name, "resnet18"): Published(_steps(120, 0.01, 3.5e-3, 76.0, 91.0, 101.0), "MAIL, train.py: 0-based 75, 90, 100")
        for name in ("mail-at", "mail-trades", "mail-mart")
    },
    # --swa, whose average the script gives statistics of BatchNorm by a pass over the training data.
    ("arow", "resnet18"): Published(
        _steps(120, 0.1, 5e-4, 61.0, 101.0) | {"swa_start": 51.0}, "ARoW, main.py --swa --model resnet18 --lamb 7 --ls 0.2"
    ),
    **{
        key: Published(
            _steps(200, 0.1, 5e-4, 101.0, 151.0) | ({} if "+awp" in key[0] else {"nesterov": True}),
            "ADR, config/cifar10; what it calls WA is ema=0.995",
        )
        for key in (
            *((name, "resnet18") for name in ("at+adr", "trades+adr", "at+adr+awp", "trades+adr+awp")),
            *((name, "wrn") for name in ("at+adr", "at+adr+awp")),
        )
    },
    ("rebat", "preact-resnet18"): Published(
        _steps(200, 0.1, 5e-4, 101.0, 151.0) | {"decay_rate": 1 / 1.5, "ema": 0.999, "augment": "crop-flip-reflect"},
        "ReBAT, train_cifar_wa.py --lr-factor 1.5: the average follows from epoch 106 on",
    ),
    # The rate falls once an epoch there, and so does ε grow.
    **{
        (name, "wrn"): Published(
            {"epochs": 200, "lr": 0.2, "weight_decay": 5e-4, "schedule": "cosine", "eps_warmup": 1.0},
            "DKL, train_dkl_cifar10.sh, WRN-34-10, without the average of its weights",
        )
        for name in ("ikl+awp", "gkl+awp")
    },
    ("n-fgsm", "preact-resnet18"): Published(
        {"epochs": 30, "lr": 0.2, "weight_decay": 5e-4, "schedule": "triangular"},
        "N-FGSM, train.py: 30 epochs, cyclic rate from 0 to 0.2 and back",
    ),
    **{
        (name, "preact-resnet18"): Published(
            _steps(200, 0.1, 5e-4, 101.0, 151.0) | {"augment": "crop-flip-reflect", "fawa": 0.88, "fawa_threshold": threshold},
            source,
        )
        for name, threshold, source in (
            ("cfa-at", 0.2, "CFA, README: train.py --mode AT --ccm --threshold 0.2"),
            ("cfa-trades", 0.24, "CFA, train.py --mode TRADES --ccm --ccr"),
        )
    },
    **{
        (name, "resnet18"): Published(
            _steps(110, 0.1, 5e-4, 100.0, 105.0) | {"nesterov": True},
            f"DAFA, train.py --model resnet --loss {loss}: rates of its bag_of_tricks",
        )
        for name, loss in (("dafa-at", "pgd"), ("dafa-trades", "trades"))
    },
    **{
        (f"frl-{form}", "preact-resnet18"): Published(
            _steps(120, 0.001, 5e-4, 41.0, 81.0), f"FRL, frl{form}.py, which begins with a robust network: give init="
        )
        for form in ("rw", "rm", "rmrw")
    },
}


# What a method needs of the training on any data, where the data's own settings do not say it.
BY_METHOD: dict[str, Published] = {
    name: Published({"eps_warmup": 0.5}, "ε grows over half of the training (SABR's public code, CIFAR-10)")
    for name in ("ibp", "crown-ibp", "sabr")
}

_ONE_CYCLE = {"lr": 0.1, "weight_decay": 5e-4, "schedule": "one-cycle", "ema": -1.0, "precision": "auto"}
_EXPRESS = Published({"epochs": 40, **_ONE_CYCLE}, "the schedule preset express, measured in docs/performance.md")
_ROBUST = Published(
    {"epochs": 200, **_ONE_CYCLE, "nesterov": True},
    "the schedule preset robust, of the literature: docs/performance.md says what of it is measured here",
    {"label_smoothing": 0.1},
    ("at", "at+awp", "trades", "trades+awp"),
)
_IDBH = {"cifar10": "idbh-weak", "cifar100": "idbh-weak", "svhn": "idbh-svhn"}

# In place of what is published, by name and data set; "" stands for any data set.
SCHEDULE_PRESETS: dict[str, dict[str, Published]] = {
    "published": {},
    "express": {"": _EXPRESS},  # the least time to the robust accuracy of 100 epochs
    "robust": {"": _ROBUST}  # a long training of a large network
    | {data: replace(_ROBUST, settings=_ROBUST.settings | {"augment": augment}) for data, augment in _IDBH.items()},
}


@dataclass(frozen=True)
class Resolved:
    """How a network is trained: as was asked for, and as is published where nothing was asked for.

    Attributes:
        settings: fields of ``TrainConfig``; it has the defaults of the others.
        hyperparameters: of the method; its row in the table of methods has the others.
        source: where the published ones come from.
        added: the published hyperparameters among them.
    """

    settings: dict[str, Any]
    hyperparameters: dict[str, Any]
    source: str
    added: dict[str, Any]

    @property
    def config(self) -> TrainConfig:
        """All settings of the training loop."""
        return TrainConfig(**self.settings)

    def __str__(self) -> str:
        added = ", ".join(f"{key} {value}" for key, value in self.added.items())
        return f"{self.source}; of the method: {added}" if added else self.source


def find_schedule_preset(name: str, data: str) -> Published | None:
    """Return what a schedule preset has in place of what is published for the data set; None for "published".

    Raises:
        UserError: for an unknown name.
    """
    if name not in SCHEDULE_PRESETS:
        raise UserError(f"schedule_preset is one of {', '.join(SCHEDULE_PRESETS)}, not {name!r}")
    presets = SCHEDULE_PRESETS[name]
    return presets.get(data) or presets.get("")


def resolve(
    data: str,
    model: str,
    method: str = "",
    *,
    preset: str = "paper",
    schedule_preset: str = "published",
    settings: Mapping[str, Any] = _NONE,
    hyperparameters: Mapping[str, Any] = _NONE,
) -> Resolved:
    """Complete what was asked for by what is published. All that trains, or shows how it would be trained, asks here.

    Args:
        data: name of the data set.
        model: name of the network.
        method: name of the method, perhaps with ``+awp``.
        preset: "paper", "official", or a further one of the method, for which the training is that of "paper".
        schedule_preset: where settings of the training come from: "published", "express" for a short training, or "robust"
            for a long one.
        settings: fields of ``TrainConfig`` that were asked for; they win.
        hyperparameters: of the method, likewise.

    Raises:
        UserError: for an unknown schedule preset.
    """
    family = "wrn" if model.startswith("wrn-") else _RESNET.sub(r"\1", model)
    nothing = Published({}, "the usual ones of hauberk train (--help shows them)")
    found = BY_DATA.get((data, family)) or BY_DATA.get((data, "")) or nothing
    if chosen := find_schedule_preset(schedule_preset, data):
        found = replace(chosen, settings=found.settings | chosen.settings)
    elif preset == "official" and data == "cifar10":
        found = OFFICIAL.get((method, family), found)
    wanted = BY_METHOD.get(method.partition("+")[0], nothing)
    missing = {key: value for key, value in wanted.settings.items() if key not in found.settings}
    if missing:
        found = replace(found, settings=found.settings | missing, source=f"{found.source}; {wanted.source}")
    own = {} if found.methods and method not in found.methods else found.hyperparameters
    added = {key: value for key, value in own.items() if key not in hyperparameters}
    return Resolved({**found.settings, **settings}, {**added, **hyperparameters}, found.source, added)
