"""The sides of the thread pool, without the GIL: `pool_run` publishes an operation and works on it, `pool_work`
waits for one and helps.

The control block is int64 slots on cache lines of their own (offsets in bytes; two lines apart, since processors fetch
pairs of them):

    0    state: number of pieces << 32 | next piece to take; then of the operation: kernel, arguments, items, grain,
         threads that a first and a second share was cut for (0: all pieces are of a grain); where spans are noted
         (`launch_trace.py`), 0: nowhere; the operation's number
    128  of the publisher alone: pieces that helpers have done when all is done; number of helpers; 1 while it is here;
         1 when a launch of a program wants it to stop
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
EXPECTED, HELPERS, RUNNING, HALT, STOP, DONE, LINE = 128, 136, 144, 152, 256, 384, 128
# Of the memory of a trace: first a thread's bytes and its spans, a power of two, and in a line of its own what the
# counter and the clock (seconds, nanoseconds) said when the first and when the last program began or ended; then each
# thread's: a line with how many it noted since the trace began, and the spans, the newest in place of the oldest. Of
# the publisher: kernel, arguments, the operation's number and what the counter said at the end. Of a helper: nothing,
# what the counter said at the begin, the number, and the end, which is noted when it finds nothing more to do: it has
# reported by then, so this memory lives as long as the helpers (`pool.trace_memory`)
SPAN_BYTES, SPANS_AT, TRACE_LINE, FIRST_TICKS, LAST_TICKS = 32, 64, 128, 64, 88
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
    """A counter of even pace that all cores share. It is read sooner than a clock, which waits for all that was begun
    before: a thread that streams weights at a memory's full rate would stand still for a tenth of a microsecond."""
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


@njit(forceinline=True)
def _done(control: int, kernel: int, arguments: int, number: int) -> None:
    """The publisher has done its part of an operation: where a trace is made, that is when. number: 0 of what it did
    alone; kernel: 0 when nothing was done, and it begins now. When an operation began is not asked: that is when the
    one before it was done by all threads. What a look at the counter costs is less its own time than that it waits for
    what was computed, while without it the next operation begins meanwhile."""
    trace = load_i64(int64(control + TRACE))
    if trace == 0:
        return
    count = trace + TRACE_LINE
    noted, mask = load_i64(int64(count)), load_i64(int64(trace + 8)) - 1
    span = count + SPANS_AT + SPAN_BYTES * (noted & mask)
    prefetch_for_writing(int64(count + SPANS_AT + SPAN_BYTES * ((noted + _SPANS_AHEAD) & mask)))
    store_i64(int64(span), int64(kernel))
    store_i64(int64(span + 8), int64(arguments))
    store_i64(int64(span + 16), int64(number))
    store_i64(int64(span + 24), int64(ticks()))
    store_i64(int64(count), int64(noted + 1))


@njit(forceinline=True)
def _help(control: int, thread: int, kernel: int, arguments: int, low: int, high: int) -> int:
    """A helper's piece; where a trace is made it is noted, and the address is returned at which to note its end, else
    0. The look at it costs nothing: it is on the line that the operation is read from. A thread's pieces of one
    operation follow each other at once and are one span. What was computed is known from the publisher's span of the
    same number."""
    trace = load_i64(int64(control + TRACE))
    if trace == 0:
        call_kernel(kernel, arguments, int64(low), int64(high))
        return int64(0)
    number = load_i64(int64(control + NUMBER))
    count = trace + TRACE_LINE + thread * load_i64(trace)
    noted, mask = load_i64(int64(count)), load_i64(int64(trace + 8)) - 1
    span = count + SPANS_AT + SPAN_BYTES * ((noted - 1) & mask)
    if load_i64(int64(span + 16)) != number:
        span = count + SPANS_AT + SPAN_BYTES * (noted & mask)
        prefetch_for_writing(int64(count + SPANS_AT + SPAN_BYTES * ((noted + _SPANS_AHEAD) & mask)))
        store_i64(int64(span + 8), int64(ticks()))
        store_i64(int64(span + 16), int64(number))
        store_i64(int64(span + 24), int64(0))
        store_i64(int64(count), int64(noted + 1))
    call_kernel(kernel, arguments, int64(low), int64(high))
    return int64(span + 24)


@njit(forceinline=True)
def _shares(items: int, grain: int, threads: int) -> Any:
    """Items in a first and in a second share of each thread: whole grains."""
    return items // (2 * threads) // grain * grain, items // (4 * threads) // grain * grain


@njit(forceinline=True)
def _do_piece(control: int, thread: int, piece: int) -> int:
    """Of the published operation, which stands still as long as this piece is not reported. Returns what `_help` does,
    of a piece of the publisher's 0."""
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
    high = min(low + size, items)
    if thread > 0:
        return _help(control, thread, kernel, arguments, low, high)
    call_kernel(kernel, arguments, int64(low), int64(high))
    return int64(0)


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
    number = load_i64(int64(control + NUMBER)) + 1
    store_i64(int64(control + NUMBER), int64(number))
    store_release(int64(control + STATE), int64(pieces << _PIECE_BITS | 1))
    piece, own = 0, 0
    while piece >= 0:
        _do_piece(control, 0, piece)
        own += 1
        piece = _take(control)
    _done(control, kernel, arguments, number)
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
        _done(control, 0, 0, 0)
        _run(control, kernel, arguments, items, grain)
        _tell_time(control)
        store_release(int64(control + RUNNING), int64(0))

    return pool_run, signature(types.void, *([types.int64] * 5))


def build_pool_program(ops: Ops) -> Any:
    """(control, program, count) -> how many were done: launches one after another, each row of the program being the
    int64 slots kernel, arguments, items, grain. What is no more than a grain runs on the caller alone; it may stop the
    program by HALT, which is 0 again then."""

    def pool_program(control: int, program: int, count: int) -> int:
        done = int64(count)
        store_release(int64(control + RUNNING), int64(1))
        _tell_time(control)
        _done(control, 0, 0, 0)
        for i in range(count):
            row = program + 32 * i
            kernel, arguments = load_i64(int64(row)), load_i64(int64(row + 8))
            items, grain = load_i64(int64(row + 16)), load_i64(int64(row + 24))
            if items <= grain:
                call_kernel(kernel, arguments, int64(0), int64(items))
                _done(control, kernel, arguments, 0)
                if load_i64(int64(control + HALT)) != 0:
                    store_i64(int64(control + HALT), int64(0))
                    done = int64(i + 1)
                    break
            else:
                _run(control, kernel, arguments, items, grain)
        _tell_time(control)
        store_release(int64(control + RUNNING), int64(0))
        return done

    return pool_program, signature(types.int64, *([types.int64] * 3))


def build_pool_work(ops: Ops) -> Any:
    """(control, helper, spins) -> 0 when nothing came for `spins` turns, -1 when the pool stops."""

    def pool_work(control: int, helper: int, spins: int) -> int:
        report = control + DONE + LINE * helper
        done = load_i64(int64(report))
        idle, end_at = 0, 0
        while idle < spins:
            if load_acquire(int64(control + STOP)) != 0:
                return int64(-1)
            state = load_acquire(int64(control + STATE))
            if state & ((1 << _PIECE_BITS) - 1) >= state >> _PIECE_BITS:
                if end_at != 0:  # of a trace: not before the report, which somebody waits for
                    store_i64(int64(end_at), int64(ticks()))
                    end_at = 0
                pause()
                idle += 1
                if idle > _PAUSES_ALONE and idle % _PAUSES_BETWEEN == 0:
                    yield_core()
                continue
            piece = _take(control)
            if piece >= 0:
                end_at = _do_piece(control, helper + 1, piece)
                done += 1
                store_release(int64(report), int64(done))
                idle = 0
        return int64(0)

    return pool_work, signature(types.int64, types.int64, types.int64, types.int64)
