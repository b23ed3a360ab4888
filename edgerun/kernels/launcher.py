"""The one way to run a kernel: its arguments are laid out in memory, then all threads do its items.

A launch can be noted as well (`Launcher.record`), to be replayed as part of a `Program`.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgerun.errors import UnsupportedError, UsageError
from edgerun.kernels.abi import LIST_AT, PRODUCT_BYTES, Arguments, Product, Products, packed
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.launch_trace import LaunchTrace
from edgerun.kernels.memory import address
from edgerun.kernels.pool import ThreadPool
from edgerun.kernels.program import Launch, Program, Recorder

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_PACK_INTO = [struct.Struct(f"{count}q").pack_into for count in range(24)]  # of so many arguments
_ARGUMENTS_BYTES = 1 << 16  # to begin with: 511 products


class Launcher:
    """Kernels by name, on `threads` threads. One launch at a time: callers take turns.

    lock: held by a launch, and by who needs several without others between. Reentrant.
    """

    def __init__(self, cache: KernelCache, threads: int) -> None:
        self.lock = threading.RLock()
        self.threads = threads
        self._cache = cache
        self._pool = ThreadPool(
            threads, cache.address("pool_run"), cache.address("pool_work"), cache.address("pool_program"), cache
        )
        self._functions: dict[str, Any] = {}
        self._arguments = _argument_memory(_ARGUMENTS_BYTES)
        self._recorder: Recorder | None = None
        self._trace: LaunchTrace | None = None

    def launch(self, name: str, arguments: Arguments, items: int, grain: int, listed: Sequence[Arguments] = ()) -> None:
        """Do all items of a kernel, at least `grain` at a time. Small work runs on the caller alone: waking the others
        would cost more. listed: what follows the arguments of a kernel that takes a list (`abi.LISTED`)."""
        n_bytes = LIST_AT + 8 * len(listed[0]) * len(listed) if listed else 8 * len(arguments)
        with self.lock:
            memory, at = self._arguments
            if n_bytes > memory.nbytes:
                memory, at = self._arguments = _argument_memory(2 * n_bytes)
            _pack(memory, arguments, listed)
            if self._recorder is not None:
                self._recorder.add(self._noted(name, memory[:n_bytes].tobytes(), items, grain))
            if items <= grain:
                function = self._functions.get(name) or self._function(name)
                if self._trace is None:
                    function(at, 0, items)
                else:
                    self._trace.time(name, function, at, items)
            else:
                if self._trace is not None:
                    self._trace.runs()
                self._pool.run(self._cache.address(name), at, items, grain)

    def launch_products(self, name: str, products: Sequence[Product], items: int, grain: int) -> None:
        """`launch` of a product's kernel."""
        self.launch(name, Products(len(products)), items, grain, products)

    def laid_out(self, name: str, arguments: Arguments, items: int, grain: int) -> Launch:
        """What `launch` would do, for a `Program`."""
        return self._noted(name, packed(arguments), items, grain)

    def products_laid_out(self, name: str, products: Sequence[Product], items: int, grain: int) -> Launch:
        """What `launch_products` would do, for a `Program`."""
        memory = bytearray(LIST_AT + PRODUCT_BYTES * len(products))
        _pack(memory, Products(len(products)), products)
        return self._noted(name, bytes(memory), items, grain)

    def run_alone(self, name: str, arguments: Arguments, items: int) -> None:
        """All items on the calling thread, beside whatever else runs. Never recorded."""
        own = (ctypes.c_int64 * len(arguments))(*arguments)
        function = self._functions.get(name) or self._function(name)
        function(ctypes.addressof(own), 0, items)

    def run_program(self, program: Program) -> None:
        """All launches of a program. Never recorded."""
        with self.lock:
            if self._trace is not None:
                self._trace.runs(program)
            self._pool.run_program(program.rows_address, program.count)

    # -- recording ----------------------------------------------------------------------------------------------

    @contextmanager
    def record(self) -> Iterator[Recorder]:
        """Launches within are done and also noted: see `program`. One thread at a time, no other users meanwhile."""
        self._recorder = recorder = Recorder()
        try:
            yield recorder
        finally:
            self._recorder = None

    @property
    def halt_address(self) -> int:
        """See `ThreadPool.halt_address`."""
        return self._pool.halt_address

    def note(self, launch: Launch) -> None:
        """Part of what is being recorded, and not done now."""
        if self._recorder is not None:
            self._recorder.add(launch)

    def placed(self, tell: Callable[[Program], None]) -> None:
        """Tell once where what is being recorded lies."""
        if self._recorder is not None:
            self._recorder.placed(tell)

    @property
    def noted(self) -> int:
        """Launches of what is being recorded."""
        return 0 if self._recorder is None else len(self._recorder)

    def replay(self, program: Program, start: int = 0, end: int | None = None) -> int:
        """Launches start .. end - 1 of what was recorded; returns the end, or after which one it was stopped."""
        end = program.count if end is None else end
        with self.lock:
            self._recorder = None  # Ctrl-C may have left one behind
            if self._trace is not None:
                self._trace.runs(program)
            return start + self._pool.run_program(program.rows_address + 32 * start, end - start)

    @contextmanager
    def trace(self) -> Iterator[LaunchTrace]:
        """Within, it is noted when each thread worked on each launch. UsageError within another trace,
        UnsupportedError where kernels cannot read a clock."""
        if sys.platform == "win32":
            raise UnsupportedError("kernels are not traced on Windows")
        with self.lock:
            if self._trace is not None:
                raise UsageError("these kernels are traced already")
            self._trace = trace = LaunchTrace(self.threads, self._cache.name_at, self._pool.trace_memory)
            self._pool.trace(trace.address)
        try:
            yield trace
        finally:
            with self.lock:
                self._pool.trace(0)
                self._trace = None

    def keep(self, memory: Any) -> None:
        """Memory made for a launch: it stays as long as what is being recorded."""
        if self._recorder is not None:
            self._recorder.keep(memory)

    def spoil(self, reason: str) -> None:
        """What is being recorded cannot be replayed: something is done that is no launch, or none that stays."""
        if self._recorder is not None:
            self._recorder.spoil(reason)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()

    def after_fork(self) -> None:
        """See `device.forks`."""
        self.lock = threading.RLock()
        self._recorder = self._trace = None
        self._pool.after_fork()

    def _noted(self, name: str, arguments: bytes, items: int, grain: int) -> Launch:
        return Launch(name, self._cache.address(name), arguments, items, grain)

    def _function(self, name: str) -> Any:
        function = self._functions[name] = _KERNEL(self._cache.address(name))
        return function


def _argument_memory(n_bytes: int) -> tuple[memoryview, int]:
    """Memory and its address, which are replaced together: an interrupt must not leave one of each. (Packing into a
    memoryview takes half as long as into an array.)"""
    memory = np.zeros(n_bytes, np.uint8)
    return memory.data, address(memory)


def _pack(memory: memoryview | bytearray, arguments: Arguments, listed: Sequence[Arguments] = ()) -> None:
    """As a kernel reads them."""
    _PACK_INTO[len(arguments)](memory, 0, *arguments)
    if listed:
        at, pack_into = LIST_AT, _PACK_INTO[len(listed[0])]
        for each in listed:
            pack_into(memory, at, *each)
            at += 8 * len(each)
