"""The reader: right bytes from any place, what is urgent first, errors to who asked."""

from __future__ import annotations

import fcntl
import gc
import os
import threading
import time
from contextlib import closing
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import Cancelled, ReadError
from edgerun.weights import flash
from edgerun.weights.flash import DEMAND, PREDICTED, FlashReader, Piece, Reading
from tests.weights.faulty_disk import failing_reads

SIZE = 300_001


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("flash") / "bytes"
    content = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint8)
    path.write_bytes(content.tobytes())
    return path, content


def ask(offset, n_bytes, results, name="x"):
    def landed(piece, error):
        if error is not None:
            results.put(error)

    return Piece(0, offset, n_bytes, name, lambda view: results.put((name, view.copy())), landed)


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 70_000)), min_size=1, max_size=12),
    threads=st.integers(1, 4),
    direct=st.booleans(),
)
def test_any_range(file, ranges, threads, direct):
    path, content = file
    results = SimpleQueue()
    with closing(FlashReader([path], threads=threads, direct=direct)) as reader:
        wanted = {}
        for i, (offset, size) in enumerate(ranges):
            size = min(size, SIZE - offset)
            wanted[i] = content[offset : offset + size]
            assert np.array_equal(reader.read_now(0, offset, size, "now"), wanted[i])
            reader.submit([ask(offset, size, results, i)], i % 2)
        for _ in ranges:
            name, view = results.get(timeout=5)
            assert np.array_equal(view, wanted[name])


def test_ranges_of_one_piece_land_together(file):
    """One after another on one thread; what goes wrong with any of them is the piece's."""
    path, content = file
    news, views = SimpleQueue(), []

    def part(offset, n_bytes, *also):
        return Piece(0, offset, n_bytes, "x", lambda view: views.append(view.copy()), landed, also=also)

    def landed(piece, error):
        news.put((piece, error))

    with closing(FlashReader([path])) as reader:
        good, bad = part(70_000, 9, part(5, 5000), part(0, 1)), part(1, 1, part(SIZE - 1, 2), part(2, 1))
        reader.submit([good], DEMAND)
        assert news.get(timeout=5) == (good, None)
        assert [view.tobytes() for view in views] == [content[low:high].tobytes() for low, high in RANGES]
        assert (reader.stats.reads, reader.stats.n_bytes) == (3, 5010)
        reader.submit([bad], DEMAND)
        piece, error = news.get(timeout=5)
        assert piece is bad and isinstance(error, ReadError)
        assert len(views) == 4 and news.empty()
        assert reader.stats.errors == 1


RANGES = ((70_000, 70_009), (5, 5005), (0, 1))


def test_past_the_end(file):
    results = SimpleQueue()
    with closing(FlashReader([file[0]])) as reader:
        reader.submit([ask(SIZE - 10, 11, results, "blk.7.x")], DEMAND)
        error = results.get(timeout=5)
    assert isinstance(error, ReadError)
    assert "ends within blk.7.x" in str(error)


def held_reader(path):
    """A reader with one thread, which waits inside its first piece until the event is set."""
    reader, go, inside = FlashReader([path], threads=1), threading.Event(), threading.Event()

    def wait(view):
        inside.set()
        go.wait(5)

    reader.submit([Piece(0, 0, 10, "first", wait, lambda piece, error: None)], DEMAND)
    assert inside.wait(5)
    return reader, go


def test_demand_goes_first_and_promoted_is_demand(file):
    reader, go = held_reader(file[0])
    with closing(reader):
        results = SimpleQueue()
        guesses = [ask(100 * i, 10, results, f"guess {i}") for i in range(3)]
        reader.submit(guesses, PREDICTED)
        reader.submit([ask(0, 10, results, "needed")], DEMAND)
        reader.promote(guesses[2:])
        assert reader.waiting == 4
        go.set()
        assert [results.get(timeout=5)[0] for _ in range(4)] == ["guess 2", "needed", "guess 0", "guess 1"]


def test_cancelled_is_not_delivered(file):
    reader, go = held_reader(file[0])
    with closing(reader):
        results = SimpleQueue()
        pieces = [ask(0, 10, results, name) for name in "abc"]
        reader.submit(pieces, PREDICTED)
        assert reader.cancel(pieces[1:]) == {id(piece) for piece in pieces[1:]}
        assert reader.cancel(pieces[1:]) == set()
        go.set()
        assert results.get(timeout=5)[0] == "a"
    assert results.empty()


def test_an_error_in_one_piece_does_not_stop_the_others(file, monkeypatch):
    failing_reads(monkeypatch, lambda offset: offset == 4096)
    results = SimpleQueue()
    with closing(FlashReader([file[0]], threads=2, direct=False)) as reader:
        reader.submit([ask(4096 * i, 100, results, f"piece {i}") for i in range(4)], DEMAND)
        got = [results.get(timeout=5) for _ in range(4)]
        assert reader.stats.errors == 1
    assert sorted(each[0] for each in got if isinstance(each, tuple)) == ["piece 0", "piece 2", "piece 3"]
    assert [str(each) for each in got if isinstance(each, Exception)] == [
        f"{file[0]}: piece 1 cannot be read: Input/output error"
    ]


def test_no_direct_reads_where_the_file_system_refuses_them(file, monkeypatch):
    path, content = file
    real = flash.os.open

    def refusing(path, flags, *more):
        if flags & flash.os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(flash.os, "open", refusing)
    with closing(FlashReader([path])) as reader:
        assert not reader.is_direct
        assert np.array_equal(reader.read_now(0, 5, 1000, "x"), content[5:1005])


@pytest.mark.parametrize("grain", [512, 4096, 0])
def test_sectors_where_they_are_allowed_pages_or_the_cache_elsewhere(file, monkeypatch, grain):
    path, content = file
    real, sizes = os.preadv, []

    def picky(fd, buffers, offset):
        n = sum(len(each) for each in buffers)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            if not grain or n % grain or offset % grain:
                raise OSError(22, "Invalid argument")
            sizes.append(n)
        return real(fd, buffers, offset)

    monkeypatch.setattr(flash.os, "preadv", picky)
    with closing(FlashReader([path])) as reader:
        if reader.is_direct != bool(grain):
            pytest.skip("the temporary folder's file system reads directly in its own way")
        assert np.array_equal(reader.read_now(0, 5, 1000, "x"), content[5:1005])
        assert np.array_equal(reader.read_now(0, 5000, 3000, "x"), content[5000:8000])
    if grain:
        assert sizes[-1] == -(-(5000 % grain + 3000) // grain) * grain


def test_a_missing_file(tmp_path):
    with pytest.raises(ReadError, match="cannot be opened: No such file"):
        FlashReader([tmp_path / "nothing"])


def test_closed(file):
    reader = FlashReader([file[0]])
    reader.close()
    with pytest.raises(ReadError, match="closed"):
        reader.submit([ask(0, 1, SimpleQueue())], DEMAND)


def test_busy_seconds_are_of_the_disk_not_of_each_thread(file, monkeypatch):
    """Four reads of 50 ms, two at a time, then nothing for a while: 100 ms."""
    real, results = os.preadv, SimpleQueue()

    def slow(*arguments):
        time.sleep(0.05)
        return real(*arguments)

    with closing(FlashReader([file[0]], threads=2)) as reader:
        monkeypatch.setattr(os, "preadv", slow)
        reader.submit([ask(4096 * i, 4096, results) for i in range(4)], DEMAND)
        results.get(timeout=5)
        assert reader.stats.busy_s > 0.045, "counted while others are still read"
        for _ in range(3):
            results.get(timeout=5)
        time.sleep(0.2)
        assert 0.095 <= reader.stats.busy_s < 0.19


def test_what_is_delivered_does_not_keep_the_disk_busy(file):
    """A piece of two ranges, each of which takes 50 ms to be packed."""
    with closing(FlashReader([file[0]], threads=1)) as reader:
        reading = Reading(reader)
        also = Piece(0, 4096, 100, "x", lambda view: time.sleep(0.05), reading.landed)
        piece = Piece(0, 0, 100, "x", lambda view: time.sleep(0.05), reading.landed, also=(also,))
        reading.begin([piece], DEMAND)
        reading.wait()
        assert reader.stats.busy_s < 0.04


def reading_of(reader, offsets, deliver=lambda view: None):
    reading = Reading(reader)
    pieces = [Piece(0, offset, 100, f"piece {offset}", deliver, reading.landed) for offset in offsets]
    reading.begin(pieces, DEMAND)
    return reading


def quiet_threads(monkeypatch):
    """Pytest would warn of each thread that ends with an exception."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)


@pytest.mark.parametrize("threads", [1, 2])
def test_nobody_waits_for_a_thread_that_has_ended(file, monkeypatch, threads):
    quiet_threads(monkeypatch)

    def end(view):
        raise SystemExit

    reader = FlashReader([file[0]], threads=threads)
    with closing(reader):
        with pytest.raises(ReadError, match="load the model again"):
            reading_of(reader, range(0, 4000, 100), end).wait()
        with pytest.raises(ReadError, match="load the model again"):
            for _ in range(100):  # the thread is about to say so
                reading_of(reader, [0]).wait()
                time.sleep(0.05)


def test_nobody_waits_for_what_a_thread_could_not_say(file, monkeypatch):
    """The thread ends in the callback that should have told."""
    quiet_threads(monkeypatch)
    with closing(FlashReader([file[0]], threads=1)) as reader:
        reading = Reading(reader)

        def landed(piece, error):
            raise MemoryError

        reading.begin([Piece(0, 0, 100, "x", lambda view: None, landed)], DEMAND)
        with pytest.raises(ReadError, match="has ended"):
            reading.wait()


def test_closing_ends_waiting(file):
    reader, go = held_reader(file[0])
    reading, ended = reading_of(reader, [0, 100]), []

    def wait():
        with pytest.raises(ReadError, match="closed"):
            reading.wait()
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    closer = threading.Thread(target=reader.close)
    closer.start()
    waiting.join(5)
    assert ended, "while the reader still waits for its own thread"
    go.set()
    closer.join(5)


def test_waiting_can_be_cancelled_and_gone_on_with(file):
    reader, go = held_reader(file[0])
    with closing(reader):
        reading, looks = reading_of(reader, [0, 100]), iter([False, True])
        with pytest.raises(Cancelled):
            reading.wait(lambda: next(looks))
        go.set()
        reading.wait(lambda: time.monotonic() < 0)
        assert reading.is_done


def test_a_reader_that_nobody_has_goes(file):
    reader = FlashReader([file[0]], threads=2)
    threads, descriptor = reader._threads[:], reader._shared.files[0]._fd
    del reader
    gc.collect()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
