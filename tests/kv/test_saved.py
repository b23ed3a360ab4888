"""Sequences written to arrays and read again: the same positions, and nothing that was forgotten or does not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.errors import ContextLengthError, DoesNotFitError, UnsupportedError
from edgerun.formats.checked_tensors import Form
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kernels.page_arrays import write_positions
from edgerun.kv import KvLayer, KvLedger, KvOptions, KvSequence, PagePool, layer_groups
from tests.kv.holding import CAPACITY, GROUPS, check, content, new_pool, restore, write

Arrays = dict[str, NDArray[np.uint8]]


def saved(sequence: KvSequence) -> Arrays:
    arrays = {name: sequence.saved(name).copy() for name in sequence.saved_forms()}
    assert {name: ("U8", array.shape) for name, array in arrays.items()} == sequence.saved_forms()
    return arrays


def forms_of(arrays: Arrays) -> dict[str, Form]:
    return {name: ("U8", array.shape) for name, array in arrays.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.integers(0, 500),
    st.integers(1, 300),
)
def test_what_comes_back_is_what_was_there_and_goes_on(parts: list[int], cut: int, more: int) -> None:
    sequence, tokens = KvSequence(new_pool(), CAPACITY), [0] * 0
    for i, n in enumerate(parts):
        new = [(i + 3 * j) % 500 for j in range(n)]
        write(sequence, new)
        tokens += new
    n = sequence.held_from(max(0, len(tokens) - cut))
    sequence.truncate(n)
    del tokens[n:]
    arrays = saved(sequence)
    other = KvSequence(new_pool(), CAPACITY)
    restore(other, n, forms_of(arrays), arrays.__getitem__)
    for each in (sequence, other):
        whole = list(tokens)
        check(each, whole)
        new = [7 + j % 400 for j in range(min(more, CAPACITY - n))]
        write(each, new)
        check(each, whole + new)
    assert len(saved(other)) <= len(saved(sequence))


def test_what_was_forgotten_is_in_no_file() -> None:
    one, two = KvSequence(new_pool(), CAPACITY), KvSequence(new_pool(), CAPACITY)
    write(one, [1] * 700)
    one.truncate(600)
    write(two, [1] * 600)
    first, second = saved(one), saved(two)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    check(one, [1] * 600)  # and is not touched


@pytest.mark.parametrize("name", [*KV_FORMATS, "q8_0/q4_0"])
def test_no_bit_is_another_in_any_format(name: str) -> None:
    keys, _, values = name.partition("/")
    layers = [KvLayer(2, 64, 32), KvLayer(1, 32, 64, window=300)]
    groups = layer_groups(layers, KvOptions(KV_FORMATS[keys], KV_FORMATS[values or keys]))
    one, two = (KvSequence(PagePool(groups), CAPACITY) for _ in range(2))
    for n in (500, 333):
        one.reserve(n)
        for layer, shape in enumerate(layers):
            k, v = content(list(range(n)), one.length, layer, shape)
            write_positions(one.pages(layer), one.length, k, v)
        one.advance(n)
    arrays = saved(one)
    restore(two, 833, forms_of(arrays), arrays.__getitem__)
    again = saved(two)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_arrays_that_are_not_those_of_such_a_sequence() -> None:
    sequence = KvSequence(new_pool(), CAPACITY)
    write(sequence, [1] * 900)
    arrays = saved(sequence)
    changes: list[Callable[[dict[str, Form]], object]] = [
        lambda forms: forms.clear(),
        lambda forms: forms.pop("pages.0.3"),
        lambda forms: forms.pop("pages.0.0"),
        lambda forms: forms.pop("pages.1.3"),
        lambda forms: forms.update({"pages.0.4": forms["pages.0.3"]}),
        lambda forms: forms.update({"pages.2.0": forms["pages.0.3"]}),
        lambda forms: forms.update({"pages.0.1": ("U8", (5,))}),
        lambda forms: forms.update({"pages.0.1": ("F16", forms["pages.0.1"][1])}),
        lambda forms: forms.update({"more": ("U8", (0,))}),
    ]
    other = KvSequence(new_pool(), CAPACITY)
    for change in changes:
        forms = forms_of(arrays)
        change(forms)
        with pytest.raises(UnsupportedError):
            restore(other, 900, forms, arrays.__getitem__)
        check(other, [])
    for length in (0, 256, 768, 1025):
        with pytest.raises(UnsupportedError):
            restore(other, length, forms_of(arrays), arrays.__getitem__)
    with pytest.raises(ContextLengthError):
        restore(other, CAPACITY + 1, forms_of(arrays), arrays.__getitem__)
    check(other, [])


def test_no_memory_and_a_file_that_ends() -> None:
    sequence = KvSequence(new_pool(), CAPACITY)
    write(sequence, [1] * 900)
    arrays = saved(sequence)
    pool = PagePool(GROUPS, KvLedger(3 * GROUPS[0].page_bytes))
    other = KvSequence(pool, CAPACITY)
    with pytest.raises(DoesNotFitError):
        restore(other, 900, forms_of(arrays), arrays.__getitem__)
    check(other, [])
    pool = new_pool()
    other = KvSequence(pool, CAPACITY)
    names = iter(range(3))

    def read(name: str) -> NDArray[np.uint8]:
        if next(names, None) is None:
            raise KeyboardInterrupt
        return arrays[name]

    with pytest.raises(KeyboardInterrupt):
        restore(other, 900, forms_of(arrays), read)
    check(other, [])
    assert pool.ledger.held_bytes == 0
    restore(other, 900, forms_of(arrays), arrays.__getitem__)
    check(other, [1] * 900)
