"""Who gives way when all sequences together may take no more."""

from __future__ import annotations

import sys
import threading

import pytest

from edgerun.errors import DoesNotFitError
from edgerun.kv import KvLedger, KvSequence, PagePool
from tests.kv.holding import GROUPS, new_pool, write

CAPACITY = 512
WHOLE = 2 * sum(group.page_bytes for group in GROUPS)


def test_who_gives_way_first():
    pool = new_pool(2 * WHOLE)
    idle, busy, third = (KvSequence(pool, CAPACITY) for _ in range(3))
    write(idle, [1] * CAPACITY)
    write(busy, [1] * CAPACITY)
    with pytest.raises(DoesNotFitError, match=r"2 others hold .*close sessions that are no longer needed"):
        third.reserve(1)
    assert (idle.length, busy.length, third.n_bytes) == (CAPACITY, CAPACITY, 0)
    idle.spare = True
    write(third, [1] * CAPACITY)
    assert (idle.length, idle.n_bytes, busy.length) == (0, 0, CAPACITY)
    fourth = KvSequence(pool, CAPACITY)
    with pytest.raises(DoesNotFitError):
        fourth.reserve(1)
    pool.ledger.release_all()
    write(fourth, [1] * CAPACITY)


def test_a_page_that_several_hold_counts_once():
    pool = new_pool(WHOLE + WHOLE // 2)
    first = KvSequence(pool, CAPACITY)
    write(first, [1] * 300)
    twins = [first.copy(300) for _ in range(20)]
    assert pool.ledger.held_bytes == WHOLE
    write(twins[0], [2])
    with pytest.raises(DoesNotFitError):
        write(twins[1], [3])
    assert twins[1].length == 300
    twins.pop(0).release()
    write(twins[0], [3])


def test_a_copy_of_nothing_takes_nothing():
    pool = new_pool(0)
    sequence = KvSequence(pool, CAPACITY)
    assert sequence.copy(0).n_bytes == 0
    with pytest.raises(DoesNotFitError):
        sequence.reserve(1)


def test_who_uses_what_nobody_holds_is_told_before():
    told: list[tuple[int, int]] = []
    ledger = KvLedger(WHOLE, lambda n_bytes: told.append((ledger.held_bytes, n_bytes)))
    sequence = KvSequence(PagePool(GROUPS, ledger), CAPACITY)
    sequence.reserve(1)
    sequence.reserve(CAPACITY)
    assert told == [(0, WHOLE // 2), (WHOLE // 2, WHOLE)]


def test_sequences_are_made_while_others_are_counted():
    """What a step counts for a page may be a new session's moment."""
    pool, stop, errors = new_pool(None), threading.Event(), []

    def count() -> None:
        try:
            while not stop.is_set():
                assert pool.n_bytes == 0
        except BaseException as error:  # noqa: BLE001 - a thread's errors are looked at below
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=count)
    try:
        thread.start()
        kept = [KvSequence(pool, CAPACITY) for _ in range(400)]
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not errors and len(kept) == 400
