"""A GPU that is none: its tensors compute on the CPU, keep torch's rules for devices, and every launch and wait is counted.

Import this before torch, in a process of its own; ``HAUBERK_SIMULATED_GPU`` names the library that ``build`` makes. Inside
``with SimulatedGpu() as gpu`` tensors can be made on, and moved to, the device "cuda". ``gpu.launches`` counts what would start
something there, ``gpu.waits`` where the host would wait until all that was started has ended: the same places at which
``torch.cuda.set_sync_debug_mode("error")`` raises on a GPU.
"""

import ctypes
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

if LIBRARY := os.environ.get("HAUBERK_SIMULATED_GPU"):
    ctypes.CDLL(LIBRARY)  # before torch looks around for devices, which it does once

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

aten = torch.ops.aten
# Views, and what only allocates.
NO_LAUNCH = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "as_strided_", "detach", "detach_", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "resize_", "select",
    "set_", "slice", "split", "split_with_sizes", "squeeze", "squeeze_", "t", "transpose", "transpose_", "unbind", "unfold",
    "unsqueeze", "unsqueeze_", "view", "view_as_real",
}  # fmt: skip
# The size of what they return depends on the values, which the host has to read.
DATA_SHAPED = {
    "nonzero",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
    "repeat_interleave",
}
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class DeviceMismatch(RuntimeError):
    """What a GPU refuses: tensors of two devices in one operation."""


class CudaTensor(Tensor):
    """A tensor that says it is on the GPU; ``value`` is what it holds, on the CPU."""

    value: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value):
        made = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=CUDA
        )
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the simulated GPU")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                new = self.detach().clone()
            memo[id(self)] = torch.nn.Parameter(new, self.requires_grad) if isinstance(self, torch.nn.Parameter) else new
        return memo[id(self)]

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *more, **how):
        raise DeviceMismatch("a CUDA tensor has no NumPy array")

    __array__ = numpy

    def __repr__(self, **how):
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"


def on_cpu(thing, seen):
    """The CPU tensor that stands for a tensor here, and the CPU for the GPU as a device; notes the tensors in ``seen``."""
    if isinstance(thing, Tensor):
        seen.append(thing)
        return thing.value if isinstance(thing, CudaTensor) else thing
    if isinstance(thing, list | tuple):
        return type(thing)([on_cpu(one, seen) for one in thing])
    return CPU if isinstance(thing, torch.device) and thing.type == "cuda" else thing


def on_gpu(found):
    """What was computed on the CPU, as tensors here."""
    if isinstance(found, Tensor):
        return CudaTensor(found)
    return type(found)([on_gpu(one) for one in found]) if isinstance(found, list | tuple) else found


class SimulatedGpu(TorchDispatchMode):
    """Counts what happens inside the block."""

    def __init__(self):
        super().__init__()
        self.launches: Counter[str] = Counter()  # by operation
        self.waits: Counter[str] = Counter()  # by the place in the code
        self._stack = ExitStack()

    def __enter__(self):
        # Parameters stay the same objects when a module moves, as they do on a GPU; by default they would lose their class.
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
        # torch.tensor(..., device="cuda") then makes its tensor on the CPU and moves it by an operation that is seen here.
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch._C._set_only_lift_cpu_tensors(True)
        for name, answer in answers().items():
            self._stack.enter_context(mock.patch(name, answer))
        return super().__enter__()

    def __exit__(self, *problem):
        super().__exit__(*problem)
        self._stack.close()

    def reset(self):
        self.launches.clear()
        self.waits.clear()

    @property
    def counts(self):
        return sum(self.waits.values()), sum(self.launches.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("is_pinned", "_pin_memory"):
            return name != "is_pinned" and args[0].clone()
        tensors: list[Tensor] = []
        real_args, real_kwargs = on_cpu(args, tensors), {key: on_cpu(one, tensors) for key, one in kwargs.items()}
        there = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        wanted = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not there and wanted != "cuda":
            return func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return CUDA
        if name in ("_to_copy", "copy_"):
            self._note_copy(name, args, kwargs)
        else:
            self._check_devices(name, args, tensors)
            self._note(name, args)
        found = func(*real_args, **real_kwargs)
        if name in READS:
            return found
        if func._schema.is_mutable:  # in place, or into out=
            return self._written(func, args, kwargs, found)
        stays = wanted == "cpu" or (name == "_to_copy" and wanted is None and not there)
        return found if stays else on_gpu(found)

    def _written(self, func, args, kwargs, found):
        """Return the arguments that were written to; what else was made is new."""
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [
            given[a.name]
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in given
        ]
        outputs = func._schema.returns
        if not outputs:
            return None
        aliased = [o.alias_info is not None for o in outputs]
        if len(outputs) == 1:
            return written[0] if aliased[0] else CudaTensor(found)
        turn = iter(written)
        return tuple(next(turn) if is_alias else CudaTensor(one) for is_alias, one in zip(aliased, found, strict=True))

    def _note(self, name, args):
        if name in READS or name in DATA_SHAPED:
            self._wait(name)
        if name in INDEXING:
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self._wait(f"{name} by a mask")
                elif isinstance(index, Tensor) and not isinstance(index, CudaTensor):
                    self._wait(f"{name} by an index on the CPU")
        if name.startswith("_foreach_"):
            self.launches[name] += launches_of_list(args)
        elif name not in NO_LAUNCH and name not in READS:
            self.launches[name] += 1

    def _note_copy(self, name, args, kwargs):
        source = args[1] if name == "copy_" else args[0]
        if name == "copy_":
            target_is_there = isinstance(args[0], CudaTensor)
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            target_is_there = (
                torch.device(kwargs["device"]).type == "cuda" if kwargs.get("device") else isinstance(source, CudaTensor)
            )
            blocking = not kwargs.get("non_blocking", False)
        self.launches[name] += 1
        if target_is_there != isinstance(source, CudaTensor) and blocking:
            self._wait(f"copy of {tuple(source.shape)} {'to' if target_is_there else 'from'} the device")

    def _check_devices(self, name, args, tensors):
        """Torch's rule: tensors of one device, and numbers, which are CPU tensors without dimensions."""
        if name in INDEXING:  # may be indexed from the CPU, at the price of a copy
            here = isinstance(args[0], CudaTensor)
            if not here or (len(args) > 2 and not isinstance(args[2], CudaTensor) and args[2].ndim):
                raise DeviceMismatch(f"{place()}: {name}: a tensor on the CPU met one on the GPU")
            return
        strangers = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor) and tensor.ndim]
        if strangers:
            shapes = [tuple(stranger.shape) for stranger in strangers]
            raise DeviceMismatch(f"{place()}: {name}: tensors of shapes {shapes} on the CPU met others on the GPU")

    def _wait(self, what):
        self.waits[f"{place()}: {what}"] += 1


def launches_of_list(args):
    """One for all tensors of a list, where those of all lists are alike; otherwise torch goes through them one by one."""
    lists = [one for one in args if isinstance(one, list | tuple) and one and isinstance(one[0], Tensor)]
    alike = all(len({(tensor.shape, tensor.stride()) for tensor in row}) == 1 for row in zip(*lists, strict=False))
    return 1 if alike else len(lists[0])


def place():
    """The innermost lines of the package that led here."""
    lines, frame = [], sys._getframe(1)
    while frame is not None and len(lines) < 2:
        file = frame.f_code.co_filename
        if "/hauberk/" in file:
            lines.append(f"{file.split('/hauberk/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "outside of the package"


def answers():
    """What Python asks torch.cuda, answered by one GPU."""
    properties = SimpleNamespace(name="Simulated GPU", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132)
    nothing = {"synchronize", "set_rng_state", "manual_seed", "manual_seed_all", "set_device", "empty_cache", "_lazy_init"}
    nothing |= {"reset_peak_memory_stats", "init"}
    fixed = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_capability": (9, 0),
        "get_device_name": properties.name, "get_device_properties": properties, "is_bf16_supported": True,
        "mem_get_info": (80 << 30, 80 << 30), "max_memory_allocated": 0, "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }  # fmt: skip
    said = dict.fromkeys(nothing) | fixed
    return {f"torch.cuda.{name}": (lambda *args, said=one, **how: said) for name, one in said.items()}


def build(folder: Path) -> Path:
    """Compile the library, in some seconds; needs g++ and torch's own headers, which its wheels bring."""
    root, made = Path(torch.__file__).parent, folder / "libsimulated_gpu.so"
    headers = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
    libraries = [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"]
    compiler = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC"]
    subprocess.run([*compiler, *headers, HERE / "simulated_gpu.cpp", "-o", made, *libraries], check=True)
    return made
