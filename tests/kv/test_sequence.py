"""Sequences that grow, are cut, forked and dropped, against plain lists of what was written to them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgerun.errors import ContextLengthError, DoesNotFitError, UsageError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv import KvSequence, PagePool, layer_groups
from edgerun.kv.groups import SLACK
from tests.interrupts import interrupts
from tests.kv.holding import CAPACITY, GROUPS, LAYERS, REMEMBERED, WINDOW, check, new_pool, write

ACTIONS = st.tuples(
    st.sampled_from(
        ["new", "write", "write", "write", "cut", "fork", "drop", "loop", "release", "park", "unpark"]
        + ["remember", "remember", "recall", "recall"]
    ),
    st.integers(0, 5),
    st.one_of(st.integers(1, 600), st.sampled_from([1, 255, 256, 257, 512])),
    st.integers(0, 1000),
)
ONE = sum(group.page_bytes for group in GROUPS)  # of each group a page


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=25), limit=st.one_of(st.none(), st.integers(4, 30)))
@example(actions=[("new", 0, 1, 0), ("write", 0, 300, 1), ("fork", 0, 300, 0), ("write", 1, 9, 2)], limit=None)
@example(
    actions=[("new", 0, 1, 0), ("write", 0, 600, 1), ("remember", 0, 1, 0), ("write", 0, 400, 9), ("remember", 0, 1, 0)]
    + [("new", 0, 1, 0), ("recall", 1, 290, 0), ("write", 1, 300, 5), ("cut", 0, 500, 0), ("write", 0, 20, 3)],
    limit=None,
)
@example(actions=[("new", 0, 1, 0), ("write", 0, 600, 1), ("fork", 0, 600, 0), ("cut", 0, 500, 0)], limit=None)
def test_against_lists(actions, limit):
    pool = new_pool(None if limit is None else limit * ONE)
    gc.freeze()  # a ledger collects before it refuses: what the other tests left need not be looked at each time
    try:
        act(pool, actions)
        gc.collect()
    finally:
        gc.unfreeze()
    pool.prefixes.release()
    assert pool.ledger.held_bytes == 0, "counted from those that live"


def act(pool, actions):
    """Do it all, and look after each."""
    held: list[tuple[KvSequence, list[int]]] = []
    for action, which, n, value in actions:
        if action == "new":
            held.append((KvSequence(pool, CAPACITY), []))
            continue
        if not held:
            continue
        sequence, tokens = held[which % len(held)]
        try:
            if action == "write":
                new = [(value + i) % 500 for i in range(min(n, CAPACITY - len(tokens)))]
                sequence.spare = False
                write(sequence, new)
                tokens += new
            elif action == "fork":
                held.append((sequence.copy(len(tokens)), list(tokens)))
        except DoesNotFitError:
            assert pool.ledger.limit_bytes is not None
        if action == "cut":
            n = sequence.held_from(max(0, len(tokens) - n))
            sequence.truncate(n)
            del tokens[n:]
        elif action == "remember":
            sequence.remember(tokens)
        elif action == "recall":  # what another sequence holds, or held, and goes on otherwise
            prompt = [*held[value % len(held)][1][: 2 * n], *[501] * 3, *tokens]
            got = sequence.recall(prompt)
            assert got >= len(tokens)
            if got > len(tokens):
                tokens[:] = prompt[:got]
        elif action == "release":
            sequence.release()
            tokens.clear()
        elif action in ("park", "unpark"):
            sequence.spare = action == "park"
        elif action in ("drop", "loop"):
            held.pop(which % len(held))
            if action == "loop":  # only the collector finds it
                sequence.myself = sequence
            del sequence
        for each, expected in held:
            if each.spare and not each.length:
                expected.clear()  # it may have been emptied, but never by a part
            check(each, expected)
        pool.check_integrity()


@pytest.mark.parametrize("forked", [False, True])
def test_growth_that_is_interrupted(forked):
    """At whatever line: what was there is there afterwards, and the same growth then succeeds."""
    tokens = [i % 500 for i in range(900)]
    for moment in range(1, 1000):
        pool = new_pool()
        sequence = KvSequence(pool, CAPACITY)
        write(sequence, tokens[:600])
        write(sequence, tokens[600:])
        twin = sequence.copy(900) if forked else None
        left = iter(range(moment))
        try:
            with interrupts(lambda file: "/edgerun/kv/" in file, lambda left=left: next(left, None) is None):
                sequence.reserve(300)
            return  # there are no more lines
        except KeyboardInterrupt:
            pass
        check(sequence, tokens)
        write(sequence, [7] * 300)
        check(sequence, [*tokens, *[7] * 300])
        if twin is not None:
            check(twin, tokens)
        pool.check_integrity()
    raise AssertionError("it never ends")


def test_every_position_has_a_page_after_a_cut_to_what_is_remembered():
    """Pages that the tree holds go, the last is the sequence's own: it must not count as room beyond the gap. (A group
    with a window would look after the others, since its pages end sooner.)"""
    pool = PagePool(layer_groups(LAYERS[:1]))
    pool.prefixes.limit_bytes = REMEMBERED
    sequence = KvSequence(pool, CAPACITY)
    sequence.reserve(700)
    sequence.advance(700)
    sequence.remember(range(700))
    sequence.reserve(200)
    sequence.advance(200)
    sequence.truncate(100)
    for _ in range(200):
        sequence.reserve(1)
        sequence.check_integrity()
        sequence.advance(1)
    assert sequence.n_bytes == 2 * pool.groups[0].page_bytes


def test_no_memory_for_a_page(monkeypatch):
    """Some groups might have more room then than others."""
    made = iter(range(2))
    real = np.empty

    def empty(*arguments):
        if next(made, None) is None:
            raise MemoryError
        return real(*arguments)

    sequence = KvSequence(new_pool(), CAPACITY)
    write(sequence, [1] * 200)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", empty)
        with pytest.raises(MemoryError):
            sequence.reserve(800)
    check(sequence, [1] * 200)
    write(sequence, [2] * 800)
    check(sequence, [1] * 200 + [2] * 800)


def test_a_window_keeps_few_pages():
    pool = new_pool()
    sequence = KvSequence(pool, 1 << 20)
    least = GROUPS[1].most_pages(1 << 20, 100)
    for _ in range(80):
        write(sequence, [1] * 100)
        whole, window = sequence._held
        assert len(list(whole.all())) == -(-sequence.length // KEYS_PER_PAGE)
        assert len(list(window.all())) <= least
    assert least == (WINDOW + SLACK + 100) // KEYS_PER_PAGE + 2 == 4
    assert sequence.n_bytes < 1.2 * GROUPS[0].page_bytes * 32


def test_taking_back_beyond_a_window():
    sequence = KvSequence(new_pool(), CAPACITY)
    tokens = [i % 500 for i in range(2000)]
    for low in range(0, 2000, 250):
        write(sequence, tokens[low : low + 250])
    assert sequence.held_from(2000 - SLACK) == 2000 - SLACK
    assert sequence.held_from(1000) == 0, "what row 1000 sees is gone"
    with pytest.raises(UsageError, match="not held"):
        sequence.truncate(1000)
    with pytest.raises(UsageError, match="cannot copy"):
        sequence.copy(1000)
    check(sequence, tokens)
    sequence.truncate(2000 - SLACK)
    write(sequence, [3])
    check(sequence, [*tokens[: 2000 - SLACK], 3])
    sequence.truncate(0)
    write(sequence, [4, 5])
    check(sequence, [4, 5])


def test_forks_share_until_they_write():
    pool = new_pool()
    sequence = KvSequence(pool, CAPACITY)
    tokens = [i % 500 for i in range(700)]
    write(sequence, tokens)
    before = pool.n_bytes
    twin = sequence.copy(700)
    assert pool.n_bytes == before
    write(sequence, [1] * 10)  # it wrote the page first: nothing is copied
    assert pool.n_bytes == before
    write(twin, [2] * 10)
    assert before < pool.n_bytes <= before + 3 * ONE
    check(sequence, [*tokens, *[1] * 10])
    check(twin, [*tokens, *[2] * 10])
    sequence.truncate(690)
    write(sequence, [3])
    check(sequence, [*tokens[:690], 3])
    check(twin, [*tokens, *[2] * 10])


def test_a_prompt_takes_its_memory_before_it_begins():
    """Windowed groups too: what another sequence takes meanwhile is not missing later."""
    pool = new_pool()
    sequence = KvSequence(pool, 2000)
    sequence.reserve(2000, 100)
    held = pool.ledger.held_bytes
    for _ in range(20):
        write(sequence, [1] * 100)
    assert pool.ledger.held_bytes == held
    assert held == sum(group.page_bytes * group.most_pages(2000, 100) for group in GROUPS)


def test_bounds():
    with pytest.raises(UsageError, match="capacity"):
        KvSequence(new_pool(), 0)
    sequence = KvSequence(new_pool(), 10)
    with pytest.raises(ContextLengthError, match="11 more tokens after 0"):
        sequence.reserve(11)
    for wrong in (-1, 1):
        with pytest.raises(UsageError):
            sequence.truncate(wrong)
        with pytest.raises(UsageError):
            sequence.copy(wrong)
