"""Object code into this process: checked, linked by an engine of its own, callable as long as that engine lives.

Code that fails the check is never linked: an object must define its own entry and nothing else, and may ask for
functions of the C library in `_LIBRARY` alone.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm

from edgerun.errors import FormatError, UnsupportedError
from edgerun.kernels.object_file import read_symbols

# What code may call: of the C library and of LLVM's runtime, where a processor lacks an instruction.
_LIBRARY = frozenset(
    ["sched_yield", "clock_gettime", "memcpy", "memmove", "memset", "bzero"]
    + ["fmaf", "nearbyintf", "rintf", "roundf", "floorf", "ceilf", "truncf", "fmaxf", "fminf"]
    + ["__extendhfsf2", "__truncsfhf2", "__gnu_h2f_ieee", "__gnu_f2h_ieee"]  # halves
    + ["_fltused", "__chkstk"]  # Windows: "there are floats", large frames
)
_CONSTANTS = ("__real@", "__xmm@", "__ymm@", "__zmm@")  # Windows: constants shown under names that are their contents


def link(code: bytes, entry: str) -> tuple[Any, int]:
    """The engine, which owns the code, and the address of `entry`. FormatError for an object that does not define
    just what it should, UnsupportedError for one that asks for what this system lacks."""
    engine = new_engine()  # first: it also makes the process's own functions known
    _check_symbols(code, entry)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine, engine.get_function_address(entry)


def new_engine() -> Any:
    """An engine that knows no code yet."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    module = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.remove_module(module)  # else it would be compiled, empty as it is, which takes a millisecond
    return engine


def _check_symbols(code: bytes, entry: str) -> None:
    symbols = read_symbols(code)
    defined = {name for name in symbols.defined if not name.startswith(_CONSTANTS)}
    if defined != {entry}:
        raise FormatError(f"object code that defines {', '.join(sorted(defined)) or 'nothing'} instead of {entry}")
    for name in sorted(symbols.undefined):
        if name not in _LIBRARY:
            raise FormatError(f"object code of {entry} that asks for {name}, which it may not call")
        if llvm.address_of_symbol(name) is None:
            raise UnsupportedError(f"{entry} needs {name}, which this system lacks; use the kernels `reference`")
