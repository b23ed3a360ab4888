"""A sum over ranks without Python: see `sum_abi`.

Whoever waits for a sum holds no lock of Python's. Reads and writes wait as long as their descriptor says; all that is
not the plain case is left to Python, which goes on at the step where the kernel stopped.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types

from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.pool_kernels import clock
from edgerun.kernels.simd import (
    I32,
    I64,
    function,
    load_acquire,
    load_f16,
    load_f32,
    load_i64,
    load_u32,
    store_f16,
    store_f32,
    store_i32,
    store_i64,
)
from edgerun.kernels.sum_abi import (
    ADD,
    CALL,
    FLOATS,
    HALVES,
    HANDLE,
    HEADER_BYTES,
    IS_CLOSED,
    IS_TLS,
    LOOK,
    MADE,
    MAY,
    MOVED,
    MOVED_AT,
    NOT_BEGUN,
    NUMBER,
    READ,
    RECEIVE,
    RECEIVED,
    SEND,
    SENT,
    SPANS,
    SPANS_AT,
    STATE_SLOTS,
    STEP_SLOTS,
    STOPPED,
    WRITE,
)

_TICKS_AT = 8 * (STATE_SLOTS - 4)  # of a state: seconds and nanoseconds


def _call_plain(b: Any, address: Any, handle: Any, data: Any, count: Any) -> Any:
    """`read` or `write`: bytes, or -1."""
    kind = ir.FunctionType(I64, [I32, I64, I64])
    return b.call(b.inttoptr(address, kind.as_pointer()), (b.trunc(handle, I32), data, count))


def _call_tls(b: Any, address: Any, handle: Any, data: Any, count: Any, moved: Any) -> Any:
    """`SSL_read_ex` or `SSL_write_ex`: 1 where something moved."""
    kind = ir.FunctionType(I32, [I64, I64, I64, I64])
    return b.sext(b.call(b.inttoptr(address, kind.as_pointer()), (handle, data, count, moved)), I64)


call_plain = function((types.int64,) * 4, types.int64, _call_plain)
call_tls = function((types.int64,) * 5, types.int64, _call_tls)


@njit(forceinline=True)
def _now(state: int) -> Any:
    """In ns."""
    clock(int64(state + _TICKS_AT))
    return load_i64(int64(state + _TICKS_AT)) * 1_000_000_000 + load_i64(int64(state + _TICKS_AT + 8))


@njit(forceinline=True)
def _move(link: int, which: int, data: int, count: int) -> Any:
    """How many bytes of `count` went, by the link's function in that slot; 0 where none did."""
    if load_acquire(int64(link + 8 * IS_CLOSED)) != 0:
        return int64(0)
    act, handle = load_i64(int64(link + 8 * which)), load_i64(int64(link + 8 * HANDLE))
    if load_i64(int64(link + 8 * IS_TLS)) == 0:
        return max(call_plain(act, handle, int64(data), int64(count)), int64(0))
    if call_tls(act, handle, int64(data), int64(count), int64(link + 8 * MOVED)) != 1:
        return int64(0)
    return load_i64(int64(link + 8 * MOVED))


@njit(forceinline=True)
def _is_begun_as(frame: int, header: int) -> bool:
    """Whether a frame has this header."""
    same = True
    for at in range(0, HEADER_BYTES, 4):
        same = same and load_u32(int64(frame + at)) == load_u32(int64(header + at))
    return same


def build_sum_ranks(ops: Ops) -> Any:
    """See `sum_abi.SumRanks`."""
    lanes = ops.lanes
    load, store, plus = ops.load_floats_masked, ops.store_floats_masked, ops.add

    @njit(forceinline=True)
    def add(step: int) -> None:
        to, x = load_i64(int64(step + 8)), load_i64(int64(step + 16))
        y, count = load_i64(int64(step + 24)), load_i64(int64(step + 32))
        for i in range(0, count, lanes):
            n, at = int64(count - i), 4 * i
            if y == 0:
                store(int64(to + at), load(int64(x + at), n), n)
            else:
                store(int64(to + at), plus(load(int64(x + at), n), load(int64(y + at), n)), n)

    @njit(forceinline=True)
    def transfer(step: int, state: int, which: int, counted: int) -> Any:
        """Whether all of a frame went; what did not is told."""
        link, frame = load_i64(int64(step + 8)), load_i64(int64(step + 16))
        size, moved = load_i64(int64(step + 24)), int64(0)
        while moved < size:
            went = _move(link, which, frame + moved, size - moved)
            if went <= 0:
                break
            moved += went
        store_i64(int64(link + 8 * counted), int64(load_i64(int64(link + 8 * counted)) + moved))
        store_i64(int64(state + 8 * MOVED_AT), int64(moved))
        return moved == size

    def sum_ranks(arguments: int, low: int, high: int) -> None:
        script, steps = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        state, halt = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        if load_i64(int64(state + 8 * MAY)) != load_i64(int64(arguments + 32)):
            store_i64(int64(state + 8 * STOPPED), int64(NOT_BEGUN))
            store_i64(int64(halt), int64(1))
            return
        span = state + 8 * SPANS_AT + 16 * (load_i64(int64(state + 8 * MADE)) & (SPANS - 1))
        store_i64(int64(span), int64(_now(state)))
        call = load_i64(int64(state + 8 * CALL)) + 1
        store_i64(int64(state + 8 * CALL), int64(call))
        goes_on, at = True, int64(0)
        while goes_on and at < steps:
            step = script + 8 * STEP_SLOTS * at
            what = load_i64(int64(step))
            if what == ADD:
                add(step)
            elif what == SEND:
                goes_on = transfer(step, state, WRITE, SENT)
            elif what == RECEIVE:
                goes_on = transfer(step, state, READ, RECEIVED) and _is_begun_as(
                    load_i64(int64(step + 16)), load_i64(int64(step + 32))
                )
            elif what == NUMBER:
                store_i32(load_i64(int64(step + 8)), types.int32(call & 0xFFFFFFFF))
            elif what == HALVES:
                to, x = load_i64(int64(step + 8)), load_i64(int64(step + 16))
                for i in range(load_i64(int64(step + 24))):
                    store_f16(int64(to + 2 * i), load_f32(int64(x + 4 * i)))
            elif what == FLOATS:
                to, x = load_i64(int64(step + 8)), load_i64(int64(step + 16))
                for i in range(load_i64(int64(step + 24))):
                    store_f32(int64(to + 4 * i), load_f16(int64(x + 2 * i)))
            elif what == LOOK:
                store_i64(int64(span + 8), int64(_now(state)))
                store_i64(int64(state + 8 * MADE), int64(load_i64(int64(state + 8 * MADE)) + 1))
                goes_on = not load_f32(load_i64(int64(step + 8))) > 0
            if goes_on:
                at += 1
        if not goes_on:
            store_i64(int64(state + 8 * STOPPED), int64(at))
            store_i64(int64(halt), int64(1))

    return sum_ranks, kernel_signature()
