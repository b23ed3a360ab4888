"""The sides of the thread pool, without the GIL: `pool_run` publishes an operation and works on it, `pool_work`
waits for one and helps.

The control block is int64 slots on cache lines of their own (offsets in bytes):

    0    epoch: odd while an operation is being published, even when it may be taken
    64   next item to take
    128  helpers inside the operation
    192  kernel, arguments, items, grain
    256  stop
    320  helpers that are awake (spinning)

Items are taken from a shared counter, `grain` at a time, so that a thread whose core was stolen by another program
holds back one piece and not a fixed half. A helper registers in slot 128 before it looks at the operation and leaves
afterwards; the publisher marks the epoch odd and waits until nobody is inside before it writes the next one. Each
side writes its own slot and then reads the other's, so both need a full fence in between: with less, a processor may
read first, a late helper enters an operation that is being replaced, and takes an item with half of its arguments.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import (
    I32,
    call_kernel,
    declare,
    fence,
    fetch_add,
    function,
    load_acquire,
    load_i64,
    store_release,
)

EPOCH, NEXT, INSIDE, JOB, STOP, AWAKE = 0, 64, 128, 192, 256, 320
CONTROL_BYTES = 384
_SPINS_BEFORE_YIELD = 2000


def _pause(b: Any) -> None:
    triple = b.module.triple
    if triple.startswith(("x86_64", "i686", "amd64")):
        b.call(declare(b, "llvm.x86.sse2.pause", ir.VoidType(), []), ())
    elif triple.startswith(("aarch64", "arm64")):
        b.call(declare(b, "llvm.aarch64.hint", ir.VoidType(), [I32]), (ir.Constant(I32, 1),))


pause = function((), types.void, _pause)


def _sched_yield(b: Any) -> Any:
    name = "SwitchToThread" if "windows" in b.module.triple else "sched_yield"
    return b.call(declare(b, name, I32, []), ())


yield_core = function((), types.int32, _sched_yield)


@njit(forceinline=True)
def _take_items(control: int, kernel: int, arguments: int, items: int, grain: int) -> None:
    while True:
        low = fetch_add(int64(control + NEXT), int64(grain))
        if low >= items:
            return
        call_kernel(int64(kernel), int64(arguments), int64(low), int64(min(low + grain, items)))


@njit(forceinline=True)
def _run(control: int, kernel: int, arguments: int, items: int, grain: int) -> None:
    epoch = load_acquire(int64(control + EPOCH))
    store_release(int64(control + EPOCH), int64(epoch + 1))
    fence()  # the odd epoch is seen before INSIDE is read here, or a late helper is seen there: never neither
    spins = 0
    while load_acquire(int64(control + INSIDE)) != 0:  # late comers of the last operation
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_core()
    store_release(int64(control + JOB), int64(kernel))
    store_release(int64(control + JOB + 8), int64(arguments))
    store_release(int64(control + JOB + 16), int64(items))
    store_release(int64(control + JOB + 24), int64(grain))
    store_release(int64(control + NEXT), int64(0))
    store_release(int64(control + EPOCH), int64(epoch + 2))
    _take_items(control, kernel, arguments, items, grain)
    spins = 0
    while load_acquire(int64(control + INSIDE)) != 0:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_core()


def build_pool_run(ops: Ops) -> Any:
    """(control, kernel, arguments, items, grain) -> None: all items done when it returns."""

    def pool_run(control: int, kernel: int, arguments: int, items: int, grain: int) -> None:
        _run(control, kernel, arguments, items, grain)

    return pool_run, signature(types.void, *([types.int64] * 5))


def build_pool_program(ops: Ops) -> Any:
    """(control, program, count) -> None: launches one after another, each row of the program being the int64 slots
    kernel, arguments, items, grain. What is no more than a grain runs on the caller alone."""

    def pool_program(control: int, program: int, count: int) -> None:
        for i in range(count):
            row = program + 32 * i
            kernel, arguments = load_i64(int64(row)), load_i64(int64(row + 8))
            items, grain = load_i64(int64(row + 16)), load_i64(int64(row + 24))
            if items <= grain:
                call_kernel(kernel, arguments, int64(0), items)
            else:
                _run(control, kernel, arguments, items, grain)

    return pool_program, signature(types.void, *([types.int64] * 3))


def build_pool_work(ops: Ops) -> Any:
    """(control, seen epoch, spins) -> the last epoch that was helped with, when nothing came for `spins` turns,
    or -1 when the pool stops."""

    def pool_work(control: int, seen: int, spins: int) -> int:
        idle = 0
        while idle < spins:
            if load_acquire(int64(control + STOP)) != 0:
                return int64(-1)
            epoch = load_acquire(int64(control + EPOCH))
            if epoch == seen or epoch & 1 != 0:
                pause()
                idle += 1
                continue
            fetch_add(int64(control + INSIDE), int64(1))
            fence()
            if load_acquire(int64(control + EPOCH)) == epoch:
                _take_items(
                    control,
                    load_acquire(int64(control + JOB)),
                    load_acquire(int64(control + JOB + 8)),
                    load_acquire(int64(control + JOB + 16)),
                    load_acquire(int64(control + JOB + 24)),
                )
                seen = epoch
                idle = 0
            fetch_add(int64(control + INSIDE), int64(-1))
        return int64(seen)

    return pool_work, signature(types.int64, types.int64, types.int64, types.int64)
