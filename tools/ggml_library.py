"""llama.cpp's library of operations, called through ctypes: for `ggml_kernels.py`."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Tensor = int  # its address
_ROOM_BYTES = 1 << 26  # of one graph's tensors
_LINE_BYTES = 64
_TYPES = {"float32": 0, "float16": 1, "int32": 26}
_BASE, _CPU = "libggml-base.so", "libggml-cpu.so"
_POINTER, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int
_ONE = ("silu", "gelu", "relu", "sqr", "tanh", "sigmoid", "softplus", "sqrt", "soft_max")
_TWO = ("mul_mat", "mul", "add", "swiglu_split", "geglu_split", "reglu_split")
_ARGUMENTS: dict[str, list[Any]] = {  # after the context
    **{name: [_POINTER] for name in _ONE},
    **{name: [_POINTER] * 2 for name in _TWO},
    "new_graph": [],
    "new_tensor_4d": [_INT, *[ctypes.c_int64] * 4],
    "mul_mat_id": [_POINTER] * 3,
    "scale": [_POINTER, _FLOAT],
    "rms_norm": [_POINTER, _FLOAT],
    "norm": [_POINTER, _FLOAT],
    "soft_max_ext": [_POINTER, _POINTER, _FLOAT, _FLOAT],
    "swiglu_oai": [_POINTER, _POINTER, _FLOAT, _FLOAT],
    "rope_ext": [_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, *[_FLOAT] * 6],
}


class _Params(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


def library_of(python: str) -> Path:
    """The folder of the libraries that this Python's llama-cpp-python has."""
    code = "import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parent / 'lib')"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


class Ggml:
    """The libraries in `folder`, on one thread."""

    def __init__(self, folder: Path) -> None:
        self._base, self._cpu = (ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in (_BASE, _CPU))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(self._base, f"ggml_{name}")
            function.restype, function.argtypes = _POINTER, [_POINTER, *arguments]
        self._base.ggml_init.restype, self._base.ggml_init.argtypes = _POINTER, [_Params]
        self._base.ggml_free.argtypes = [_POINTER]
        self._base.ggml_get_data.restype, self._base.ggml_get_data.argtypes = _POINTER, [_POINTER]
        self._base.ggml_build_forward_expand.argtypes = [_POINTER, _POINTER]
        self._base.ggml_soft_max_add_sinks.argtypes = [_POINTER, _POINTER]
        self._cpu.ggml_graph_compute_with_ctx.argtypes = [_POINTER, _POINTER, _INT]
        self._cpu.ggml_cpu_init()
        self._memory = np.empty(_ROOM_BYTES + _LINE_BYTES, np.uint8)

    def compute(self, build: Callable[[Graph], Tensor], shape: tuple[int, ...]) -> F32:
        """The f32 tensor that `build` makes, in this shape."""
        address = self._memory.ctypes.data
        context = self._base.ggml_init(_Params(_ROOM_BYTES, address + -address % _LINE_BYTES, False))
        try:
            out = build(Graph(self._base, context))
            graph = self._base.ggml_new_graph(context)
            self._base.ggml_build_forward_expand(graph, out)
            if self._cpu.ggml_graph_compute_with_ctx(context, graph, 1):
                raise RuntimeError("ggml did not compute its graph")
            floats = (ctypes.c_float * math.prod(shape)).from_address(self._base.ggml_get_data(out))
            return np.array(floats, np.float32).reshape(shape)
        finally:
            self._base.ggml_free(context)


class Graph:
    """One computation's tensors: `graph.mul(a, b)` is ggml_mul of two of them."""

    def __init__(self, base: ctypes.CDLL, context: int) -> None:
        self._base, self._context = base, context

    def tensor(self, x: NDArray[Any], type: int | None = None, shape: tuple[int, ...] = ()) -> Tensor:
        """A copy of x; type and shape, in numpy's order, where x is bytes."""
        x = np.ascontiguousarray(x)
        sizes = [*reversed(shape or x.shape), 1, 1, 1][:4]
        number = _TYPES[x.dtype.name] if type is None else type
        made: Tensor = self._base.ggml_new_tensor_4d(self._context, number, *sizes)
        ctypes.memmove(self._base.ggml_get_data(made), x.ctypes.data, x.nbytes)
        return made

    def with_sinks(self, scores: Tensor, sinks: Tensor) -> Tensor:
        """What soft_max_ext made, with one more score of each head."""
        self._base.ggml_soft_max_add_sinks(scores, sinks)
        return scores

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        function = getattr(self._base, f"ggml_{name}")
        return lambda *arguments: int(function(self._context, *arguments))
