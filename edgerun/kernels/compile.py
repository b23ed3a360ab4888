"""Compiled once, then loaded: a cache of kernels as machine code.

A kernel is a function (arguments: int64 address, low: int64, high: int64) -> None that does the items [low, high)
of an operation; `arguments` points to int64 slots whose meaning the kernel states. It never raises, allocates
nothing and knows no Python object, so its object file can be kept and linked again by LLVM alone: a later start
compiles nothing and does not even import Numba. (Numba's own cache would: it also unpickles what it finds.)

A cache file is a sha256 of the rest, then the object code. Its name ends in the kernel's key, a digest of everything
that its code depends on: its name and instruction set, this package's sources, the versions of Numba and LLVM, the
processor and its features.

Kernels that different processes compiled, in whatever order, meet in one process, so no name in one object may ever be
found by another. Three things see to it, each enough alone:

- An object shows a single name, its entry (`codegen` makes all else private), and the entry's name holds the kernel's
  own name and key: two kernels' are different, whoever compiled them.
- Each object is linked by an engine of its own, which knows no other object. What it does not find in its object it can
  only look for in the process, where no kernel is.
- What it looks for there is checked before it is linked: an object must define its own entry and nothing else, and may
  ask for functions of the C library in `_LIBRARY` alone.

An object that is damaged or fails the check is dropped with a Notice and compiled anew. Code is read only from files
that nobody but this user and root can have written (`trust`): elsewhere the checksum proves nothing. Where they could
be written by others kernels are compiled in memory at every start, which a Notice says.
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

from edgerun.errors import FormatError, UnsupportedError, UntrustedError
from edgerun.events import EventSink, Notice, Progress, ignore
from edgerun.kernels.formats import BY_NAME
from edgerun.kernels.isa import Isa, host_features
from edgerun.kernels.object_file import read_symbols
from edgerun.paths import kept_folder
from edgerun.trust import Folder

_VERSION = 2  # of what is kept and how; 1: objects that shared names
_DIGEST_BYTES = 32
_MOST_BYTES = 4 << 20  # of a cache file; the largest kernel takes 70 KB

# What code may call: of the C library and of LLVM's runtime, where a processor lacks an instruction.
_LIBRARY = frozenset(
    ["sched_yield", "memcpy", "memmove", "memset", "bzero"]
    + ["fmaf", "nearbyintf", "rintf", "roundf", "floorf", "ceilf", "truncf", "fmaxf", "fminf"]
    + ["__extendhfsf2", "__truncsfhf2", "__gnu_h2f_ieee", "__gnu_f2h_ieee"]  # halves
    + ["_fltused", "__chkstk"]  # Windows: "there are floats", large frames
)
_CONSTANTS = ("__real@", "__xmm@", "__ymm@", "__zmm@")  # Windows: constants shown under names that are their contents

# kernel -> the module whose function makes it: `build_<kernel>(ops)`, or, of those that every format has one of,
# `build_matmul(isa, format)`, `build_pack(isa, format)`
SOURCES = {
    "pool_run": "pool_kernels",
    "pool_work": "pool_kernels",
    "pool_program": "pool_kernels",
    "quantize_q8": "quantize_kernels",
    "quantize_q8k": "quantize_kernels",
    **{f"matmul_{name}": "matmul_driver" for name in BY_NAME},
    **{f"pack_{name}": "pack_kernels" for name in BY_NAME},
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
    """The kernels of one instruction set as callable addresses, good for as long as this object lives. Not thread-safe
    while compiling.

    `events` receives Progress when something must be compiled, a Notice for what is damaged, and one when `directory`
    cannot be trusted."""

    def __init__(self, isa: Isa, directory: Path, events: EventSink = ignore) -> None:
        self._isa = isa
        self._directory = directory
        self._events = events
        self._engines: list[Any] = []  # one an object; they own the code
        self._addresses: dict[str, int] = {}
        self._said = False

    def address(self, name: str) -> int:
        """The kernel's address, compiling it if no start before did."""
        if name not in self._addresses:
            self.prepare([name])
        return self._addresses[name]

    def prepare(self, names: Iterable[str]) -> None:
        """Have all of `names` ready. UnsupportedError for a kernel that cannot be linked on this system."""
        missing = self._load_kept([name for name in names if name not in self._addresses])
        task = "compile kernels" if self._said else "compile kernels (once on this machine)"
        for done, name in enumerate(missing):
            self._events(Progress(task, done, len(missing), "kernels"))
            code = _compile(name, self._isa)
            self._link(name, code)
            self._keep(name, code)
        if missing:
            self._events(Progress(task, len(missing), len(missing), "kernels"))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that no start before this one has compiled, as far as names of files tell."""
        return [name for name in names if not (self._directory / file_name(name, self._isa)).is_file()]

    def _load_kept(self, names: list[str]) -> list[str]:
        """Load what the cache has of `names`; returns the others."""
        if not names:
            return []
        try:
            with kept_folder(self._directory) as folder:
                return [name for name in names if not self._load_from(folder, name)]
        except UntrustedError as error:
            self._distrust(error)
        except OSError:  # no folder yet, or one that cannot be read
            return names
        return names

    def _load_from(self, folder: Folder, name: str) -> bool:
        """Whether it was there; what is there and cannot be used is dropped."""
        file = file_name(name, self._isa)
        try:
            content = folder.read(file, _MOST_BYTES)
            digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if digest != hashlib.sha256(code).digest():
                raise FormatError(f"{folder.path / file}: its checksum is wrong")
            self._link(name, code)
        except (FormatError, UntrustedError) as error:
            self._events(Notice(f"a compiled kernel is dropped from the cache and made anew: {error}"))
            with contextlib.suppress(OSError):  # then it is replaced, or found so again
                folder.remove(file)
            return False
        except OSError:  # not there, or unreadable
            return False
        return True

    def _link(self, name: str, code: bytes) -> None:
        """FormatError, UnsupportedError (one of them) for an object that does not define just what it should."""
        entry = entry_name(name, self._isa)
        engine = _new_engine()  # first: it also makes the process's own functions known
        _check_symbols(code, entry)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._addresses[name] = engine.get_function_address(entry)
        self._engines.append(engine)

    def _keep(self, name: str, code: bytes) -> None:
        """A cache that cannot be written only costs the next start its time."""
        if self._said:
            return
        try:
            with kept_folder(self._directory, make=True) as folder:
                folder.replace(file_name(name, self._isa), [hashlib.sha256(code).digest(), code])
        except UntrustedError as error:
            self._distrust(error)
        except OSError:
            return

    def _distrust(self, error: UntrustedError) -> None:
        if not self._said:
            self._said = True
            self._events(Notice(f"compiled kernels are neither kept nor taken from the cache: {error}"))


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


def entry_name(name: str, isa: Isa) -> str:
    """The one name that a kernel's object shows."""
    return f"edgerun_{name}_{_key(name, isa)}"


def file_name(name: str, isa: Isa) -> str:
    """Of a kernel in the cache."""
    return f"{name}-{isa.name}-{_key(name, isa)}.kernel"


def _key(name: str, isa: Isa) -> str:
    return hashlib.sha256(f"{_VERSION} {name} {isa!r} {machine_stamp()}".encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def machine_stamp() -> str:
    """A digest of all that compiled code depends on, whatever the kernel."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{version('numba')} {version('llvmlite')} {llvm.get_host_cpu_name()}".encode())
    digest.update(repr(sorted(host_features().items())).encode())
    return digest.hexdigest()[:24]


def _new_engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    module = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.remove_module(module)  # else it would be compiled, empty as it is, which takes a millisecond
    return engine


def _compile(name: str, isa: Isa) -> bytes:
    from edgerun.kernels.codegen import object_code

    module = import_module(f"edgerun.kernels.{SOURCES[name]}")
    task, _, format = name.partition("_")
    if format in BY_NAME and hasattr(module, f"build_{task}"):
        return object_code(lambda _: getattr(module, f"build_{task}")(isa, BY_NAME[format]), entry_name(name, isa), isa)
    return object_code(getattr(module, f"build_{name}"), entry_name(name, isa), isa)
