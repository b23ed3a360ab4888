"""Compiled once, then loaded: a cache of kernels as machine code.

A kernel is a function (arguments: int64 address, low: int64, high: int64) -> None that does the items [low, high)
of an operation; `arguments` points to int64 slots whose meaning the kernel states. It never raises, allocates
nothing and knows no Python object, so its object file can be kept and linked again by LLVM alone: a later start
compiles nothing and does not even import Numba. (Numba's own cache would: it also unpickles what it finds.)

A cache file is a sha256 of the rest, then the object code. Its name holds a digest of everything that it depends
on: this package's sources, the versions of Numba and LLVM, the processor and its features.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from edgerun.events import EventSink, Progress
from edgerun.kernels.isa import Isa, host_features
from edgerun.paths import replace_file

SYMBOL = "edgerun_kernel"

# kernel -> the module whose function `build_<kernel>(ops)` makes it
SOURCES = {
    "pool_run": "pool_kernels",
    "pool_work": "pool_kernels",
    "pool_program": "pool_kernels",
    "quantize_q8": "quantize_kernels",
    "quantize_q8k": "quantize_kernels",
    "matmul_q4_0": "legacy_kernels",
    "matmul_q8_0": "legacy_kernels",
    "matmul_q4_k": "k_kernels",
    "matmul_q5_k": "k_kernels",
    "matmul_q6_k": "k_kernels",
    "matmul_f32": "float_kernels",
    "matmul_f16": "float_kernels",
    "matmul_bf16": "float_kernels",
    **{f"pack_{name}": "pack_kernels" for name in ("f32", "f16", "q4_0", "q8_0", "q4_k", "q5_k", "q6_k")},
    "rms_norm": "layer_kernels",
    "rope": "layer_kernels",
    "kv_write": "layer_kernels",
    "gated": "layer_kernels",
    "combine": "layer_kernels",
    "add": "layer_kernels",
    **{f"neurons_{way}_{name}": "neuron_kernels" for way in ("up", "down") for name in ("f32", "f16", "q8_0", "q4_0")},
    "attention_decode": "attention_kernels",
    "attention_merge": "attention_kernels",
    "attention_prompt": "attention_kernels",
}


class KernelCache:
    """The kernels of one instruction set as callable addresses. Not thread-safe while compiling."""

    def __init__(self, isa: Isa, directory: Path) -> None:
        self._isa = isa
        self._directory = directory
        self._engines: list[Any] = []  # one an object, so that no symbol of one is seen by another
        self._addresses: dict[str, int] = {}

    def address(self, name: str) -> int:
        """The kernel's address, compiling it if no start before did."""
        if name not in self._addresses:
            self._load(name)
        return self._addresses[name]

    def prepare(self, names: Iterable[str], events: EventSink) -> None:
        """Have all of `names` ready. Emits Progress only when something must be compiled."""
        wanted = [name for name in names if name not in self._addresses]
        missing = self.missing(wanted)
        for done, name in enumerate(missing):
            events(Progress("compile kernels (once on this machine)", done, len(missing), "kernels"))
            self._load(name)
        if missing:
            events(Progress("compile kernels (once on this machine)", len(missing), len(missing), "kernels"))
        for name in wanted:
            self.address(name)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that no start before this one has compiled."""
        return [name for name in names if _read(self._path(name)) is None]

    def _load(self, name: str) -> None:
        code = _read(self._path(name))
        if code is None:
            code = _compile(name, self._isa)
            _write(self._path(name), code)
        symbol = f"{SYMBOL}_{name}"
        engine = _new_engine()
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._engines.append(engine)
        self._addresses[name] = engine.get_function_address(symbol)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}-{self._isa.name}-{machine_stamp()}.kernel"


@lru_cache(maxsize=1)
def machine_stamp() -> str:
    """A digest of all that compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{version('numba')} {version('llvmlite')} {llvm.get_host_cpu_name()}".encode())
    digest.update(repr(sorted(host_features().items())).encode())
    return digest.hexdigest()[:24]


def _new_engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _compile(name: str, isa: Isa) -> bytes:
    from edgerun.kernels.codegen import object_code

    module = import_module(f"edgerun.kernels.{SOURCES[name]}")
    return object_code(getattr(module, f"build_{name}"), f"{SYMBOL}_{name}", isa)


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code = content[32:]
    return code if content[:32] == hashlib.sha256(code).digest() else None  # damaged: compile again


def _write(path: Path, code: bytes) -> None:
    """Atomically; a cache that cannot be written only costs the next start its time."""
    with contextlib.suppress(OSError):
        replace_file(path, [hashlib.sha256(code).digest(), code])
