"""How a method looks at the model it trains: as it is, or by a faster twin, and in which precision."""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from hauberk.attacks.twin import Twin, faster
from hauberk.attacks.view import attack_view
from hauberk.errors import UserError

Precision: TypeAlias = Literal["model", "fp32", "bf16"]

_SAMPLE = 8  # examples that a twin is tried on
_TRIALS = 5
_WORTH = 1.2  # times faster, below which lower precision is not worth it


class Sight:
    """What the passes of a method run on.

    Args:
        precision: "model": all passes through the caller's model. "fp32": an attack in evaluation mode looks at a twin with
            BatchNorm folded, the same up to rounding. "bf16": at a twin in bfloat16, and the passes of the loss run under
            autocast; losses are in float32.

    Attributes:
        agrees: whether the model has a twin that agrees with it; None before the first look. Saved with a run, because another
            answer when it goes on would round differently.
    """

    def __init__(self, precision: Precision):
        if precision not in get_args(Precision):
            raise UserError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
        self.precision = precision
        self.agrees: bool | None = None
        self._twin: Twin | None = None
        self._of: Callable[[], nn.Module | None] = lambda: None

    @contextmanager
    def on(self, model: nn.Module, x: Tensor, mode: str) -> Iterator[nn.Module]:
        """Lend what an attack should look at: the twin with the model's present weights, where there can be one.

        Args:
            model: being trained.
            x: inputs (B, ...) to try a new twin on.
            mode: of the attack; there are twins for "eval" only.
        """
        twin = None if self.precision == "model" or mode != "eval" else self._fresh(model, x)
        if twin is not None:
            yield twin
            return
        with self.lowered(x):
            yield model

    def lowered(self, x: Tensor) -> AbstractContextManager[object]:
        """Run passes inside the block in lower precision, if that is wanted."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _fresh(self, model: nn.Module, x: Tensor) -> Twin | None:
        if self._of() is model:
            if self._twin is not None:
                self._twin.refresh(model)
            return self._twin
        dtype = torch.bfloat16 if self.precision == "bf16" else None
        with attack_view(model) as view:
            if self.agrees is None:
                with torch.no_grad():
                    view(x)  # checks of a first pass want the whole batch; a twin is tried on few examples, for memory's sake
                form = faster(view, x[:_SAMPLE].detach(), dtype)
                self.agrees = isinstance(form, Twin)
            else:
                form = Twin(view, dtype) if self.agrees else view
        self._twin, self._of = form if isinstance(form, Twin) else None, weakref.ref(model)
        return self._twin


def pick_precision(model: nn.Module, x: Tensor) -> Precision:
    """Return "bf16" if a twin in bfloat16 agrees with the model and is worth it here, by measuring; otherwise "fp32".

    Args:
        model: classifier.
        x: inputs (B, ...) of the batch size that counts.
    """
    with attack_view(model) as view:
        forms = [faster(view, x, dtype) for dtype in (None, torch.bfloat16)]
        if not isinstance(forms[1], Twin):
            return "fp32"
        seconds: list[list[float]] = [[], []]
        for _ in range(_TRIALS + 1):
            for form, spent in zip(forms, seconds, strict=True):
                spent.append(_seconds(form, x))
    full, low = (median(spent[1:]) for spent in seconds)
    return "bf16" if full > _WORTH * low else "fp32"


def _seconds(form: nn.Module, x: Tensor) -> float:
    """Of one forward and backward to the input."""
    begun = time.perf_counter()
    point = x.detach().clone().requires_grad_()
    torch.autograd.grad(form(point).float().logsumexp(1).sum(), point)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun
