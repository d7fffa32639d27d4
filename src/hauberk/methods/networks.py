"""Further networks of a method: a teacher, and the moving average of the network that is trained."""

import warnings
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hauberk.core.arguments import shown
from hauberk.core.averaging import ExponentialMovingAverage
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.imports import import_object, is_import_path
from hauberk.models.build import model_code, model_id

_PATIENCE = 16  # steps without an update after which it is said that there was none


class _Apart(nn.Module):
    """A network in evaluation mode that moves with what holds it, and is no submodule.

    So it is not among the parameters that an optimiser or ``DistributedDataParallel`` is given, nor in ``state_dict``.
    """

    network: nn.Module | None

    def __init__(self, network: nn.Module | None):
        super().__init__()
        self._hold(network)

    def _hold(self, network: nn.Module | None) -> None:
        vars(self)["network"] = network  # an assignment would make it a submodule

    def _apply(self, fn: Any, recurse: bool = True) -> "_Apart":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.network is not None:
            self.network._apply(fn, recurse)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...), which are taken to the dtype of the network, and it to their device."""
        assert self.network is not None  # made or bound
        own = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        if own is not None and own.device != x.device:
            self.network.to(x.device)
        logits: Tensor = self.network(x if own is None else x.to(own.dtype))
        return logits


class Teacher(_Apart):
    """A frozen copy of a network to learn from: the caller's stays as it is.

    Args:
        network: classifier to logits (B, C).

    Raises:
        UserError: if it cannot be copied.
    """

    network: nn.Module

    def __init__(self, network: nn.Module):
        try:
            frozen = deepcopy(network).eval().requires_grad_(False)
        except Exception as error:  # modules may hold anything
            raise UserError(f"the teacher cannot be copied: {in_one_line(error)}") from error
        super().__init__(frozen)

    @cached_property
    def digest(self) -> str:
        """Its class and digests of its code and its tensors: what a run that learns from it is bound to."""
        return f"{model_code(self.network)}, weights {model_id(self.network)}"


def find_teacher(given: Any) -> nn.Module:
    """Return a network from a module, what makes one, the import path of either, or the folder or file of a trained one.

    Raises:
        UserError: if there is none.
    """
    if isinstance(given, Path) or (isinstance(given, str) and not is_import_path(given)):
        # Training, whose files these are, is built on methods: so its reader is imported when it is needed.
        given = import_object("hauberk.training:load", "teacher")(given)
    elif isinstance(given, str):
        given = import_object(given, "teacher")
    if not isinstance(given, nn.Module) and callable(given):
        try:
            given = given()
        except TypeError as error:
            raise UserError(f"teacher is a function that cannot be called without arguments: {in_one_line(error)}") from error
    if not isinstance(given, nn.Module):
        raise UserError(f"teacher is a network, or the folder or file of a trained one, not {shown(given)}")
    return given


class MovingAverage(_Apart):
    """The moving average of a network in training, made when the network is first seen: ``θ̄ ← d·θ̄ + (1 - d)·θ``.

    It begins with the weights that the network has then, as timm's ``ModelEmaV2``. It is the same in all processes, since the
    network is. Its state can be loaded before it is made.

    Args:
        decay: d, in [0, 1).

    Attributes:
        copies: whether the average is the network itself for now, as before a warm-up.
    """

    def __init__(self, decay: float):
        super().__init__(None)
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay must be at least 0 and below 1, got {decay}")
        self.decay, self.copies = decay, False
        self._followed: list[ExponentialMovingAverage] = []  # one at most; a list, because it is no submodule either
        self._state: dict[str, Any] | None = None  # read before there was a network
        self._seen = 0  # steps since the last update

    def bind(self, model: nn.Module) -> None:
        """Begin with a network, unless that is done; once in each step."""
        if not self._followed:
            made = ExponentialMovingAverage(model, self.decay)
            made.module.eval().requires_grad_(False)
            made.update(model)  # counts, so that the next one averages
            self._followed = [made]
            self._hold(made.module)
            if self._state is not None:
                self._load(self._state)
        self._seen += 1
        if self._seen == _PATIENCE:
            warnings.warn(
                f"the moving average was not updated in {_PATIENCE} steps: call method.after_step(model) after each step "
                "of the optimizer",
                stacklevel=5,
            )

    def after_step(self, model: nn.Module) -> None:
        """Take in the weights and statistics after a step of the optimiser."""
        if self._followed:
            if self.copies:
                self._followed[0].restart()
            self._followed[0].update(model)
            self._seen = 0

    def restart(self, model: nn.Module) -> None:
        """Begin again from the present weights."""
        if self._followed:
            self._followed[0].restart()
            self._followed[0].update(model)

    def fresh(self) -> "MovingAverage":
        """Return the same with nothing averaged."""
        return MovingAverage(self.decay)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``: nothing before the first step."""
        if not self._followed:
            return {} if self._state is None else self._state
        return {"updates": self._followed[0].get_extra_state(), "network": dict(self._followed[0].module.state_dict())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state, at once or when the network is seen."""
        if self._followed and state:
            self._load(state)
        else:
            self._followed, self._state = [], state or None
            self._hold(None)

    def _load(self, state: dict[str, Any]) -> None:
        self._followed[0].module.load_state_dict(state["network"])
        self._followed[0].set_extra_state(int(state["updates"]))
        self._state = None
