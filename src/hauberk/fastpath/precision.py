"""How a method looks at the model it trains: as it is, or by a faster inference copy, and in which precision."""

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.core.errors import UserError, first_line
from hauberk.core.numerics import Precision, float32_mode
from hauberk.fastpath.frozen_copy import DTYPES, InferenceCopy, make_inference_copy, outputs_match

_SAMPLE = 8  # examples that a copy is tried on
_SHAPES = 2
_COMPILATIONS = 200
_TRIALS = 5
# Times faster, below which it is not worth it: lower precision, and compiling.
_WORTH_ROUNDING, _WORTH_COMPILING = 1.2, 1.05


class Compiled(nn.Module):
    """An inference copy that is compiled for the first shapes it sees.

    A compilation costs seconds to a minute, and passes without gradients take one of their own. So the last batch of an epoch,
    and those that shrink as examples fall out, start none: batches of at least half the rows of a shape that is compiled are
    filled up to it, as rows do not see each other in evaluation mode; all others take the copy as it is. On CUDA the passes are
    captured as graphs.

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
        self._done: set[tuple[Any, ...]] = set()  # shapes that are compiled, with and without gradients

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs (B, ...)."""
        rows, shape = len(x), self._shape_for(list(x.shape))
        if shape is None:
            return self.copy(x)  # type: ignore[no-any-return]
        if missing := shape[0] - rows:
            x = torch.cat([x, x[:1].detach().expand(missing, *x.shape[1:])])
        x = x.contiguous()  # another layout would be compiled for anew
        if not self._graphs:
            return self._run(x)[:rows]
        # The memory of a captured graph is written over by its next run: what leaves it is copied.
        x = x.view_as(x)
        if x.requires_grad:
            x.register_hook(torch.clone)
        return self._run(x)[:rows].clone()

    def begin(self) -> None:
        """Begin an attack: a pass of an earlier one that nobody went back through, after an exception, is forgotten."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def _shape_for(self, shape: list[int]) -> list[int] | None:
        """Return the compiled shape that inputs of a shape run in, None for none."""
        larger = [known for known in self.shapes if known[1:] == shape[1:] and known[0] >= shape[0]]
        if larger:
            nearest = min(larger)
            return nearest if 2 * shape[0] >= nearest[0] else None
        if len(self.shapes) >= _SHAPES:
            return None
        self.shapes.append(shape)
        return shape

    def _run(self, x: Tensor) -> Tensor:
        kind = x.shape, x.requires_grad and torch.is_grad_enabled()
        if kind in self._done:
            return self._compiled(x)  # type: ignore[no-any-return]
        # torch counts compilations by the code of forward, which all copies in a process share.
        with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
            logits: Tensor = self._compiled(x)
        self._done.add(kind)
        return logits


class PrecisionPolicy:
    """What the passes of a method run on.

    Args:
        precision: "fp32": an attack in evaluation mode looks at an inference copy with BatchNorm folded, the same up to
            rounding. "tf32": likewise, and all passes may compute float32 in TF32 (CUDA only). "bf16": at a copy in bfloat16,
            and the passes of the loss run under autocast; losses are in float32.
        compiled: run the copy by ``torch.compile``.
    """

    def __init__(self, precision: Precision, compiled: bool = False):
        self.precision = precision
        self.compiled = compiled
        # Saved with a run, because another answer when it goes on would round differently: whether the model has a copy that
        # agrees with it (None before the first look), and the shapes it is compiled for.
        self.agrees: bool | None = None
        self.shapes: list[list[int]] = []
        self._form: InferenceCopy | Compiled | None = None
        self._of: list[weakref.ref[nn.Module]] = []  # the models that it is a copy of
        self._alike: list[weakref.ref[nn.Module]] = []

    def share(self, *models: nn.Module) -> None:
        """Let models of the same code and shapes (a network and its moving average) take turns with one copy."""
        self._alike = [weakref.ref(model) for model in models]
        if any(_is_among(model, self._of) for model in models):
            self._of = self._alike

    @contextmanager
    def attack_model(self, model: nn.Module, x: Tensor, mode: str) -> Iterator[nn.Module]:
        """Lend what an attack should look at: the copy with the model's present weights, where there can be one.

        Args:
            model: being trained.
            x: inputs (B, ...) to try a new copy on.
            mode: of the attack; there are copies for "eval" only.
        """
        form = self._refreshed(model, x) if mode == "eval" else None
        with float32_mode(self.precision), self.autocast(x) if form is None else nullcontext():
            if isinstance(form, Compiled):
                form.begin()
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

    def release(self) -> None:
        """Let go of the copy, and of all that is compiled in this process, which is otherwise kept with its CUDA graphs."""
        if isinstance(self._form, Compiled):
            torch.compiler.reset()
        self._form, self._of = None, []

    def hold(self, model: nn.Module, form: nn.Module) -> None:
        """Take what a model's attacks run on: its copy, or anything else for the model itself."""
        self.agrees = isinstance(form, InferenceCopy | Compiled)
        self._form = form if isinstance(form, InferenceCopy | Compiled) else None
        self._of = self._alike if _is_among(model, self._alike) else [weakref.ref(model)]

    def _refreshed(self, model: nn.Module, x: Tensor) -> nn.Module | None:
        if _is_among(model, self._of):
            if self._form is not None:
                (self._form.copy if isinstance(self._form, Compiled) else self._form).refresh(model)
            return self._form
        self.release()
        with frozen_model(model) as view:
            if self.agrees is None:
                with torch.no_grad():
                    view(x)  # checks of a first pass want the whole batch; a copy is tried on few examples, for memory's sake
                form = make_inference_copy(view, x[:_SAMPLE].detach(), self.precision)
            else:
                form = InferenceCopy(view, DTYPES[self.precision]) if self.agrees else view
        self.hold(model, Compiled(form, self.shapes) if self.compiled and isinstance(form, InferenceCopy) else form)
        return self._form


def _is_among(model: nn.Module, those: Sequence[weakref.ref[nn.Module]]) -> bool:
    return any(one() is model for one in those)


def make_policy(precision: Precision, compiled: bool) -> PrecisionPolicy | None:
    """Return what the passes of a method run on, None for "model": all through the caller's model.

    Raises:
        UserError: for another precision, and where the model itself should be compiled.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
    if compiled and precision == "model":
        raise UserError("what is compiled is an inference copy of the model; choose precision fp32, tf32 or bf16")
    return None if precision == "model" else PrecisionPolicy(precision, compiled)


def autotune_precision(model: nn.Module, x: Tensor, precision: str, compiling: str) -> PrecisionPolicy:
    """Return the fastest precision whose inference copy agrees with the model, compiled where that is worth it.

    Args:
        model: classifier.
        x: inputs (B, ...) of the batch size that counts.
        precision: "fp32", "tf32" or "bf16" where that is settled, "auto" to measure; "tf32" on CUDA only.
        compiling: "on" or "off" where that is settled, "auto" to measure.

    Returns:
        What attacks on the model run on, which is not compiled a second time.

    Raises:
        UserError: if it is "on", and the model or the machine cannot.
    """
    settled = next((name for name in get_args(Precision) if name == precision), None)
    with frozen_model(model) as view:
        chosen: Precision = settled or "fp32"
        form = make_inference_copy(view, x, chosen)
        for lower in () if settled else _lower_precisions(x):
            other = make_inference_copy(view, x, lower)
            if isinstance(other, InferenceCopy):
                before, after = _seconds([(chosen, form), (lower, other)], x)
                chosen, form = (lower, other) if before > _WORTH_ROUNDING * after else (chosen, form)
        policy = PrecisionPolicy(chosen)
        if compiling != "off":
            compiled = _compile(form, x, policy, needed=compiling == "on")
            policy.compiled, form = compiled is not None, compiled or form
    policy.hold(model, form)
    return policy


def _lower_precisions(x: Tensor) -> tuple[Precision, ...]:
    return ("tf32", "bf16") if x.device.type == "cuda" else ("bf16",)


def _compile(form: nn.Module, x: Tensor, policy: PrecisionPolicy, needed: bool) -> Compiled | None:
    """Compile a copy, if it can be, agrees with itself then, and is faster, unless it is ``needed`` anyway; otherwise None."""
    problem = "it has no inference copy that agrees with it (a random model, or one that cannot be traced)"
    if isinstance(form, InferenceCopy):
        try:
            compiled = Compiled(form, policy.shapes)
            if outputs_match(form, compiled, x, policy.precision):
                if needed:
                    return compiled
                before, after = _seconds([(policy.precision, form), (policy.precision, compiled)], x)
                if before > _WORTH_COMPILING * after:
                    return compiled
            problem = "compiled, it computes something else"
        except Exception as error:  # whatever a compiler may say, on any machine
            problem = first_line(error)[:200]
        torch.compiler.reset()  # graphs would be kept
        policy.shapes.clear()
    if needed:
        raise UserError(f"this model cannot be compiled here: {problem}. Use --compile off (compile='off')")
    return None


def _seconds(forms: Sequence[tuple[Precision, nn.Module]], x: Tensor) -> list[float]:
    """Medians of one forward and backward to the input in the precision of each form, taken in turns."""
    spent: list[list[float]] = [[] for _ in forms]
    for _ in range(_TRIALS + 1):
        for (precision, form), seconds in zip(forms, spent, strict=True):
            with float32_mode(precision):
                begun = time.perf_counter()
                point = x.detach().clone().requires_grad_()
                torch.autograd.grad(form(point).float().logsumexp(1).sum(), point)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                seconds.append(time.perf_counter() - begun)
    return [median(seconds[1:]) for seconds in spent]
