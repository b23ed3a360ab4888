"""The KV cache against a plain list of what was written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import ContextLengthError, UsageError
from edgerun.kernels.attention_layout import read_keys, write_keys
from edgerun.kv import KvCache


def write(cache: KvCache, values: list[int]) -> None:
    cache.reserve(len(values))
    for layer in range(2):
        for i, value in enumerate(values):
            write_keys(cache.keys(layer), np.full((1, 3, 4), value, np.float32), cache.length + i)
            cache.values(layer)[:, cache.length + i] = -value
    cache.advance(len(values))


def contents(cache: KvCache) -> list[int]:
    keys, values = read_keys(cache.keys(1), cache.length), cache.values(0)[:, : cache.length]
    assert (keys == keys[:1, :, :1]).all()
    assert (values[:, :, 0] == -keys[0, :, 0]).all()
    return [int(value) for value in keys[0, :, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "cut", "fork"]), st.integers(0, 400)), max_size=12))
def test_behaves_like_a_list(steps):
    cache, model, value = KvCache(2, 3, 4, 5, 900), [], 0
    for action, n in steps:
        if action == "write":
            new = [(value + i) % 1000 for i in range(n)]
            value += n
            if len(model) + n > 900:
                with pytest.raises(ContextLengthError, match=f"{n} more tokens after {len(model)}"):
                    cache.reserve(n)
            else:
                write(cache, new)
                model += new
        elif action == "cut":
            n = min(n, len(model))
            cache.truncate(n)
            model = model[:n]
        else:
            n = min(n, len(model))
            other = cache.copy(n)
            assert contents(other) == model[:n]
            write(other, [7])  # must not show in the original
    assert contents(cache) == model
    assert cache.length == len(model)


def test_grows_as_it_is_used():
    cache = KvCache(1, 1, 8, 8, 1 << 20)
    assert cache.n_bytes < 1 << 16
    before = cache.addresses()
    cache.reserve(1000)
    assert cache.addresses()[0][0] == cache.keys(0).ctypes.data
    assert cache.addresses()[2] == cache.keys(0).strides[0] != before[2]


def test_bounds():
    with pytest.raises(UsageError, match="capacity"):
        KvCache(1, 1, 1, 1, 0)
    cache = KvCache(1, 1, 1, 1, 10)
    for wrong in (-1, 1):
        with pytest.raises(UsageError):
            cache.truncate(wrong)
        with pytest.raises(UsageError):
            cache.copy(wrong)
