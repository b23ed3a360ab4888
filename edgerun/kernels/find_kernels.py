"""Where a token's experts lie, told to their products within a recording: Python is asked only where one is missing."""

from __future__ import annotations

from typing import Any

from numba import int32, int64, njit

from edgerun.kernels.abi import PRODUCT_BYTES, Product, slot_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.recording import ALL, NOT_ALL, NOT_ALL_WANTED, NOWHERE
from edgerun.kernels.simd import load_acquire, load_i64, load_u32, store_i32, store_i64

_WEIGHTS = 8 * slot_of(Product, "weights")


@njit(forceinline=True)
def _place(places: int, ids: int, index: int) -> Any:
    """Of an expert of a list. Who filled it has written the place last."""
    return load_acquire(int64(places + 8 * int64(load_u32(int64(ids + 4 * index)))))


@njit(forceinline=True)
def _note(ids: int, used: int, to: int) -> None:
    """A copy of a list."""
    for index in range(used):
        store_i32(int64(to + 4 * index), int32(load_u32(int64(ids + 4 * index))))


@njit(forceinline=True)
def _is_lacking(ids: int, places: int, used: int) -> bool:
    """Whether one of a list is nowhere."""
    lacking = False
    for index in range(used):
        lacking = lacking or _place(places, ids, index) <= NOWHERE
    return lacking


@njit(forceinline=True)
def _tell(products: int, ids: int, places: int, used: int, first: int, stride: int) -> None:
    """Products of a list of experts, whose matrix at place 0 is at `first`, where their weights are."""
    for index in range(used):
        at = first + stride * _place(places, ids, index)
        store_i64(int64(products + PRODUCT_BYTES * index + _WEIGHTS), int64(at))


def build_find_experts(ops: Ops) -> Any:
    """See `abi.FindExperts`."""

    def find_experts(arguments: int, low: int, high: int) -> None:
        ids, used = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        places, noted = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        halt, first = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        last, gate = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        guesses, count = load_i64(int64(arguments + 112)), load_i64(int64(arguments + 120))
        found = ALL
        _note(ids, used, noted + 4)
        for index in range(count):
            _note(load_i64(int64(guesses + 16 * index)), used, noted + 4 + 4 * used * (1 + index))
        for index in range(used):
            if _place(places, ids, index) < 0:
                found = NOT_ALL
        if found == ALL:
            if gate != 0:
                _tell(first, ids, places, used, gate, load_i64(int64(arguments + 64)))
                first += PRODUCT_BYTES * used
            _tell(first, ids, places, used, load_i64(int64(arguments + 72)), load_i64(int64(arguments + 80)))
            _tell(last, ids, places, used, load_i64(int64(arguments + 88)), load_i64(int64(arguments + 96)))
            wanted = load_i64(load_i64(int64(arguments + 104)))
            if wanted < 0:
                found = NOT_ALL_WANTED
            for index in range(min(wanted, count)):
                guess = guesses + 16 * index
                if _is_lacking(load_i64(int64(guess)), load_i64(int64(guess + 8)), used):
                    found = NOT_ALL_WANTED
        store_i32(int64(noted), int32(found))
        if found != ALL:
            store_i64(int64(halt), int64(1))

    return find_experts, kernel_signature()
