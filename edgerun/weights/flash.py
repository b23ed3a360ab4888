"""Reading weights from flash: threads that `pread` large aligned pieces, what is needed now before what may be.

Never page faults: a fault reads 4 KiB, or a readahead window of which most is not used, and stops a thread that
computes. Files are opened with O_DIRECT where the file system takes it, so that no page cache is filled; elsewhere
buffered, with readahead off and the pages dropped after use. Two to four reads in flight reach the bandwidth of an
SSD (design measurements; io_uring added nothing), pieces are 256 KiB to 4 MiB.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import Cancelled, DoesNotFitError, ReadError, UnsupportedError
from edgerun.events import Span, SpanSink, never
from edgerun.weights.arena import LARGE_BYTES, Arena
from edgerun.weights.weight_file import ALIGNMENT, WeightFile

U8 = NDArray[np.uint8]
T = TypeVar("T")

PIECE_BYTES = 4 << 20
# Of a thread's memory that pieces are read to, in whole large pages: else a disk is given a hundred addresses for each
# read, and a virtual one delivers half as much (docs/streaming.md).
STAGING_BYTES = PIECE_BYTES + LARGE_BYTES
DEMAND, PREDICTED, BACKGROUND = 0, 1, 2  # priorities: smaller is sooner
_POLL_S = 0.05  # after which somebody who waits looks whether it is still worth it


@dataclass(frozen=True, eq=False)
class Piece:
    """A range of a file, and who takes its bytes. `deliver` runs on a reader's thread; its view is valid until it
    returns. `landed` is called once afterwards, with what went wrong or None, and from no thread in particular. `what`
    is named in errors. `target`: read to this memory; it, the offset and the size must be aligned, and the size is not
    bounded by PIECE_BYTES. `also`: further ranges that the same thread reads and delivers next; of all of them together
    only this piece lands."""

    file: int
    offset: int
    n_bytes: int
    what: str
    deliver: Callable[[U8], None]
    landed: Callable[[Piece, Exception | None], None]
    target: U8 | None = None
    also: tuple[Piece, ...] = ()

    @property
    def all_bytes(self) -> int:
        """Of all ranges."""
        return self.n_bytes + sum(each.n_bytes for each in self.also)


Landed = Callable[[Piece, Exception | None], None]


@dataclass
class ReadStats:
    """What was read so far."""

    reads: int = 0
    n_bytes: int = 0
    busy_s: float = 0.0  # in which at least one read was under way
    errors: int = 0


class FlashReader:
    """Reader threads over some files. They and the files are closed by `close`, or when nobody has the reader any more.

    threads: reads in flight. direct: whether O_DIRECT may be used. Raises ReadError when a file cannot be opened.
    Every piece that was submitted and not taken back lands, if only with an error: when the reader is closed, when one
    of its threads ends, and in the child of a fork, for what the parent had asked for.
    """

    def __init__(self, paths: Sequence[Path], *, threads: int = 3, direct: bool = True) -> None:
        if not hasattr(os, "preadv"):
            raise UnsupportedError(
                f"weights are streamed by preadv(), which {sys.platform} does not have: give the model more memory"
            )
        self.stats = ReadStats()
        self._shared = _Shared(self.stats)
        self._n_threads = threads
        self._threads: list[threading.Thread] = []
        self._started = False
        self._finalizer = weakref.finalize(self, _shut_at_last, self._shared, self._threads)
        try:
            for path in paths:
                self._shared.files.append(WeightFile(path, direct))
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def is_direct(self) -> bool:
        """Whether all files are read past the page cache."""
        return all(file.direct for file in self._shared.files)

    @property
    def waiting(self) -> int:
        """Pieces that no thread has begun."""
        return len(self._shared.queue)

    def submit(self, pieces: Sequence[Piece], priority: int) -> None:
        """Queue some pieces; returns at once."""
        if not self._started:
            self._start()  # the first reads after a fork
        self._shared.add(pieces, priority)

    def watch(self, watcher: SpanSink | None) -> None:
        """Tell somebody of every read, of waits for them, and (as a span without length) of what is read ahead. Called
        from readers' threads, too."""
        self._shared.watcher = watcher

    def promote(self, pieces: Sequence[Piece]) -> None:
        """Of these, those that still wait become as urgent as what is needed now."""
        self._shared.promote({id(piece) for piece in pieces})

    def cancel(self, pieces: Sequence[Piece]) -> set[int]:
        """Take back those that no thread has begun; returns the `id`s of these. The others will land."""
        return self._shared.cancel({id(piece) for piece in pieces})

    def under_way(self, pieces: Sequence[Piece]) -> set[int]:
        """The `id`s of those that a thread has begun, until `landed` has returned."""
        with self._shared.lock:
            return {id(piece) for piece in pieces if id(piece) in self._shared.active}

    def wait(self, news: SimpleQueue[T], cancelled: Callable[[], bool] = never) -> T:
        """What comes next out of a queue that `landed` puts things into. Raises Cancelled when `cancelled()` becomes
        true, and ReadError when nothing can come any more because a thread has gone."""
        if self._shared.watcher is not None:
            with self._shared.noted("waiting", "for weights"):
                return self._next(news, cancelled)
        return self._next(news, cancelled)

    def _next(self, news: SimpleQueue[T], cancelled: Callable[[], bool]) -> T:
        while True:
            with contextlib.suppress(Empty):
                return news.get(timeout=_POLL_S)
            if cancelled():
                raise Cancelled("stopped by the caller while weights were read")
            if any(thread.ident is not None and not thread.is_alive() for thread in self._threads):
                self._shared.fail(ReadError("a thread that reads weights has ended; load the model again"))
                if news.empty() and self._shared.stopped is not None:
                    raise self._shared.stopped

    def read_now(self, file: int, offset: int, n_bytes: int, what: str) -> U8:
        """Read on the calling thread, past the queue: for small things (a row of the embedding)."""
        staging = Arena(n_bytes + 2 * ALIGNMENT).bytes
        self._shared.files[file].check()
        return self._shared.files[file].read(offset, n_bytes, staging, what)

    def close(self) -> None:
        """Stop and join the threads. What waits lands with an error, what is being read is delivered first."""
        _shut(self._shared, self._threads)
        self._finalizer.detach()  # not before: Ctrl-C meanwhile leaves it to do the rest

    def after_fork(self) -> None:
        """See `device.forks`: to be called by those whose pieces these are, once they can be told that they failed."""
        self._started = False
        self._threads.clear()
        self._shared.begin_anew()

    def _start(self) -> None:
        while len(self._threads) < self._n_threads:
            name = f"edgerun-read-{len(self._threads) + 1}"
            self._threads.append(threading.Thread(target=_serve, args=(self._shared,), name=name, daemon=True))
        for index, thread in enumerate(self._threads):
            if thread.ident is None:  # else it was started before an interrupt came
                try:
                    thread.start()
                except RuntimeError as error:
                    raise DoesNotFitError(
                        f"only {index} of {self._n_threads} threads that read weights could be started: {error}; "
                        "raise the limit of this user's processes, or give the model more memory"
                    ) from error
        self._started = True


class _Shared:
    """What a reader's threads need of it. They must not keep the reader itself alive.

    Its lock is one that Ctrl-C cannot leave locked: a Condition could, whose `with` runs Python code."""

    def __init__(self, stats: ReadStats) -> None:
        self.files: list[WeightFile] = []
        self.stats = stats
        self.lock = threading.Lock()
        self.news: SimpleQueue[None] = SimpleQueue()  # something for each piece that was added: a thread looks
        self.queue: list[tuple[int, int, Piece]] = []  # a heap
        self.active: dict[int, Piece] = {}  # by id: taken by a thread
        self.stopped: ReadError | None = None
        self.watcher: SpanSink | None = None
        self._order = 0
        self._under_way = 0  # reads of files: what is delivered and packed is no longer read
        self._busy_since = 0.0

    def add(self, pieces: Sequence[Piece], priority: int) -> None:
        with self.lock:
            if self.stopped is not None:
                raise self.stopped
            for piece in pieces:
                self._order += 1
                heapq.heappush(self.queue, (priority, self._order, piece))
        for _ in pieces:
            self.news.put(None)
        if self.watcher is not None and priority == PREDICTED:
            now = time.perf_counter()
            for piece in pieces:
                self.watcher(Span("prefetch", piece.what, now, now, piece.all_bytes))

    @contextlib.contextmanager
    def noted(self, lane: str, name: str, n_bytes: int = 0) -> Iterator[None]:
        """Tell the watcher what is done within."""
        began = time.perf_counter()
        try:
            yield
        finally:
            watcher = self.watcher
            if watcher is not None:
                watcher(Span(lane, name, began, time.perf_counter(), n_bytes))

    def promote(self, wanted: set[int]) -> None:
        with self.lock:
            queue = [(DEMAND if id(piece) in wanted else how, order, piece) for how, order, piece in self.queue]
            heapq.heapify(queue)
            self.queue = queue

    def cancel(self, wanted: set[int]) -> set[int]:
        with self.lock:
            gone = {id(piece) for _, _, piece in self.queue if id(piece) in wanted}
            if gone:
                queue = [entry for entry in self.queue if id(entry[2]) not in gone]
                heapq.heapify(queue)
                self.queue = queue
        return gone

    def take(self) -> Piece | None:
        """The most urgent piece, for the thread that asks."""
        with self.lock:
            if self.stopped is not None or not self.queue:
                return None
            piece = heapq.heappop(self.queue)[2]
            self.active[id(piece)] = piece
        return piece

    def read(self, piece: Piece, staging: U8) -> None:
        """All of a piece's way, after `take`."""
        error: Exception | None = None
        try:
            for index in {part.file for part in (piece, *piece.also)}:
                self.files[index].check()
            for part in (piece, *piece.also):
                self._read_begins()
                try:
                    view = self._view(part, staging if part.target is None else part.target)
                finally:
                    self._read_ended()
                part.deliver(view)
        except Exception as raised:  # noqa: BLE001 - a reader must live on; the error goes to who asked
            error = raised
        except BaseException as raised:
            piece.landed(piece, ReadError(f"reading {piece.what} was ended by {raised!r}; load the model again"))
            raise
        if error is None:  # a lost update between threads only blurs a statistic
            self.stats.reads += 1 + len(piece.also)
            self.stats.n_bytes += piece.all_bytes
        else:
            self.stats.errors += 1
        try:
            piece.landed(piece, error)
        finally:
            self.active.pop(id(piece), None)

    def _view(self, piece: Piece, memory: U8) -> U8:
        file = self.files[piece.file]
        if self.watcher is None:
            return file.read(piece.offset, piece.n_bytes, memory, piece.what)
        reader = threading.current_thread().name.rsplit("-", 1)[-1]
        with self.noted(f"reader {reader}", piece.what, piece.n_bytes):
            return file.read(piece.offset, piece.n_bytes, memory, piece.what)

    def fail(self, error: ReadError) -> None:
        """Nothing is read from now on; what waits lands with the error."""
        with self.lock:
            if self.stopped is None:
                self.stopped = error
            left, self.queue = self.queue, []
        for _, _, piece in left:
            piece.landed(piece, error)

    def begin_anew(self) -> None:
        """In a fork's child: no thread is here, and whoever held the lock is not either."""
        lost = [*self.active.values(), *(piece for _, _, piece in self.queue)]
        self.lock, self.news = threading.Lock(), SimpleQueue()
        self.queue, self.active, self._under_way = [], {}, 0
        error = ReadError("the process was forked while weights were read; ask again")
        for piece in lost:
            piece.landed(piece, error)

    def _read_begins(self) -> None:
        with self.lock:
            if not self._under_way:
                self._busy_since = time.perf_counter()
            self._under_way += 1

    def _read_ended(self) -> None:
        with self.lock:
            self._under_way -= 1
            now = time.perf_counter()
            self.stats.busy_s += now - self._busy_since  # told at once: reading may never pause
            self._busy_since = now


def _serve(shared: _Shared) -> None:
    """A reader's thread: whatever ends it, nobody waits for it in vain."""
    try:
        staging = Arena(STAGING_BYTES, large_pages=True).bytes
        while shared.stopped is None:
            shared.news.get()
            while (piece := shared.take()) is not None:
                shared.read(piece, staging)
    except BaseException as error:
        shared.fail(ReadError(f"a thread that reads weights has ended ({error!r}); load the model again"))
        raise
    finally:
        shared.news.put(None)  # the next one shall look, too


def _shut(shared: _Shared, threads: list[threading.Thread]) -> None:
    """Stop and join the threads, then close the files."""
    shared.fail(ReadError("the reader was closed"))
    shared.news.put(None)
    for thread in threads:  # the last one to let go of the reader may be one of them; one may have been forked away
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join()
    for file in shared.files:
        file.close()


def _shut_at_last(shared: _Shared, threads: list[threading.Thread]) -> None:
    """`_shut` of a reader that nobody has any more. Ctrl-C within a collection is dropped by Python, and nobody comes a
    second time: so what is left is done here."""
    try:
        _shut(shared, threads)
    except BaseException:
        _shut(shared, threads)
        raise


class Reading:
    """Pieces that are begun together and waited for together, by one thread. Begun at most once.

    Whatever interrupts that thread, wherever, `missing` says what has not landed: readers write it, not the thread."""

    def __init__(self, flash: FlashReader) -> None:
        self._flash = flash
        self._pieces: Sequence[Piece] = ()
        self._missing: set[int] = set()  # ids of pieces
        self.error: Exception | None = None  # the first that a piece landed with
        self._news: SimpleQueue[Piece] = SimpleQueue()

    @property
    def is_done(self) -> bool:
        """Whether all has landed, or nothing was begun."""
        return not self._missing

    def landed(self, piece: Piece, error: Exception | None) -> None:
        """For the pieces."""
        self.error = self.error or error
        self._missing.discard(id(piece))
        self._news.put(piece)

    def begin(self, pieces: Sequence[Piece], priority: int) -> None:
        """Queue them; returns at once."""
        self._pieces = pieces
        self._missing = {id(piece) for piece in pieces}
        self._flash.submit(pieces, priority)

    def hurry(self) -> None:
        """They are needed now."""
        self._flash.promote(self._pieces)

    def wait(self, cancelled: Callable[[], bool] = never) -> None:
        """Until all have landed. Raises as `FlashReader.wait`, and what reading raised: others may be on their way then
        (`give_up`)."""
        for _ in self.each(cancelled):
            pass

    def each(self, cancelled: Callable[[], bool] = never) -> Iterator[Piece]:
        """As `wait`, with the pieces as they land."""
        while self._missing and self.error is None:
            yield self._flash.wait(self._news, cancelled)
        while not self._news.empty():
            yield self._news.get()
        if self.error is not None:
            raise self.error

    def give_up(self, cancelled: Callable[[], bool] = never) -> None:
        """Take back what no thread has begun and wait for the rest: then the memory may be used for something else."""
        self._flash.cancel(self._pieces)
        self._missing.intersection_update(self._flash.under_way(self._pieces))
        while self._missing:
            self._flash.wait(self._news, cancelled)
