"""The persistent threads that share every operation.

Threads spin for some tens of microseconds after an operation, since the next one of a layer follows at once; then
they sleep on a lock and are woken by the next operation. Operations are published and joined in `pool_kernels`.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import DoesNotFitError

_TRACE, _HELPERS, _RUNNING, _HALT, _STOP, _DONE, _LINE = (
    48 // 8,
    136 // 8,
    144 // 8,
    152 // 8,
    256 // 8,
    384 // 8,
    128 // 8,
)  # see `pool_kernels`
_SPINS = 20_000  # about 100 us of `pause`
_JOIN_S = 0.1  # after which a worker that was not there yet to be woken is woken again
_RUN = ctypes.CFUNCTYPE(None, *([ctypes.c_int64] * 5))
_PROGRAM = ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * 3))
_WORK = ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * 3))


class ThreadPool:
    """`threads` workers, the caller being one of them. One operation at a time: callers take turns by a lock.

    code: whatever owns the machine code at the addresses; kept until the last worker has left it.
    """

    def __init__(self, threads: int, run_address: int, work_address: int, program_address: int, code: Any) -> None:
        self.threads = threads
        self._memory = np.zeros(_DONE + _LINE * threads, np.int64)
        base = self._memory.ctypes.data
        self._control = -(-base // 128) * 128
        self._slots = self._memory[(self._control - base) // 8 :]
        self._slots[_HELPERS] = threads - 1
        self._run = _RUN(run_address)
        self._program = _PROGRAM(program_address)
        self._work = _WORK(work_address)
        self._asleep: list[threading.Lock] = []
        self._sleeping: list[bool] = []
        self._workers: list[threading.Thread] = []
        self._kept: list[Any] = [self._memory, code]
        self._finalizer = weakref.finalize(self, _stop, self._slots, self._asleep, self._kept, self._workers)
        self._noted: NDArray[np.int64] | None = None
        self._started = False
        try:
            self._start()
        except DoesNotFitError:
            self.close()
            raise

    def run(self, kernel: int, arguments: int, items: int, grain: int) -> None:
        """Do items 0 .. items - 1 of `kernel`, `grain` at a time, on all threads; returns when all are done."""
        self._wake()
        self._run(self._control, kernel, arguments, items, grain)

    @property
    def halt_address(self) -> int:
        """Of what a launch of a program sets to 1, so that the program stops after it."""
        return self._control + 8 * _HALT

    def run_program(self, program: int, count: int) -> int:
        """`count` launches in order: rows of int64 (kernel, arguments, items, grain). Returns how many were done: all,
        unless one of them wanted it to stop."""
        self._wake()
        done: int = self._program(self._control, program, count)
        return done

    def trace_memory(self, slots: int) -> NDArray[np.int64]:
        """Memory for traces, always the same: a worker may still note when it has ended after nobody listens."""
        if self._noted is None or len(self._noted) < slots:
            self._noted = np.full(slots, 0, np.int64)  # now, and not page by page meanwhile
            self._kept.append(self._noted)
        return self._noted[:slots]

    def trace(self, memory: int) -> None:
        """Note every operation in this part of `trace_memory` (`launch_trace.py`); 0: no longer. No operation runs."""
        self._slots[_TRACE] = memory

    def after_fork(self) -> None:
        """In a fork's child: no worker is here, and one may have been inside an operation. See `device.forks`."""
        stopped = self._slots[_STOP]
        self._slots[:] = 0
        self._slots[_STOP] = stopped
        self._slots[_HELPERS] = self.threads - 1
        self._started = False
        for each in (self._asleep, self._sleeping, self._workers):
            each.clear()

    def _start(self) -> None:
        while len(self._workers) < self.threads - 1:
            index = len(self._workers)
            self._asleep.append(threading.Lock())
            self._sleeping.append(False)
            state = (self._work, index, self._control, self._slots, self._asleep[index], self._sleeping)
            self._workers.append(threading.Thread(target=_work, args=state, name=f"edgerun-{index + 1}", daemon=True))
        for index, worker in enumerate(self._workers):
            if worker.ident is None:  # else it was started before an interrupt came
                try:
                    worker.start()
                except RuntimeError as error:  # the system gives no more threads
                    raise DoesNotFitError(
                        f"only {index + 1} of {self.threads} threads could be started: {error}; use fewer (threads)"
                    ) from error
        self._started = True

    def _wake(self) -> None:
        if not self._started and not self._slots[_STOP]:
            self._start()  # the first operation after a fork
        if True in self._sleeping:
            for index, sleeping in enumerate(self._sleeping):
                if sleeping:
                    self._sleeping[index] = False
                    with contextlib.suppress(RuntimeError):  # it was told before, and has not slept since
                        self._asleep[index].release()

    def close(self) -> None:
        """Stop and join the workers."""
        _stop(self._slots, self._asleep, None, self._workers)
        self._finalizer.detach()  # not before: Ctrl-C meanwhile leaves it to do the rest


def _work(work: Any, index: int, control: int, slots: Any, lock: threading.Lock, sleeping: list[bool]) -> None:
    lock.acquire()
    while work(control, index, _SPINS) >= 0:
        # Until now nobody knew that we sleep, so nobody has woken us for what is being done: we help with it. (While
        # Python prepares a launch it holds the GIL, for which we wait here: without this look we would sleep through
        # a whole token.) What is published from here to the lock does not need us, and the next one wakes us.
        sleeping[index] = True
        if slots[_STOP]:
            return
        if not slots[_RUNNING]:
            lock.acquire()


def _stop(slots: Any, asleep: list[threading.Lock], kept: Any, workers: list[threading.Thread]) -> None:
    """Stop and join the workers; at the latest when Python ends, while the machine code they run is still there."""
    slots[_STOP] = 1
    for lock, worker in zip(asleep, workers, strict=False):
        while worker.is_alive() and worker is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it is not asleep, nor about to be
                lock.release()
            worker.join(_JOIN_S)
