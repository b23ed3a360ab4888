"""The sides of the thread pool, without the GIL: `pool_run` publishes an operation and works on it, `pool_work`
waits for one and helps.

The control block is int64 slots on cache lines of their own (offsets in bytes; two lines apart, since processors fetch
pairs of them):

    0    state: number of pieces << 32 | next piece to take; then of the operation: kernel, arguments, items, grain,
         threads that a first and a second share was cut for (0: all pieces are of a grain); where spans are noted
         (`launch_trace.py`), 0: nowhere; the operation's number
    128  of the publisher alone: pieces that helpers have done when all is done; number of helpers; 1 while it is here
    256  stop
    384  on, for each helper: pieces that it has done since the pool began

A line that another core has written costs some hundred nanoseconds to fetch, as much as a small product's pieces take,
so what counts is how often one changes hands. One `fetch_add` on the state takes a piece and tells in the same moment
whether there was one: who got one may read the operation, since that stays what it is until the piece is reported done;
who got none touches nothing else. So helpers need not register, a late one costs nothing, and the publisher takes the
first piece unasked. A helper reports in a line that only it writes.

Pieces shrink: the first take half of the items, the next a quarter, the rest goes by `grain`. So a thread takes four of
them and not a dozen, and still one whose core was stolen by another program holds back little.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import (
    I32,
    I64,
    call_kernel,
    declare,
    fetch_add,
    function,
    load_acquire,
    load_i64,
    store_i64,
    store_release,
)

STATE, KERNEL, ARGUMENTS, ITEMS, GRAIN, SHARES, TRACE, NUMBER = 0, 8, 16, 24, 32, 40, 48, 56
EXPECTED, HELPERS, RUNNING, STOP, DONE, LINE = 128, 136, 144, 256, 384, 128
# Of the memory of a trace: first a thread's bytes and its spans, a power of two, and in a line of its own what the
# counter and the clock (seconds, nanoseconds) said when the first and when the last program began or ended; then each
# thread's: a line with how many it noted since the trace began and the number of the last operation; and the spans, the
# newest in place of the oldest: kernel, arguments, what the counter said at the begin and at the end
SPAN_BYTES, SPANS_AT, TRACE_LINE, LAST_AT, FIRST_TICKS, LAST_TICKS = 32, 64, 128, 8, 64, 88
# Spans whose lines are fetched before they are written: stores become visible in their order, so one that waits for its
# line holds up the publisher's next operation and a helper's report
_SPANS_AHEAD = 8
_PIECE_BITS = 32
_MOST_PIECES = 1 << 20
_SPINS_BEFORE_YIELD = 2000
# A helper without work pauses so often before it lets others have its core, if there are some who want it (threads that
# read weights), and then looks after every so many pauses whether there are. A pause is 10 to 70 ns.
_PAUSES_ALONE, _PAUSES_BETWEEN = 512, 64


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


def _prefetch_for_writing(b: Any, address: Any) -> None:
    pointer = b.inttoptr(address, ir.IntType(8).as_pointer())
    call = declare(b, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, I32, I32, I32])
    b.call(call, (pointer, ir.Constant(I32, 1), ir.Constant(I32, 3), ir.Constant(I32, 1)))


prefetch_for_writing = function((types.int64,), types.void, _prefetch_for_writing)


def _clock(b: Any, address: Any) -> None:
    """Seconds and nanoseconds of the clock that `time.perf_counter` reads, to an address; on Windows nothing."""
    if "windows" in b.module.triple:
        return
    which = (
        8 if any(name in b.module.triple for name in ("darwin", "macos", "ios")) else 1
    )  # CLOCK_UPTIME_RAW, _MONOTONIC
    pointer = b.inttoptr(address, I64.as_pointer())
    b.call(declare(b, "clock_gettime", I32, [I32, pointer.type]), (ir.Constant(I32, which), pointer))


clock = function((types.int64,), types.void, _clock)


def _ticks(b: Any) -> Any:
    """A counter of even pace that all cores share. Unlike a clock it is read without waiting for what was begun before:
    a thread that streams weights at a memory's full rate would stand still for a tenth of a microsecond each time."""
    if b.module.triple.startswith(("aarch64", "arm64")):
        counter = b.module.add_metadata(["cntvct_el0"])  # no inline assembly: it has no parser for another processor
        read = declare(b, "llvm.read_volatile_register.i64", I64, [ir.MetaDataType()])
        return b.call(read, [counter])
    return b.call(declare(b, "llvm.readcyclecounter", I64, []), ())


ticks = function((), types.int64, _ticks)


@njit(forceinline=True)
def _tell_time(control: int) -> None:
    """Of a trace, where there is one: what counter and clock say, now and when it began."""
    trace = load_i64(int64(control + TRACE))
    if trace == 0:
        return
    first = load_i64(int64(trace + FIRST_TICKS)) == 0
    at = trace + FIRST_TICKS if first else trace + LAST_TICKS
    clock(int64(at + 8))
    store_i64(int64(at), int64(ticks()))
    store_i64(int64(trace + TRACE_LINE + LAST_AT), int64(-1))


@njit(forceinline=True)
def _call(control: int, thread: int, kernel: int, arguments: int, low: int, high: int, number: int) -> None:
    """Items low .. high - 1, which are noted where a trace is made. The look at it costs nothing: it is on the line
    that the operation is read from. A thread's pieces of one operation (number; 0: a caller's own) follow each other at
    once and are one span. The counter takes as long as a small operation's tenth, so it is not asked twice for one
    moment: a caller's own operation begins where the last of them ended, and where the publisher's pieces end it says
    itself (`_end`). A helper may touch nothing after it has reported, so it asks after each piece."""
    trace = load_i64(int64(control + TRACE))
    if trace == 0:
        call_kernel(kernel, arguments, int64(low), int64(high))
        return
    count = trace + TRACE_LINE + thread * load_i64(trace)
    noted, mask = load_i64(int64(count)), load_i64(int64(trace + 8)) - 1
    if number > 0 and load_i64(int64(count + LAST_AT)) == number:
        call_kernel(kernel, arguments, int64(low), int64(high))
        if thread > 0:
            store_i64(int64(count + SPANS_AT + SPAN_BYTES * ((noted - 1) & mask) + 24), int64(ticks()))
        return
    span = count + SPANS_AT + SPAN_BYTES * (noted & mask)
    if number == 0 and load_i64(int64(count + LAST_AT)) == 0:
        began = load_i64(int64(count + SPANS_AT + SPAN_BYTES * ((noted - 1) & mask) + 24))
    else:
        began = ticks()
    prefetch_for_writing(int64(count + SPANS_AT + SPAN_BYTES * ((noted + _SPANS_AHEAD) & mask)))
    store_i64(int64(count + LAST_AT), int64(number))
    store_i64(int64(span), int64(kernel))
    store_i64(int64(span + 8), int64(arguments))
    store_i64(int64(span + 16), int64(began))
    call_kernel(kernel, arguments, int64(low), int64(high))
    if thread > 0 or number == 0:
        store_i64(int64(span + 24), int64(ticks()))
    store_release(int64(count), int64(noted + 1))


@njit(forceinline=True)
def _end(control: int) -> None:
    """The publisher has done its pieces of an operation: where a trace is made, that is when."""
    trace = load_i64(int64(control + TRACE))
    if trace != 0:
        count = trace + TRACE_LINE
        last = (load_i64(int64(count)) - 1) & (load_i64(int64(trace + 8)) - 1)
        store_i64(int64(count + SPANS_AT + SPAN_BYTES * last + 24), int64(ticks()))


@njit(forceinline=True)
def _shares(items: int, grain: int, threads: int) -> Any:
    """Items in a first and in a second share of each thread: whole grains."""
    return items // (2 * threads) // grain * grain, items // (4 * threads) // grain * grain


@njit(forceinline=True)
def _do_piece(control: int, thread: int, piece: int) -> None:
    """Of the published operation, which stands still as long as this piece is not reported."""
    kernel, arguments = load_i64(int64(control + KERNEL)), load_i64(int64(control + ARGUMENTS))
    items, grain = load_i64(int64(control + ITEMS)), load_i64(int64(control + GRAIN))
    shares = load_i64(int64(control + SHARES))
    low, size = piece * grain, grain
    if shares > 0:
        half, quarter = _shares(items, grain, shares)
        if piece < shares:
            low, size = piece * half, half
        elif piece < 2 * shares:
            low, size = shares * half + (piece - shares) * quarter, quarter
        else:
            low = shares * (half + quarter) + (piece - 2 * shares) * grain
    _call(control, thread, kernel, arguments, low, min(low + size, items), load_i64(int64(control + NUMBER)))


@njit(forceinline=True)
def _take(control: int) -> int:
    """The next piece, -1 when there is none."""
    state = fetch_add(int64(control + STATE), int64(1))
    piece = state & ((1 << _PIECE_BITS) - 1)
    return int64(piece) if piece < state >> _PIECE_BITS else int64(-1)


@njit(forceinline=True)
def _run(control: int, kernel: int, arguments: int, items: int, grain: int) -> None:
    helpers = load_i64(int64(control + HELPERS))
    threads = helpers + 1
    grain = max(grain, items // _MOST_PIECES + 1)
    shares, rest = 0, items
    if items // (4 * threads) > grain:
        shares = threads
        half, quarter = _shares(items, grain, threads)
        rest = items - threads * (half + quarter)
    pieces = 2 * shares + (rest + grain - 1) // grain
    store_i64(int64(control + KERNEL), int64(kernel))
    store_i64(int64(control + ARGUMENTS), int64(arguments))
    store_i64(int64(control + ITEMS), int64(items))
    store_i64(int64(control + GRAIN), int64(grain))
    store_i64(int64(control + SHARES), int64(shares))
    store_i64(int64(control + NUMBER), int64(load_i64(int64(control + NUMBER)) + 1))
    store_release(int64(control + STATE), int64(pieces << _PIECE_BITS | 1))
    piece, own = 0, 0
    while piece >= 0:
        _do_piece(control, 0, piece)
        own += 1
        piece = _take(control)
    _end(control)
    expected = load_i64(int64(control + EXPECTED)) + pieces - own
    store_i64(int64(control + EXPECTED), int64(expected))
    spins = 0
    while True:
        done = 0
        for helper in range(helpers):
            done += load_acquire(int64(control + DONE + LINE * helper))
        if done == expected:
            return
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_core()


def build_pool_run(ops: Ops) -> Any:
    """(control, kernel, arguments, items, grain) -> None: all items done when it returns."""

    def pool_run(control: int, kernel: int, arguments: int, items: int, grain: int) -> None:
        store_release(int64(control + RUNNING), int64(1))
        _tell_time(control)
        _run(control, kernel, arguments, items, grain)
        _tell_time(control)
        store_release(int64(control + RUNNING), int64(0))

    return pool_run, signature(types.void, *([types.int64] * 5))


def build_pool_program(ops: Ops) -> Any:
    """(control, program, count) -> None: launches one after another, each row of the program being the int64 slots
    kernel, arguments, items, grain. What is no more than a grain runs on the caller alone."""

    def pool_program(control: int, program: int, count: int) -> None:
        store_release(int64(control + RUNNING), int64(1))
        _tell_time(control)
        for i in range(count):
            row = program + 32 * i
            kernel, arguments = load_i64(int64(row)), load_i64(int64(row + 8))
            items, grain = load_i64(int64(row + 16)), load_i64(int64(row + 24))
            if items <= grain:
                _call(control, 0, kernel, arguments, 0, items, 0)
            else:
                _run(control, kernel, arguments, items, grain)
        _tell_time(control)
        store_release(int64(control + RUNNING), int64(0))

    return pool_program, signature(types.void, *([types.int64] * 3))


def build_pool_work(ops: Ops) -> Any:
    """(control, helper, spins) -> 0 when nothing came for `spins` turns, -1 when the pool stops."""

    def pool_work(control: int, helper: int, spins: int) -> int:
        report = control + DONE + LINE * helper
        done = load_i64(int64(report))
        idle = 0
        while idle < spins:
            if load_acquire(int64(control + STOP)) != 0:
                return int64(-1)
            state = load_acquire(int64(control + STATE))
            if state & ((1 << _PIECE_BITS) - 1) >= state >> _PIECE_BITS:
                pause()
                idle += 1
                if idle > _PAUSES_ALONE and idle % _PAUSES_BETWEEN == 0:
                    yield_core()
                continue
            piece = _take(control)
            if piece >= 0:
                _do_piece(control, helper + 1, piece)
                done += 1
                store_release(int64(report), int64(done))
                idle = 0
        return int64(0)

    return pool_work, signature(types.int64, types.int64, types.int64, types.int64)
