"""From a kernel written in Numba to object code with one C symbol."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler, registry
from numba.core.compiler import DEFAULT_FLAGS
from numba.core.compiler_lock import global_compiler_lock

from edgerun.kernels.isa import Isa
from edgerun.kernels.ops import Ops


@lru_cache(maxsize=4)
def ops_of(isa: Isa) -> Ops:
    """The vector operations of `isa`, made once."""
    return Ops(isa)


def object_code(build: Callable[[Ops], tuple[Callable[..., Any], Any]], symbol: str, isa: Isa) -> bytes:
    """`build(ops)` gives (Python function, Numba signature); returns an object file that defines `symbol`."""
    function, kind = build(ops_of(isa))
    return link_object(function, kind, symbol)


@global_compiler_lock
def link_object(function: Callable[..., Any], kind: Any, symbol: str) -> bytes:
    """Compile `function` for int64/float scalars and void or int64 results, under the plain C name `symbol`."""
    target = registry.cpu_target
    flags = DEFAULT_FLAGS.copy()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    flags.nrt = False
    flags.error_model = "numpy"
    result = compiler.compile_extra(
        target.typing_context,
        target.target_context,
        function,
        tuple(kind.args),
        kind.return_type,
        flags,
        {},
    )
    library, context = result.library, target.target_context
    wrapper = ir.Module(symbol)
    wrapper.triple = llvm.get_default_triple()
    arguments = [context.get_value_type(t) for t in kind.args]
    inner_type = context.call_conv.get_function_type(result.fndesc.restype, result.fndesc.argtypes)
    inner = ir.Function(wrapper, inner_type, result.fndesc.llvm_func_name)
    void = kind.return_type == types.void
    outer = ir.Function(
        wrapper, ir.FunctionType(ir.VoidType() if void else context.get_value_type(kind.return_type), arguments), symbol
    )
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    _, value = context.call_conv.call_function(
        builder, inner, result.fndesc.restype, result.fndesc.argtypes, outer.args
    )
    if void:
        builder.ret_void()
    else:
        builder.ret(value)
    library.add_ir_module(wrapper)
    library.enable_object_caching()
    library.finalize()
    _, kind_of, (code, _) = library.serialize_using_object_code()
    if kind_of != "object":
        raise RuntimeError(f"Numba gave no object code for {symbol}")
    return bytes(code)
