"""How a method looks at the model it trains: as it is, or by a faster twin, and in which precision."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.core.errors import UserError
from hauberk.fastpath.compile import Compiled
from hauberk.fastpath.frozen_copy import InferenceCopy, make_inference_copy

Precision: TypeAlias = Literal["model", "fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype | None] = {"model": None, "fp32": None, "bf16": torch.bfloat16}

_SAMPLE = 8  # examples that a twin is tried on


class PrecisionPolicy:
    """What the passes of a method run on.

    Args:
        precision: "model": all passes through the caller's model. "fp32": an attack in evaluation mode looks at a twin with
            BatchNorm folded, the same up to rounding. "bf16": at a twin in bfloat16, and the passes of the loss run under
            autocast; losses are in float32.
        compiled: run the twin by ``torch.compile``.
    """

    def __init__(self, precision: Precision, compiled: bool = False):
        if precision not in get_args(Precision):
            raise UserError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
        if compiled and precision == "model":
            raise UserError("what is compiled is the twin of a model; choose precision fp32 or bf16")
        self.precision = precision
        self.compiled = compiled
        # Saved with a run, because another answer when it goes on would round differently: whether the model has a twin that
        # agrees with it (None before the first look), and the shapes it is compiled for.
        self.agrees: bool | None = None
        self.shapes: list[list[int]] = []
        self._twin: InferenceCopy | None = None
        self._form: nn.Module | None = None  # the twin, compiled or not
        self._of: Callable[[], nn.Module | None] = lambda: None

    @contextmanager
    def attack_model(self, model: nn.Module, x: Tensor, mode: str) -> Iterator[nn.Module]:
        """Lend what an attack should look at: the copy with the model's present weights, where there can be one.

        Args:
            model: being trained.
            x: inputs (B, ...) to try a new twin on.
            mode: of the attack; there are twins for "eval" only.
        """
        twin = None if self.precision == "model" or mode != "eval" else self._fresh(model, x)
        if twin is not None:
            yield twin
            return
        with self.autocast(x):
            yield model

    def autocast(self, x: Tensor) -> AbstractContextManager[object]:
        """Run passes inside the block in lower precision, if that is wanted."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def state_dict(self) -> dict[str, Any]:
        """Return what fixes how passes round."""
        return {"agrees": self.agrees, "shapes": list(self.shapes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.agrees, self.shapes = state["agrees"], state["shapes"]

    def _fresh(self, model: nn.Module, x: Tensor) -> nn.Module | None:
        if self._of() is model:
            if self._twin is not None:
                self._twin.refresh(model)
            return self._form
        dtype = DTYPES[self.precision]
        with frozen_model(model) as view:
            if self.agrees is None:
                with torch.no_grad():
                    view(x)  # checks of a first pass want the whole batch; a twin is tried on few examples, for memory's sake
                form = make_inference_copy(view, x[:_SAMPLE].detach(), dtype)
                self.agrees = isinstance(form, InferenceCopy)
            else:
                form = InferenceCopy(view, dtype) if self.agrees else view
        self._of = weakref.ref(model)
        self._twin = self._form = form if isinstance(form, InferenceCopy) else None
        if self._twin is not None and self.compiled:
            self._form = Compiled(self._twin, self.shapes)
        return self._form
