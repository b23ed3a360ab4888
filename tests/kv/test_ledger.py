"""However caches come, grow, fork, empty and go: together they never hold more than their ledger has."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import DoesNotFitError
from edgerun.kernels.attention_layout import read_keys, write_keys
from edgerun.kv import KvCache, KvLedger
from edgerun.kv import cache as cache_module

SHAPE = (2, 3, 4, 5)  # layers, heads, dimensions of keys and values
POSITION_BYTES = 2 * 2 * 3 * (4 + 5)
CAPACITY = 960  # in blocks of 64


def fill(cache: KvCache, start: int, count: int) -> None:
    cache.reserve(count)
    numbers = np.arange(start, start + count) % 2048  # f16 holds these
    for layer in range(2):
        write_keys(cache.keys(layer), np.broadcast_to(numbers[:, None, None], (count, 3, 4)), cache.length)
        cache.values(layer)[:, cache.length : cache.length + count] = -numbers[None, :, None]
    cache.advance(count)


def check(cache: KvCache, expected: list[int]) -> None:
    assert cache.length == len(expected)
    for layer in range(2):
        assert read_keys(cache.keys(layer), cache.length)[1, :, 2].tolist() == expected
        assert (cache.values(layer)[2, : cache.length, 4] == -np.array(expected, np.float16)).all()


ACTIONS = st.tuples(
    st.sampled_from(["new", "write", "write", "write", "cut", "fork", "drop", "loop", "release", "park", "unpark"]),
    st.integers(0, 5),
    st.integers(1, 500),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ACTIONS, max_size=30), st.integers(CAPACITY, 3 * CAPACITY))
def test_all_caches_stay_within_the_ledger(actions, limit):
    ledger = KvLedger(limit * POSITION_BYTES)
    gc.freeze()  # a ledger collects before it refuses: what the other tests left need not be looked at each time
    try:
        act(ledger, actions, limit)
        gc.collect()
    finally:
        gc.unfreeze()
    assert ledger.held_bytes == 0, "counted from those that live"


def act(ledger, actions, limit):
    """Do it all, and look after each."""
    caches: list[tuple[KvCache, list[int]]] = []
    for action, which, n in actions:
        if action == "new":
            caches.append((KvCache(*SHAPE, CAPACITY, ledger.grant), []))
            continue
        if not caches:
            continue
        cache, held = caches[which % len(caches)]
        others = sum(each.n_bytes for each, _ in caches if each is not cache and not each.spare)
        n = min(n, CAPACITY - len(held)) if action == "write" else min(n, len(held))
        try:
            if action == "write" and n:
                cache.spare = False
                fill(cache, which * 100, n)
                held += [i % 2048 for i in range(which * 100, which * 100 + n)]
            elif action == "fork":
                caches.append((cache.copy(n), held[:n]))
        except DoesNotFitError:
            needed = n if action == "fork" else len(held) + n
            mine = cache.n_bytes if action == "fork" and not cache.spare else 0
            assert others + mine + -(-needed // 64) * 64 * POSITION_BYTES > limit * POSITION_BYTES, "there was room"
        if action == "cut":
            cache.truncate(len(held) - n)
            del held[len(held) - n :]
        elif action == "release":
            cache.release()
            held.clear()
        elif action in ("park", "unpark"):
            cache.spare = action == "park"
        elif action in ("drop", "loop"):
            caches.pop(which % len(caches))
            if action == "loop":  # only the collector finds it
                cache.myself = cache
            del cache
        for each, expected in caches:
            if each.spare and not each.length:
                expected.clear()  # it may have been emptied, but never by a part
            check(each, expected)
        assert sum(each.n_bytes for each, _ in caches) <= ledger.held_bytes <= ledger.limit_bytes


def test_who_gives_way_first():
    ledger = KvLedger(2 * CAPACITY * POSITION_BYTES)
    idle, busy, third = (KvCache(*SHAPE, CAPACITY, ledger.grant) for _ in range(3))
    fill(idle, 0, CAPACITY)
    fill(busy, 0, CAPACITY)
    with pytest.raises(DoesNotFitError, match=r"2 others hold .*close sessions that are no longer needed"):
        third.reserve(1)
    assert (idle.length, busy.length, third.n_bytes) == (CAPACITY, CAPACITY, 0)
    idle.spare = True
    fill(third, 0, CAPACITY)
    assert (idle.length, idle.n_bytes, busy.length) == (0, 0, CAPACITY)
    fill_fails = KvCache(*SHAPE, CAPACITY, ledger.grant)
    with pytest.raises(DoesNotFitError):
        fill_fails.reserve(1)
    ledger.release_all()
    fill(fill_fails, 0, CAPACITY)


def test_a_cache_takes_less_than_double_before_it_is_refused():
    ledger = KvLedger((CAPACITY + 130) * POSITION_BYTES)
    whole, small = (KvCache(*SHAPE, CAPACITY, ledger.grant) for _ in range(2))
    fill(whole, 0, CAPACITY)
    fill(small, 0, 100)  # 128 positions, not 256
    check(small, list(range(100)))
    with pytest.raises(DoesNotFitError):
        fill(small, 100, 100)
    check(small, list(range(100)))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(4))
def test_growth_that_is_interrupted_leaves_no_layer_behind(monkeypatch, error, at):
    """Two layers of keys and values: whichever array cannot be made, positions and addresses are right afterwards."""
    cache = KvCache(*SHAPE, 4096)
    fill(cache, 0, 100)
    cache.addresses()
    made, zeros = [0], np.zeros

    def failing(*arguments):
        made[0] += 1
        if made[0] == at + 1:
            raise error
        return zeros(*arguments)

    monkeypatch.setattr(cache_module.np, "zeros", failing)
    with pytest.raises(error):
        cache.reserve(1000)
    monkeypatch.undo()
    check(cache, list(range(100)))
    cache.truncate(50)
    fill(cache, 50, 20)  # less than was asked for when it failed
    check(cache, list(range(70)))
    assert cache.n_bytes <= cache.held_bytes
    keys, values, key_stride, value_stride = cache.addresses()
    for layer in range(2):
        assert keys[layer] == cache.keys(layer).ctypes.data
        assert values[layer] == cache.values(layer).ctypes.data
        assert key_stride[layer] == cache.keys(layer).strides[0]
        assert value_stride[layer] == cache.values(layer).strides[0]
