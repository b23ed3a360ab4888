"""What recurrent layers carry from row to row: the last inputs of a convolution, and matrices that every row changes.

Rows go one after another, whatever they are computed with, so that a row's bits do not depend on how a text was cut;
columns are independent, and share the work. A row's states are found through a table of two addresses, its source's and
its target's (`states`): a row whose source is the target of the one before goes on from it, one without a target
repeats its result.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64
from edgerun.kernels.states import CONV_COLUMNS, SCAN_COLUMNS


def build_causal_conv(ops: Ops) -> Any:
    """See `state_abi.CausalConv`. Sums go from the bias on, the oldest input first."""
    lanes, sigmoid = ops.lanes, sigmoid_of(ops)
    gather, fma, times, zero = ops.gather, ops.fma, ops.mul, ops.zero_floats
    whole_load, whole_store = ops.load_floats, ops.store_floats
    load, store = ops.load_floats_masked, ops.store_floats_masked

    @njit(forceinline=True)
    def four_taps(arguments: int, i: int) -> None:
        """Columns i .. i + lanes - 1, all of which there are, of four taps: weights and inputs stay in registers."""
        u, u_stride = load_i64(int64(arguments)) + 4 * i, load_i64(int64(arguments + 8))
        w, bias = load_i64(int64(arguments + 16)) + 16 * i, load_i64(int64(arguments + 24))
        out, out_stride = load_i64(int64(arguments + 32)) + 4 * i, load_i64(int64(arguments + 40))
        rows, below = load_i64(int64(arguments + 48)), 4 * load_i64(int64(arguments + 56))
        silu, table = load_i64(int64(arguments + 72)), load_i64(int64(arguments + 80))
        at = load_i64(int64(arguments + 88)) + 4 * i
        w0, w1 = gather(int64(w), int64(16), int64(lanes)), gather(int64(w + 4), int64(16), int64(lanes))
        w2, w3 = gather(int64(w + 8), int64(16), int64(lanes)), gather(int64(w + 12), int64(16), int64(lanes))
        first = whole_load(int64(bias + 4 * i)) if bias != 0 else zero()
        x0, x1, x2, total, before = zero(), zero(), zero(), zero(), 0
        for row in range(rows):
            source, target = load_i64(int64(table + 16 * row)), load_i64(int64(table + 16 * row + 8))
            if target == 0:
                whole_store(int64(out + row * out_stride), total)
                continue
            if source != before:
                x0, x1 = whole_load(int64(source + at)), whole_load(int64(source + at + below))
                x2 = whole_load(int64(source + at + 2 * below))
            x3 = whole_load(int64(u + row * u_stride))
            total = fma(x3, w3, fma(x2, w2, fma(x1, w1, fma(x0, w0, first))))
            if silu != 0:
                total = times(total, sigmoid(total))
            whole_store(int64(out + row * out_stride), total)
            x0, x1, x2, before = x1, x2, x3, target
            whole_store(int64(target + at), x0)
            whole_store(int64(target + at + below), x1)
            whole_store(int64(target + at + 2 * below), x2)

    @njit(forceinline=True)
    def any_taps(arguments: int, i: int, n: int) -> None:
        """The n columns from i on."""
        u, u_stride = load_i64(int64(arguments)) + 4 * i, load_i64(int64(arguments + 8))
        weight, bias = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        out, out_stride = load_i64(int64(arguments + 32)) + 4 * i, load_i64(int64(arguments + 40))
        rows, below = load_i64(int64(arguments + 48)), 4 * load_i64(int64(arguments + 56))
        taps, silu = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        table, at = load_i64(int64(arguments + 80)), load_i64(int64(arguments + 88)) + 4 * i
        w, next_weight, total = weight + 4 * taps * i, int64(4 * taps), zero()
        for row in range(rows):
            source, target = load_i64(int64(table + 16 * row)), load_i64(int64(table + 16 * row + 8))
            if target == 0:
                store(int64(out + row * out_stride), total, n)
                continue
            x = load(int64(u + row * u_stride), n)
            total = load(int64(bias + 4 * i), n) if bias != 0 else zero()
            for tap in range(taps - 1):
                seen = load(int64(source + at + tap * below), n)
                total = fma(seen, gather(int64(w + 4 * tap), next_weight, n), total)
                if tap > 0:
                    store(int64(target + at + (tap - 1) * below), seen, n)
            total = fma(x, gather(int64(w + 4 * (taps - 1)), next_weight, n), total)
            if silu != 0:
                total = times(total, sigmoid(total))
            store(int64(out + row * out_stride), total, n)
            if taps > 1:
                store(int64(target + at + (taps - 2) * below), x, n)

    def causal_conv(arguments: int, low: int, high: int) -> None:
        cols, taps = load_i64(int64(arguments + 56)), load_i64(int64(arguments + 64))
        for i in range(low * CONV_COLUMNS, min(high * CONV_COLUMNS, cols), lanes):
            if taps == 4 and i + lanes <= cols:
                four_taps(arguments, i)
            else:
                any_taps(arguments, i, int64(min(lanes, cols - i)))

    return causal_conv, kernel_signature()


def build_scan(ops: Ops) -> Any:
    """See `state_abi.Scan`.

    With the delta rule a row needs what the matrix before it says of its key, k @ M: M would be gone over twice. But
    the result is known without the new matrix, q @ (M + outer(k, r)) = q @ M + (q . k) r: so a row's change is made
    when the next row goes over the matrix, once. Sums over keys go by two, over even and over odd ones."""
    lanes = ops.lanes
    fma, plus, minus, times, splat = ops.fma, ops.add, ops.sub, ops.mul, ops.splat
    zero, splat_load, sum_floats = ops.zero_floats, ops.splat_load, ops.sum_floats
    load_some, store_some = ops.load_floats_masked, ops.store_floats_masked

    @njit(forceinline=True)
    def dot(a: int, b: int, n: int) -> Any:
        total = zero()
        for i in range(0, n, lanes):
            total = fma(load_some(int64(a + 4 * i), int64(n - i)), load_some(int64(b + 4 * i), int64(n - i)), total)
        return splat(sum_floats(total))

    def build_column(load: Any, store: Any) -> Any:
        """Of a vector of columns, n of which there are."""

        @njit(forceinline=True)
        def changed(m: int, to: int, n: int, key: int, r: Any, decay: Any) -> Any:
            """A row of the matrix, which lies at m and goes to `to`, after it was multiplied and r * key added."""
            value = fma(splat_load(int64(key)), r, times(decay, load(int64(m), n)))
            store(int64(to), value, n)
            return value

        @njit(forceinline=True)
        def change(m: int, to: int, n: int, row_bytes: int, dim: int, key: int, r: Any, decay: Any) -> None:
            for i in range(dim):
                changed(m + i * row_bytes, to + i * row_bytes, n, key + 4 * i, r, decay)

        @njit(forceinline=True)
        def look(m: int, n: int, row_bytes: int, dim: int, k: int, q: int) -> Any:
            """k @ M, q @ M."""
            p0, p1, o0, o1 = zero(), zero(), zero(), zero()
            for i in range(0, dim - 1, 2):
                at = m + i * row_bytes
                one, two = load(int64(at), n), load(int64(at + row_bytes), n)
                p0, o0 = fma(splat_load(int64(k + 4 * i)), one, p0), fma(splat_load(int64(q + 4 * i)), one, o0)
                p1, o1 = fma(splat_load(int64(k + 4 * i + 4)), two, p1), fma(splat_load(int64(q + 4 * i + 4)), two, o1)
            if dim % 2 != 0:
                i = dim - 1
                one = load(int64(m + i * row_bytes), n)
                p0, o0 = fma(splat_load(int64(k + 4 * i)), one, p0), fma(splat_load(int64(q + 4 * i)), one, o0)
            return plus(p0, p1), plus(o0, o1)

        @njit(forceinline=True)
        def change_and_look(
            m: int, to: int, n: int, row_bytes: int, dim: int, key: int, r: Any, decay: Any, k: int, q: int
        ) -> Any:
            """`change`, then `look`, in one go."""
            p0, p1, o0, o1 = zero(), zero(), zero(), zero()
            for i in range(0, dim - 1, 2):
                at, there = m + i * row_bytes, to + i * row_bytes
                one = changed(at, there, n, key + 4 * i, r, decay)
                two = changed(at + row_bytes, there + row_bytes, n, key + 4 * i + 4, r, decay)
                p0, o0 = fma(splat_load(int64(k + 4 * i)), one, p0), fma(splat_load(int64(q + 4 * i)), one, o0)
                p1, o1 = fma(splat_load(int64(k + 4 * i + 4)), two, p1), fma(splat_load(int64(q + 4 * i + 4)), two, o1)
            if dim % 2 != 0:
                i = dim - 1
                one = changed(m + i * row_bytes, to + i * row_bytes, n, key + 4 * i, r, decay)
                p0, o0 = fma(splat_load(int64(k + 4 * i)), one, p0), fma(splat_load(int64(q + 4 * i)), one, o0)
            return plus(p0, p1), plus(o0, o1)

        @njit(forceinline=True)
        def column(arguments: int, head: int, key_head: int, first: int, at: int, n: int, row_bytes: int) -> None:
            """Values `first` and on of a head; the matrix's are at `at` bytes in a block."""
            heads, key_dim = load_i64(int64(arguments + 88)), load_i64(int64(arguments + 104))
            value_dim = load_i64(int64(arguments + 112))
            q, q_stride = load_i64(int64(arguments)) + 4 * key_head * key_dim, load_i64(int64(arguments + 8))
            k, k_stride = load_i64(int64(arguments + 16)) + 4 * key_head * key_dim, load_i64(int64(arguments + 24))
            v = load_i64(int64(arguments + 32)) + 4 * (head * value_dim + first)
            v_stride, out_stride = load_i64(int64(arguments + 40)), 4 * heads * value_dim
            decays, steps = load_i64(int64(arguments + 48)) + 4 * head, load_i64(int64(arguments + 56)) + 4 * head
            skip = load_i64(int64(arguments + 64))
            out = load_i64(int64(arguments + 72)) + 4 * (head * value_dim + first)
            rows, table = load_i64(int64(arguments + 80)), load_i64(int64(arguments + 144))
            scale, delta = splat_load(load_i64(int64(arguments + 120))), load_i64(int64(arguments + 128))
            kept = splat_load(int64(skip + 4 * head)) if skip != 0 else zero()
            # of the row whose change is still to be made: where its matrix is and goes, key, r, decay
            from_at, to_at, key, r, g, result = 0, 0, 0, zero(), zero(), zero()
            for row in range(rows):
                source, target = load_i64(int64(table + 16 * row)) + at, load_i64(int64(table + 16 * row + 8))
                if target == 0:
                    store(int64(out + row * out_stride), result, n)
                    continue
                k_row, q_row, values = k + row * k_stride, q + row * q_stride, load(int64(v + row * v_stride), n)
                decay, step = splat_load(int64(decays + 4 * row * heads)), splat_load(int64(steps + 4 * row * heads))
                if delta == 0:
                    r = times(values, step)
                    to = target + at
                    _, o = change_and_look(source, to, n, row_bytes, key_dim, k_row, r, decay, q_row, q_row)
                    result = times(scale, o)
                else:
                    if to_at != 0 and source == to_at:
                        p, o = change_and_look(from_at, to_at, n, row_bytes, key_dim, key, r, g, k_row, q_row)
                    else:
                        if to_at != 0:
                            change(from_at, to_at, n, row_bytes, key_dim, key, r, g)
                        p, o = look(source, n, row_bytes, key_dim, k_row, q_row)
                    r = times(minus(values, times(decay, p)), step)
                    result = times(scale, fma(dot(q_row, k_row, key_dim), r, times(decay, o)))
                    from_at, to_at, key, g = source, target + at, k_row, decay
                if skip != 0:
                    result = fma(kept, values, result)
                store(int64(out + row * out_stride), result, n)
            if to_at != 0:
                change(from_at, to_at, n, row_bytes, key_dim, key, r, g)

        return column

    whole_load, whole_store = ops.load_floats, ops.store_floats

    @njit(forceinline=True)
    def load_all(at: int, n: int) -> Any:
        return whole_load(at)

    @njit(forceinline=True)
    def store_all(at: int, value: Any, n: int) -> None:
        whole_store(at, value)

    whole, some = build_column(load_all, store_all), build_column(load_some, store_some)

    def scan(arguments: int, low: int, high: int) -> None:
        heads, key_heads = load_i64(int64(arguments + 88)), load_i64(int64(arguments + 96))
        key_dim, value_dim = load_i64(int64(arguments + 104)), load_i64(int64(arguments + 112))
        turn, states_at = load_i64(int64(arguments + 136)), load_i64(int64(arguments + 152))
        groups, together = (value_dim + SCAN_COLUMNS - 1) // SCAN_COLUMNS, turn * (heads // key_heads)
        for item in range(low, high):
            head, first = item // groups, item % groups * SCAN_COLUMNS
            key_head = head // together * turn + head % turn
            width = min(SCAN_COLUMNS, value_dim - first)
            at = states_at + 4 * key_dim * (head * value_dim + first)
            for i in range(0, width, lanes):
                if i + lanes <= width:
                    whole(arguments, head, key_head, first + i, at + 4 * i, int64(lanes), 4 * width)
                else:
                    some(arguments, head, key_head, first + i, at + 4 * i, int64(width - i), 4 * width)

    return scan, kernel_signature()
