"""From a kernel written in Numba to object code with one C symbol.

Numba leaves behind what it called under mangled names that other modules may use, as weak symbols where a helper was
not inlined. Two such names can be equal while what they name differs: they are numbered anew in every process. So all
of a kernel is one module here, in which everything but the entry becomes private: its object file has one name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler
from numba.core.compiler import DEFAULT_FLAGS
from numba.core.compiler_lock import global_compiler_lock

from edgerun.kernels.isa import Isa
from edgerun.kernels.numba_target import KernelCompiler, Machine, host_machine, kernel_target, optimised
from edgerun.kernels.ops import Ops


@lru_cache(maxsize=4)
def ops_of(isa: Isa) -> Ops:
    """The vector operations of `isa`, made once."""
    return Ops(isa)


def object_code(
    build: Callable[[Ops], tuple[Callable[..., Any], Any]], symbol: str, isa: Isa, machine: Machine | None = None
) -> bytes:
    """`build(ops)` gives (Python function, Numba signature); returns an object file that defines `symbol`, for
    `machine` (default: this one)."""
    function, kind = build(ops_of(isa))
    return link_object(function, kind, symbol, machine)


@global_compiler_lock
def link_object(function: Callable[..., Any], kind: Any, symbol: str, machine: Machine | None = None) -> bytes:
    """Compile `function` for int64/float scalars and void or int64 results, under the plain C name `symbol`."""
    machine = machine or host_machine()
    target = kernel_target(machine)
    target.adopt(function)
    flags = DEFAULT_FLAGS.copy()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    flags.nrt = False
    flags.error_model = "numpy"
    with target.compiling():
        result = compiler.compile_extra(
            target.typing_context,
            target.target_context,
            function,
            tuple(kind.args),
            kind.return_type,
            flags,
            {},
            pipeline_class=KernelCompiler,
        )
    library, context = result.library, target.target_context
    wrapper = ir.Module(symbol)
    wrapper.triple = machine.triple
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
    library.finalize()
    if library.has_dynamic_globals:
        raise RuntimeError(f"{symbol} holds addresses of this process, and is to be kept for others")
    _, _, bitcode = library.serialize_using_bitcode()
    return _alone(llvm.parse_bitcode(bitcode), symbol, library.codegen._tm)


def _alone(module: Any, symbol: str, machine: Any) -> bytes:
    """Object code of a module that shows `symbol` and nothing else."""
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != symbol:
            each.linkage = "private"
    optimised(module, machine)
    return bytes(machine.emit_object(module))
