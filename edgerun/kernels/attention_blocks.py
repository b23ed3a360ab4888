"""What attention is made of: the same pieces, inlined into the kernels for one token and for many.

The order in which a row's result is summed is defined here, and depends on nothing but the row's own position:

- a score is one chain of fused multiply-adds over the dimensions of the head, in one lane;
- the scores of a block of KEYS positions become weights against the running maximum of their page; what a row may not
  see weighs exactly nothing;
- a page's values are summed in the order of positions, block by block, from nothing;
- pages (KEYS_PER_PAGE positions, counted from position 0 of the sequence) are joined in ascending order.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.attention_chains import build_chains, build_load_two
from edgerun.kernels.attention_layout import KEYS
from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, store_f32

LOWEST = -3.0e38


def build_products(ops: Ops, load: Any, size: int) -> Any:
    """four, two, one, single, eight: sums over `steps` of rows of scalars a (f32, side by side) times vectors b
    (elements of `size` bytes that `load` widens, `step` bytes from one to the next), see `attention_chains`: of four
    rows and two vectors side by side, two and four (of both rows the first two, then the others), one and four, one
    and one, one and eight. Which of them it is, is a matter of how many chains keep the processor busy."""
    zero, fma, splat_load = ops.zero_floats, ops.fma, ops.splat_load
    pair = 2 * size * ops.lanes
    chains = build_chains(ops, build_load_two(load, size * ops.lanes), pair)
    two_twice, one_twice = chains.two_twice, chains.one_twice

    @njit(forceinline=True)
    def two(a: Any, steps: int, b: int, step: int) -> Any:
        return two_twice(a, b, a, b + pair, steps, step)

    @njit(forceinline=True)
    def one(a: Any, steps: int, b: int, step: int) -> Any:
        return one_twice(a, b, a, b + pair, steps, step)

    @njit(forceinline=True)
    def single(a: int, steps: int, b: int, step: int) -> Any:
        r = zero()
        for at in range(0, 4 * steps, 4):
            r = fma(splat_load(int64(a + at)), load(int64(b)), r)
            b += step
        return r

    return chains.four, two, one, single, chains.wide


def build_softmax(ops: Ops) -> Any:
    """(scores (KEYS,), begin, end, scale, cap, state) -> what sums so far are to be multiplied by, in every lane.

    Scores become weights; those outside begin .. end - 1 become 0, whatever they were. `state` is (maximum, sum) of
    the page so far."""
    lanes = ops.lanes
    load, store, exp, first_lane = ops.load_floats, ops.store_floats, ops.exp, ops.first_lane
    zero, plus, minus, times, splat = ops.zero_floats, ops.add, ops.sub, ops.mul, ops.splat
    sum_floats, max_floats, maximum, within, fma_one = (
        ops.sum_floats,
        ops.max_floats,
        ops.maximum,
        ops.within,
        ops.fma_one,
    )
    div, sigmoid = ops.div, sigmoid_of(ops)

    @njit(forceinline=True)
    def softcapped(x: Any, cap: Any) -> Any:
        """cap * tanh(x / cap)."""
        twice = times(splat(float32(2.0)), sigmoid(times(splat(float32(2.0)), div(x, splat(cap)))))
        return times(splat(cap), minus(twice, splat(float32(1.0))))

    @njit(forceinline=True)
    def softmax(scores: int, begin: int, end: int, scale: Any, cap: Any, state: int) -> Any:
        top = splat(float32(LOWEST))
        for j in range(0, KEYS, lanes):
            x = times(load(int64(scores + 4 * j)), splat(scale))
            if cap > float32(0.0):
                x = softcapped(x, cap)
            x = within(x, int64(begin - j), int64(end - j), float32(LOWEST))
            store(int64(scores + 4 * j), x)
            top = maximum(top, x)
        before = load_f32(int64(state))
        now = max(before, max_floats(top))
        highest = splat(now)
        total = zero()
        for j in range(0, KEYS, lanes):
            x = exp(minus(load(int64(scores + 4 * j)), highest))
            store(int64(scores + 4 * j), x)
            total = plus(total, x)
        factor = exp(minus(splat(before), highest))
        store_f32(int64(state), now)
        added = fma_one(load_f32(int64(state + 4)), first_lane(factor), sum_floats(total))
        store_f32(int64(state + 4), added)
        return factor

    return softmax


def build_share(ops: Ops) -> Any:
    """share(maximum, sum, sink) -> what a head's joined values are to be multiplied by: one over the sum of all
    weights. sink: address of one more score, whose weight has no value; 0: none."""
    first_lane, join = ops.first_lane, build_join(ops)

    @njit(forceinline=True)
    def share(top: Any, total: Any, sink: int) -> Any:
        if sink == 0:
            return float32(float32(1.0) / total)
        _, whole, old, _ = join(top, total, load_f32(int64(sink)), float32(1.0))
        return float32(first_lane(old) / whole)

    return share


def build_join(ops: Ops) -> Any:
    """(maximum, sum) of what is joined already, (maximum, sum) of the next page -> both of the whole, and what the
    values of either are to be multiplied by, in every lane."""
    exp, minus, splat, fma_one, first_lane = ops.exp, ops.sub, ops.splat, ops.fma_one, ops.first_lane

    @njit(forceinline=True)
    def join(top: Any, total: Any, page_top: Any, page_total: Any) -> Any:
        highest = max(top, page_top)
        old, new = exp(minus(splat(top), splat(highest))), exp(minus(splat(page_top), splat(highest)))
        whole = fma_one(total, first_lane(old), float32(page_total * first_lane(new)))
        return highest, whole, old, new

    return join
