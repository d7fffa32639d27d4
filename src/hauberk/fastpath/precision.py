"""How a method looks at the model it trains: as it is, or by a faster inference copy, and in which precision."""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.core.errors import UserError, first_line
from hauberk.fastpath.frozen_copy import InferenceCopy, make_inference_copy, outputs_match

Precision: TypeAlias = Literal["model", "fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype | None] = {"model": None, "fp32": None, "bf16": torch.bfloat16}

_SAMPLE = 8  # examples that a copy is tried on
_SHAPES = 2  # a full batch, and the last one of an epoch
_COMPILATIONS = 200
_TRIALS = 5
# Times faster, below which it is not worth it: lower precision, and compiling.
_WORTH_ROUNDING, _WORTH_COMPILING = 1.2, 1.05


class Compiled(nn.Module):
    """An inference copy that is compiled for the first shapes it sees; inputs of any other shape take the copy as it is.

    A compilation costs seconds to minutes, so attacks that shrink their batches as examples fall out must not start one for
    each size. On CUDA the passes are captured as graphs.

    Args:
        copy: what to compile; it can be refreshed at any time.
        shapes: of inputs that it is compiled for; grows as they come. A run saves them, because compiled passes round
            differently.
    """

    def __init__(self, copy: InferenceCopy, shapes: list[list[int]] | None = None):
        super().__init__()
        self.copy = copy
        self.shapes = [] if shapes is None else shapes
        self._graphs = next(copy.parameters()).is_cuda
        self._compiled = torch.compile(copy, dynamic=False, mode="reduce-overhead" if self._graphs else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...)."""
        shape = list(x.shape)
        if shape not in self.shapes:
            if len(self.shapes) >= _SHAPES:
                return self.copy(x)  # type: ignore[no-any-return]
            self.shapes.append(shape)
        x = x.contiguous()  # another layout would be compiled for anew
        if not self._graphs:
            return self._run(x)
        # The memory of a captured graph is written over by its next run: what leaves it is copied.
        x = x.view_as(x)
        if x.requires_grad:
            x.register_hook(torch.clone)
        return self._run(x).clone()

    def _run(self, x: Tensor) -> Tensor:
        # torch counts compilations by the code of forward, which all copies in a process share.
        with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
            return self._compiled(x)  # type: ignore[no-any-return]


class PrecisionPolicy:
    """What the passes of a method run on.

    Args:
        precision: "fp32": an attack in evaluation mode looks at an inference copy with BatchNorm folded, the same up to
            rounding. "bf16": at a copy in bfloat16, and the passes of the loss run under autocast; losses are in float32.
        compiled: run the copy by ``torch.compile``.
    """

    def __init__(self, precision: Precision, compiled: bool = False):
        self.precision = precision
        self.compiled = compiled
        # Saved with a run, because another answer when it goes on would round differently: whether the model has a copy that
        # agrees with it (None before the first look), and the shapes it is compiled for.
        self.agrees: bool | None = None
        self.shapes: list[list[int]] = []
        self._copy: InferenceCopy | None = None
        self._form: nn.Module | None = None  # the copy, compiled or not
        self._of: Callable[[], nn.Module | None] = lambda: None  # the model that it is a copy of

    @contextmanager
    def attack_model(self, model: nn.Module, x: Tensor, mode: str) -> Iterator[nn.Module]:
        """Lend what an attack should look at: the copy with the model's present weights, where there can be one.

        Args:
            model: being trained.
            x: inputs (B, ...) to try a new copy on.
            mode: of the attack; there are copies for "eval" only.
        """
        form = self._refreshed(model, x) if mode == "eval" else None
        with self.autocast(x) if form is None else nullcontext():
            yield model if form is None else form

    def autocast(self, x: Tensor) -> AbstractContextManager[object]:
        """Run passes inside the block in lower precision, if that is wanted."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def state_dict(self) -> dict[str, Any]:
        """Return what fixes how passes round."""
        return {"agrees": self.agrees, "shapes": list(self.shapes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.agrees, self.shapes = state["agrees"], state["shapes"]

    def _refreshed(self, model: nn.Module, x: Tensor) -> nn.Module | None:
        if self._of() is model:
            if self._copy is not None:
                self._copy.refresh(model)
            return self._form
        dtype = DTYPES[self.precision]
        with frozen_model(model) as view:
            if self.agrees is None:
                with torch.no_grad():
                    view(x)  # checks of a first pass want the whole batch; a copy is tried on few examples, for memory's sake
                form = make_inference_copy(view, x[:_SAMPLE].detach(), dtype)
                self.agrees = isinstance(form, InferenceCopy)
            else:
                form = InferenceCopy(view, dtype) if self.agrees else view
        self._of = weakref.ref(model)
        self._copy = self._form = form if isinstance(form, InferenceCopy) else None
        if self._copy is not None and self.compiled:
            self._form = Compiled(self._copy, self.shapes)
        return self._form


def make_policy(precision: Precision, compiled: bool) -> PrecisionPolicy | None:
    """Return what the passes of a method run on, None for "model": all through the caller's model.

    Raises:
        UserError: for another precision, and where the model itself should be compiled.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
    if compiled and precision == "model":
        raise UserError("what is compiled is an inference copy of the model; choose precision fp32 or bf16")
    return None if precision == "model" else PrecisionPolicy(precision, compiled)


def autotune_precision(model: nn.Module, x: Tensor, precision: str, compiling: str) -> tuple[Precision, bool]:
    """Return the fastest precision whose inference copy agrees with the model, and whether compiling that copy is worth it.

    Args:
        model: classifier.
        x: inputs (B, ...) of the batch size that counts.
        precision: "fp32" or "bf16" where that is settled, "auto" to measure.
        compiling: "on" or "off" where that is settled, "auto" to measure.

    Raises:
        UserError: if it is "on", and the model or the machine cannot.
    """
    chosen: Precision = "bf16" if precision == "bf16" else "fp32"
    with frozen_model(model) as view:
        if precision == "auto":
            full, low = make_inference_copy(view, x), make_inference_copy(view, x, torch.bfloat16)
            if isinstance(low, InferenceCopy):
                before, after = _seconds((full, low), x)
                chosen = "bf16" if before > _WORTH_ROUNDING * after else "fp32"
        if compiling == "off":
            return chosen, False
        return chosen, _compiles(make_inference_copy(view, x, DTYPES[chosen]), x, needed=compiling == "on")


def _compiles(form: nn.Module, x: Tensor, needed: bool) -> bool:
    """Whether the copy can be compiled, agrees with itself then, and is faster, unless it is ``needed`` anyway."""
    problem = "it has no inference copy that agrees with it (a random model, or one that cannot be traced)"
    if isinstance(form, InferenceCopy):
        try:
            compiled = Compiled(form)
            if outputs_match(form, compiled, x, form.lower):
                if needed:
                    return True
                before, after = _seconds((form, compiled), x)
                return before > _WORTH_COMPILING * after
            problem = "compiled, it computes something else"
        except Exception as error:  # whatever a compiler may say, on any machine
            problem = first_line(error)[:200]
    if needed:
        raise UserError(f"this model cannot be compiled here: {problem}. Use --compile off (compile='off')")
    return False


def _seconds(forms: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Medians of one forward and backward to the input, taken in turns."""
    spent: list[list[float]] = [[] for _ in forms]
    for _ in range(_TRIALS + 1):
        for form, seconds in zip(forms, spent, strict=True):
            begun = time.perf_counter()
            point = x.detach().clone().requires_grad_()
            torch.autograd.grad(form(point).float().logsumexp(1).sum(), point)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - begun)
    return [median(seconds[1:]) for seconds in spent]
