"""A model read as a graph: its operations are watched while it computes one batch, and each is known or refused by name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hauberk.certification.bounds.activations import Round
from hauberk.certification.bounds.graph import Graph
from hauberk.certification.bounds.operations import OPERATIONS, SAME, SHAPE_ONLY, read_batch_norm, read_linear, read_view
from hauberk.certification.bounds.recorder import DTYPES, Recorder, Unknown, shape_of
from hauberk.core.errors import UserError, in_one_line
from hauberk.models import StraightThroughRound


class _Watch(TorchDispatchMode):
    """Watches the operations on what depends on the input; all others make constants."""

    def __init__(self, recorder: Recorder):
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder, self.paused = recorder, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, r = kwargs or {}, self.recorder
        if self.paused or func.overloadpacket in SHAPE_ONLY:
            return func(*args, **kwargs)
        values, name = list(flat((args, kwargs))), str(func.overloadpacket).rpartition(".")[2]
        self.refuse_hidden(name, values)
        if not any(map(r.is_known, values)):
            return r.compute(func, args, kwargs)
        if func in SAME:
            out = func(*args, **kwargs)
            r.alias(out, args[0])
            return out
        return self.handle(OPERATIONS.get(func.overloadpacket), name, func, args, kwargs)

    def refuse_hidden(self, name: str, values: Sequence[Any]) -> None:
        """Refuse to let an operation have a tensor that depends on the input where nobody has seen how."""
        self.paused += 1  # looking at memory is nothing that the model does
        try:
            hidden = any(map(self.recorder.hides, values))
        finally:
            self.paused -= 1
        if hidden:
            what = f"the operation {name.rstrip('_')} takes what depends on the input in a way that cannot be followed"
            raise UserError(f"{self.recorder.layers[-1]} cannot be certified: {what}")

    def handle(self, read: Callable[..., None] | None, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and add what it does to the graph."""
        r = self.recorder
        self.paused += 1
        try:
            if read is read_view and r.known[id(args[0])][1] is None:  # what has no bounds may be moved about, but not used
                result = func(*args, **kwargs)
                r.alias(result, args[0])
                return result
            for value in filter(r.is_known, flat((args, kwargs))):
                r.number(value)  # refuses what has no bounds
            result = func(*args, **kwargs)
            if read is None:
                raise Unknown
            several = isinstance(result, tuple | list)
            r.read(read, result[0] if several else result, *args, **kwargs)
            for other in result[1:] if several else ():  # such as the places of the largest values
                if isinstance(other, Tensor):
                    r.known[id(other)] = other, None
        except Unknown as problem:
            what = str(problem) or "has no bounds"
            raise UserError(f"{r.layers[-1]} cannot be certified: the operation {name.rstrip('_')} {what}") from problem
        finally:
            self.paused -= 1
        return result


class _Whole(TorchFunctionMode):
    """Hands over linear layers and batch normalisations as they are called, before torch takes them apart.

    It hands over, too, what reads or replaces the numbers of a tensor by no operation, which has no bounds.
    """

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, watch = kwargs or {}, self.watch
        if not watch.paused and (func in _WHOLE or func in _UNWATCHED):
            values = list(flat((args, kwargs)))
            watch.refuse_hidden(func.__name__, values)
            if any(map(watch.recorder.is_known, values)):
                return watch.handle(_WHOLE.get(func), func.__name__, func, args, kwargs)
        return func(*args, **kwargs)


def _batch_norm(r: Recorder, out: Tensor, x: Tensor, *rest: Any) -> None:
    read_batch_norm(r, out, x, *rest[:7])  # without the switch of cuDNN


def _round(r: Recorder, out: Tensor, x: Tensor, integers: Sequence[int], groups: Sequence[Sequence[int]]) -> None:
    r.add(Round(r.layers[-1], (r.number(x),), shape_of(x), x.dtype, integers, groups), out)


_WHOLE: dict[Any, Callable[..., None]] = {F.linear: read_linear, torch.batch_norm: _batch_norm}
_UNWATCHED: set[Any] = {
    Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage,
    Tensor.apply_, Tensor.map_, Tensor.map2_, Tensor.data.__set__,  # type: ignore[attr-defined]
}  # fmt: skip


def flat(values: Any) -> Iterator[Any]:
    """Everything in nested lists, tuples and dicts."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, tuple | list | dict):
            yield from flat(value)
        else:
            yield value


@contextmanager
def _named_layers(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Keep track of which layer is at work, and take those as a whole that are known."""
    r = watch.recorder

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        r.layers.append(f"layer {name} ({type(module).__name__})" if name else r.layers[-1])
        watch.paused += isinstance(module, StraightThroughRound)

    def leave(module: nn.Module, inputs: Any, out: Any) -> None:
        if isinstance(module, StraightThroughRound):
            watch.paused -= 1
            if not watch.paused and out is not inputs[0]:
                x = inputs[0]
                r.read(_round, out, x, module.integers, module.groups)
        r.layers.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, i, name=name: enter(name, m, i)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, x: Tensor) -> Graph:
    """Read a model in evaluation mode, lent by ``frozen_model``, as a graph with float64 constants.

    Args:
        model: from inputs (B, ...) to outputs (B, C).
        x: two inputs or more, (B, ...), that differ: what the model computes of them out of sight must not look constant.

    Raises:
        UserError: if it does something that there are no bounds for; the layer and the operation are named.
    """
    x = x.detach().clone()
    for value in (x, *model.parameters(), *model.buffers()):
        if value.is_floating_point() and value.dtype not in DTYPES:
            raise UserError(f"there are certificates for networks in float32 and float64, and not in {value.dtype}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError("a TorchScript model cannot be certified; give the module that it was made of")
    return record(model, Recorder(x), x)


def record(model: nn.Module, recorder: Recorder, x: Tensor) -> Graph:
    """Let a recorder, made for inputs x, watch a model compute them; see :func:`trace`."""
    watch = _Watch(recorder)
    with torch.no_grad(), _named_layers(model, watch), _Whole(watch), watch:
        try:
            out = model(x)
        except UserError:
            raise
        except Exception as error:  # somebody's code may do without torch what nobody can follow
            raise UserError(f"the model cannot be followed: {type(error).__name__}: {in_one_line(error)}") from error
    if not recorder.is_known(out):
        raise UserError("the model's output does not depend on its input by operations that can be followed")
    return Graph(recorder.nodes, recorder.number(out))
