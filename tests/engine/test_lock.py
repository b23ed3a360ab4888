"""The lock at which generations take turns."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from edgerun.engine import cancel
from edgerun.engine.cancel import FairLock
from edgerun.errors import Cancelled
from tests.interrupts import interrupts


def test_two_busy_threads_alternate() -> None:
    lock, order = FairLock(), []

    def work(name: str) -> None:
        for _ in range(20):
            with lock.held():
                order.append(name)
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    with lock.held():
        for thread in threads:
            thread.start()
        while len(lock._waiting) < 2:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    # Both ask all the time: after the first turns nobody goes three times in a row.
    together = "".join(order)
    middle = together[4:-4]
    assert "aaa" not in middle
    assert "bbb" not in middle


def test_waiting_can_be_cancelled_and_the_queue_goes_on() -> None:
    lock = FairLock()
    stop, result = threading.Event(), []

    def wait_in_vain() -> None:
        try:
            with lock.held(stop.is_set):
                result.append("held")
        except Cancelled:
            result.append("cancelled")

    thread = threading.Thread(target=wait_in_vain)
    with lock.held():
        thread.start()
        time.sleep(0.02)
        stop.set()
        thread.join(1)
        assert result == ["cancelled"]
    with lock.held():
        result.append("free")
    assert result == ["cancelled", "free"]


def test_an_error_inside_releases() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock.held():
        raise KeyError
    done = threading.Event()

    def take() -> None:
        with lock.held():
            done.set()

    threading.Thread(target=take).start()
    assert done.wait(1)


def test_a_thread_that_was_interrupted_before_its_release_can_go_on() -> None:
    lock = FairLock()
    leave_behind(lock)
    with lock.held():
        pass
    assert lock._owner is None


def leave_behind(lock: FairLock) -> list[object]:
    """What Ctrl-C before the release leaves: the lock is held, and nobody is in the block. The traceback that Python
    keeps for the user keeps the block alive, as the result does here."""
    block = lock.held()
    block.__enter__()
    return [block]


def test_a_lock_whose_owner_was_interrupted_and_does_something_else_goes_to_the_next() -> None:
    lock, done = FairLock(), threading.Event()
    kept = leave_behind(lock)

    def take() -> None:
        with lock.held():
            done.set()

    threading.Thread(target=take, daemon=True).start()
    assert done.wait(5), "the owner lives, but has left its block"
    assert kept


def test_a_lock_whose_owner_has_ended_goes_to_the_next() -> None:
    lock, kept = FairLock(), []
    thread = threading.Thread(target=lambda: kept.append(leave_behind(lock)))
    thread.start()
    thread.join()
    with lock.held():
        assert kept


def test_whoever_is_inside_keeps_the_lock() -> None:
    lock, inside, go = FairLock(), threading.Event(), threading.Event()

    def stay() -> None:
        with lock.held():
            inside.set()
            go.wait(5)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(5)
    asked = iter([False] * 5 + [True] * 100)
    with pytest.raises(Cancelled), lock.held(lambda: next(asked)):
        pass
    go.set()
    thread.join()


def test_an_interrupt_before_any_line_leaves_the_lock_to_others() -> None:
    """Ctrl-C at every point between asking for the lock and having released it: afterwards another thread gets it, and
    then this one. The traceback is dropped, as it is when the exception was dealt with."""

    def hold(lock: FairLock, at: int) -> int:
        passed = 0

        def strikes() -> bool:
            nonlocal passed
            passed += 1
            return passed == at

        with suppress(KeyboardInterrupt), interrupts(lambda file: file == cancel.__file__, strikes), lock.held():
            pass
        return passed

    most = hold(FairLock(), 0)
    assert most > 10
    for at in range(1, most + 1):
        lock, held = FairLock(), []

        def take(lock: FairLock = lock, held: list[str] = held) -> None:
            with lock.held():
                held.append("held")

        hold(lock, at)
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(5)
        assert held == ["held"], f"interrupted before line {at} of {most}"
        assert hold(lock, 0) > 0


BUSY = """
import gc, sys, threading, time
from edgerun.engine.cancel import FairLock

class Garbage:
    def __init__(self): self.cycle = self
    def __del__(self): time.sleep(0)  # another thread goes on meanwhile

def hold():
    for _ in range(300):
        Garbage()
        with lock.held():
            time.sleep(0)

def begin_and_end():
    while any(thread.is_alive() for thread in holders):
        threading.Thread(target=Garbage).start()
        time.sleep(0.0005)

lock = FairLock()
gc.set_threshold(5)
holders = [threading.Thread(target=hold, daemon=True) for _ in range(4)]
for thread in holders: thread.start()
begin_and_end()
print("ended")
"""


def test_a_collection_while_the_lock_is_passed_on_stops_nobody():
    """Where the interpreter is asked for all threads' frames meanwhile, Python 3.11.7 stands still for good."""
    ran = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "ended\n", ran.stderr


def test_a_stream_that_a_collection_ends_while_its_thread_asks_waits_for_nobody(monkeypatch):
    """A collection may come at any bytecode (from Python 3.12 on), also while a thread that waits looks after the
    owner: whoever has the lock needs what that thread holds then to give it back."""
    lock, acts = FairLock(), []
    is_inside = cancel._Turn.is_inside

    def collected(turn: cancel._Turn) -> bool:
        if threading.current_thread() is thread and not acts:
            acts.append("ended")
            lock.now_or_later(lambda: acts.append("left"))
        return is_inside(turn)

    def wait() -> None:
        with lock.held():
            acts.append("held")

    monkeypatch.setattr(cancel._Turn, "is_inside", collected)
    thread = threading.Thread(target=wait, daemon=True)
    with lock.held():
        thread.start()
        while "ended" not in acts:
            time.sleep(0.001)
    thread.join(5)
    assert sorted(acts) == ["ended", "held", "left"]


def test_what_is_put_off_while_nobody_has_the_lock_is_done(monkeypatch):
    """As a collection may end a stream while the lock is given back, after what was put off has been done."""
    lock, acts = FairLock(), []
    pass_on = FairLock._pass_on

    def collected(lock: FairLock) -> None:
        if not acts:
            acts.append("ended")
            lock.now_or_later(lambda: acts.append("left"))
        pass_on(lock)

    monkeypatch.setattr(FairLock, "_pass_on", collected)
    with lock.held():
        pass
    assert acts == ["ended", "left"]
    assert lock._owner is None
