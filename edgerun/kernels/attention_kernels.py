"""Attention over the f16 cache. Never an n x n matrix: scores live for a chunk of positions at a time.

Decode (one token): an item is (kv head, chunk of positions); it leaves each head's maximum, sum and weighted values,
which `attention_merge` joins (FlashDecoding, Dao et al. 2023). Chunks have a fixed length, so the result does not
depend on the number of threads.

Prompt: an item is (kv head, tile of tokens); keys are turned and widened once a chunk for all rows of the tile, and
the softmax is kept running (FlashAttention, Dao et al. 2022; Milakov and Gimelshein 2018).

Slots: 0 q, 1 k, 2 v, 3 bytes from kv head to kv head in k, 4 in v, 5 head_dim, 6 head_dim of values, 7 heads,
8 heads a kv head, 9 first position, 10 end position, 11 &(scale, softcap), 12 scratch, 13 out, then as stated.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.attention_layout import CHUNK, KEYS, TILE
from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import exchange, load_f16, load_f32, load_i64, store_f32, store_release

LOWEST = -3.0e38


def _softcapped(ops: Ops) -> Any:
    """cap * tanh(x / cap), over lanes."""
    splat, times, minus, div, sigmoid = ops.splat, ops.mul, ops.sub, ops.div, sigmoid_of(ops)

    @njit(forceinline=True)
    def softcapped(x: Any, cap: Any) -> Any:
        twice = times(splat(float32(2.0)), sigmoid(times(splat(float32(2.0)), div(x, splat(cap)))))
        return times(splat(cap), minus(twice, splat(float32(1.0))))

    return softcapped


def build_attention_decode(ops: Ops) -> Any:
    """14 chunks. Scratch: a head's scores (chunks * CHUNK f32), for every head; `out` holds, for every head and
    chunk, head_dim_v weighted values, the maximum, the sum."""
    lanes = ops.lanes
    load, load_halves, store, fma = ops.load_floats, ops.load_halves, ops.store_floats, ops.fma
    load_masked, store_masked = ops.load_floats_masked, ops.store_floats_masked
    zero, plus, minus, splat, exp = ops.zero_floats, ops.add, ops.sub, ops.splat, ops.exp
    sum_floats, softcapped, splat_load = ops.sum_floats, _softcapped(ops), ops.splat_load

    @njit(forceinline=True)
    def dot(q: int, k: int, dim: int) -> Any:
        a, b = zero(), zero()
        i = 0
        while i + 2 * lanes <= dim:
            a = fma(load(int64(q + 4 * i)), load_halves(int64(k + 2 * i)), a)
            b = fma(load(int64(q + 4 * i + 4 * lanes)), load_halves(int64(k + 2 * i + 2 * lanes)), b)
            i += 2 * lanes
        if i + lanes <= dim:
            a = fma(load(int64(q + 4 * i)), load_halves(int64(k + 2 * i)), a)
            i += lanes
        total = sum_floats(plus(a, b))
        while i < dim:
            total += load_f32(int64(q + 4 * i)) * load_f16(int64(k + 2 * i))
            i += 1
        return total

    @njit(forceinline=True)
    def values(w: int, v: int, n: int, dim: int, out: int) -> None:
        i = 0
        while i + 4 * lanes <= dim:
            a, b, c, d = zero(), zero(), zero(), zero()
            row = v + 2 * i
            for p in range(n):
                weight = splat_load(int64(w + 4 * p))
                a = fma(weight, load_halves(int64(row)), a)
                b = fma(weight, load_halves(int64(row + 2 * lanes)), b)
                c = fma(weight, load_halves(int64(row + 4 * lanes)), c)
                d = fma(weight, load_halves(int64(row + 6 * lanes)), d)
                row += 2 * dim
            store(int64(out + 4 * i), a)
            store(int64(out + 4 * i + 4 * lanes), b)
            store(int64(out + 4 * i + 8 * lanes), c)
            store(int64(out + 4 * i + 12 * lanes), d)
            i += 4 * lanes
        while i + lanes <= dim:
            a = zero()
            for p in range(n):
                a = fma(splat_load(int64(w + 4 * p)), load_halves(int64(v + 2 * (p * dim + i))), a)
            store(int64(out + 4 * i), a)
            i += lanes
        while i < dim:
            total = float32(0.0)
            for p in range(n):
                total += load_f32(int64(w + 4 * p)) * load_f16(int64(v + 2 * (p * dim + i)))
            store_f32(int64(out + 4 * i), total)
            i += 1

    def attention_decode(arguments: int, low: int, high: int) -> None:
        q, k = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        v, k_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        v_stride, dim = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        dim_v, group = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 64))
        first, end = load_i64(int64(arguments + 72)), load_i64(int64(arguments + 80))
        constants, scratch = load_i64(int64(arguments + 88)), load_i64(int64(arguments + 96))
        out, chunks = load_i64(int64(arguments + 104)), load_i64(int64(arguments + 112))
        scale, cap = load_f32(constants), load_f32(int64(constants + 4))
        for item in range(low, high):
            kv_head, chunk = item // chunks, item % chunks
            start = first + chunk * CHUNK
            n = min(end - start, CHUNK)
            keys = k + kv_head * k_stride + start * dim * 2
            for h in range(group):
                head = kv_head * group + h
                query = q + head * dim * 4
                scores = scratch + (head * chunks + chunk) * CHUNK * 4
                top = float32(LOWEST)
                for p in range(n):
                    s = dot(query, keys + p * dim * 2, dim) * scale
                    store_f32(int64(scores + 4 * p), s)
                    top = max(top, s)
                if cap > float32(0.0):
                    for p in range(0, n, lanes):
                        s = softcapped(load_masked(int64(scores + 4 * p), int64(n - p)), cap)
                        store_masked(int64(scores + 4 * p), s, int64(n - p))
                    top = float32(LOWEST)
                    for p in range(n):
                        top = max(top, load_f32(int64(scores + 4 * p)))
                highest = splat(top)
                for p in range(0, n, lanes):
                    s = exp(minus(load_masked(int64(scores + 4 * p), int64(n - p)), highest))
                    store_masked(int64(scores + 4 * p), s, int64(n - p))
                total = zero()
                for p in range(0, n, lanes):
                    total = plus(total, load_masked(int64(scores + 4 * p), int64(n - p)))
                result = out + (head * chunks + chunk) * (dim_v + 2) * 4
                values(scores, v + kv_head * v_stride + start * dim_v * 2, n, dim_v, result)
                store_f32(int64(result + 4 * dim_v), top)
                store_f32(int64(result + 4 * dim_v + 4), sum_floats(total))

    return attention_decode, kernel_signature()


def build_attention_merge(ops: Ops) -> Any:
    """0 parts, 1 chunks, 2 head_dim_v, 3 out. An item is a head."""
    lanes = ops.lanes
    load, store, fma, zero, splat = (
        ops.load_floats_masked,
        ops.store_floats_masked,
        ops.fma,
        ops.zero_floats,
        ops.splat,
    )
    exp, sum_floats, times = ops.exp, ops.sum_floats, ops.mul

    @njit(forceinline=True)
    def weight_of(top: Any, highest: Any) -> Any:
        return sum_floats(times(exp(splat(float32(top - highest))), splat(float32(1.0 / lanes))))

    def attention_merge(arguments: int, low: int, high: int) -> None:
        parts, chunks = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        dim, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        size = (dim + 2) * 4
        for head in range(low, high):
            part = parts + head * chunks * size
            highest = float32(LOWEST)
            for c in range(chunks):
                highest = max(highest, load_f32(int64(part + c * size + 4 * dim)))
            total = float32(0.0)
            for c in range(chunks):
                w = weight_of(load_f32(int64(part + c * size + 4 * dim)), highest)
                total += w * load_f32(int64(part + c * size + 4 * dim + 4))
            for i in range(0, dim, lanes):
                acc = zero()
                for c in range(chunks):
                    w = weight_of(load_f32(int64(part + c * size + 4 * dim)), highest) / total
                    acc = fma(splat(float32(w)), load(int64(part + c * size + 4 * i), int64(dim - i)), acc)
                store(int64(out + (head * dim + i) * 4), acc, int64(dim - i))

    return attention_merge, kernel_signature()


def build_attention_prompt(ops: Ops) -> Any:
    """14 tokens, 15 window (0: none), 16 &busy flags, 17 scratch bytes of a slot, 18 position of the first token.

    An item is (tile, kv head), later tiles first because they see more. Scratch of a working thread, f32:
    keys turned (head_dim, KEYS), values (KEYS, padded head_dim_v), scores (4, KEYS), and of each of
    TILE * group rows: weighted values (padded head_dim_v), maximum, sum.
    """
    lanes = ops.lanes
    load, load_halves, store, fma = ops.load_floats, ops.load_halves, ops.store_floats, ops.fma
    load_apart = ops.load_halves_apart
    store_masked, splat_load = ops.store_floats_masked, ops.splat_load
    zero, plus, minus, times, splat, exp = ops.zero_floats, ops.add, ops.sub, ops.mul, ops.splat, ops.exp
    sum_floats, max_floats, maximum, softcapped = ops.sum_floats, ops.max_floats, ops.maximum, _softcapped(ops)

    @njit(forceinline=True)
    def turn_keys(k: int, n: int, dim: int, out: int) -> None:
        p = 0
        while p + lanes <= n:
            for i in range(dim):
                turned = load_apart(int64(k + (p * dim + i) * 2), int64(dim * 2))
                store(int64(out + (i * KEYS + p) * 4), turned)
            p += lanes
        for rest in range(p, n):
            for i in range(dim):
                store_f32(int64(out + (i * KEYS + rest) * 4), load_f16(int64(k + (rest * dim + i) * 2)))
        for i in range(dim):
            for p in range(n, KEYS):
                store_f32(int64(out + (i * KEYS + p) * 4), float32(0.0))

    @njit(forceinline=True)
    def widen_values(v: int, n: int, dim: int, padded: int, out: int) -> None:
        for p in range(n):
            i = 0
            while i + lanes <= dim:
                store(int64(out + (p * padded + i) * 4), load_halves(int64(v + (p * dim + i) * 2)))
                i += lanes
            while i < dim:
                store_f32(int64(out + (p * padded + i) * 4), load_f16(int64(v + (p * dim + i) * 2)))
                i += 1
            while i < padded:
                store_f32(int64(out + (p * padded + i) * 4), float32(0.0))
                i += 1

    @njit(forceinline=True)
    def four_products(a: int, da: int, steps: int, a_step: int, b: int, b_step: int) -> Any:
        """Rows a, a + da, ..: sum over steps of a (scalar) * b (two vectors)."""
        r0, r1, r2, r3 = zero(), zero(), zero(), zero()
        s0, s1, s2, s3 = zero(), zero(), zero(), zero()
        for _ in range(steps):
            x, y = load(int64(b)), load(int64(b + 4 * lanes))
            w = splat_load(int64(a))
            r0, s0 = fma(w, x, r0), fma(w, y, s0)
            w = splat_load(int64(a + da))
            r1, s1 = fma(w, x, r1), fma(w, y, s1)
            w = splat_load(int64(a + 2 * da))
            r2, s2 = fma(w, x, r2), fma(w, y, s2)
            w = splat_load(int64(a + 3 * da))
            r3, s3 = fma(w, x, r3), fma(w, y, s3)
            a += a_step
            b += b_step
        return r0, s0, r1, s1, r2, s2, r3, s3

    @njit(forceinline=True)
    def scores_of(q: int, dq: int, keys: int, dim: int, out: int) -> None:
        for j in range(0, KEYS, 2 * lanes):
            r = four_products(q, dq, dim, 4, keys + 4 * j, 4 * KEYS)
            at = out + 4 * j
            store(int64(at), r[0])
            store(int64(at + 4 * lanes), r[1])
            store(int64(at + 4 * KEYS), r[2])
            store(int64(at + 4 * KEYS + 4 * lanes), r[3])
            store(int64(at + 8 * KEYS), r[4])
            store(int64(at + 8 * KEYS + 4 * lanes), r[5])
            store(int64(at + 12 * KEYS), r[6])
            store(int64(at + 12 * KEYS + 4 * lanes), r[7])

    @njit(forceinline=True)
    def accumulate(at: int, value: Any, factor: Any) -> None:
        store(int64(at), fma(load(int64(at)), factor, value))

    @njit(forceinline=True)
    def softmax_row(s: int, begin: int, n: int, scale: Any, cap: Any, state: int) -> Any:
        """Scores outside [begin, n) count for nothing. Returns what the old sums are to be multiplied by."""
        top = splat(float32(LOWEST))
        for j in range(0, KEYS, lanes):
            x = times(load(int64(s + 4 * j)), splat(scale))
            if cap > float32(0.0):
                x = softcapped(x, cap)
            store(int64(s + 4 * j), x)
        for j in range(begin):
            store_f32(int64(s + 4 * j), float32(LOWEST))
        for j in range(n, KEYS):
            store_f32(int64(s + 4 * j), float32(LOWEST))
        for j in range(0, KEYS, lanes):
            top = maximum(top, load(int64(s + 4 * j)))
        before = load_f32(int64(state))
        now = max(before, max_floats(top))
        highest = splat(now)
        total = zero()
        for j in range(0, KEYS, lanes):
            x = exp(minus(load(int64(s + 4 * j)), highest))
            store(int64(s + 4 * j), x)
            total = plus(total, x)
        # e^(before - now), through the vector form
        factor = sum_floats(times(exp(splat(float32(before - now))), splat(float32(1.0 / lanes))))
        store_f32(int64(state), now)
        store_f32(int64(state + 4), load_f32(int64(state + 4)) * factor + sum_floats(total))
        return factor

    def attention_prompt(arguments: int, low: int, high: int) -> None:
        q, k = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        v, k_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        v_stride, dim = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        dim_v, heads = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        group = load_i64(int64(arguments + 64))
        constants, scratch = load_i64(int64(arguments + 88)), load_i64(int64(arguments + 96))
        out, tokens = load_i64(int64(arguments + 104)), load_i64(int64(arguments + 112))
        window, busy = load_i64(int64(arguments + 120)), load_i64(int64(arguments + 128))
        slot_bytes, position = load_i64(int64(arguments + 136)), load_i64(int64(arguments + 144))
        scale, cap = load_f32(constants), load_f32(int64(constants + 4))
        padded = (dim_v + 2 * lanes - 1) // (2 * lanes) * (2 * lanes)
        tiles = (tokens + TILE - 1) // TILE
        kv_heads = heads // group
        slot = 0
        while exchange(int64(busy + 8 * slot), int64(1)) != 0:
            slot += 1  # one slot a thread: there is always a free one
        keys = scratch + slot * slot_bytes
        values = keys + dim * KEYS * 4
        scores = values + KEYS * padded * 4
        rows = scores + 4 * KEYS * 4
        row_bytes = (padded + 2) * 4
        for item in range(low, high):
            tile, kv_head = tiles - 1 - item // kv_heads, item % kv_heads
            t0 = tile * TILE
            t1 = min(t0 + TILE, tokens)
            count = (t1 - t0) * group  # row r is token t0 + r // group, head kv_head * group + r % group
            for r in range((count + 3) // 4 * 4):
                for i in range(0, padded, lanes):
                    store(int64(rows + r * row_bytes + 4 * i), zero())
                store_f32(int64(rows + r * row_bytes + 4 * padded), float32(LOWEST))
                store_f32(int64(rows + r * row_bytes + 4 * padded + 4), float32(0.0))
            first = 0
            if window > 0:
                first = max(0, position + t0 - window + 1)
            for chunk in range(first, position + t1, KEYS):
                n = min(KEYS, position + t1 - chunk)
                turn_keys(k + kv_head * k_stride + chunk * dim * 2, n, dim, keys)
                widen_values(v + kv_head * v_stride + chunk * dim_v * 2, n, dim_v, padded, values)
                r = 0
                while r < count:
                    # rows of a tile are not evenly spaced when the group is not a multiple of 4: gather them
                    gather = scores + 4 * KEYS * 4 + (TILE * group + 4) * row_bytes
                    for i in range(4):
                        rr = min(r + i, count - 1)
                        source = q + ((t0 + rr // group) * heads + kv_head * group + rr % group) * dim * 4
                        j = 0
                        while j + lanes <= dim:
                            store(int64(gather + (i * dim + j) * 4), load(int64(source + 4 * j)))
                            j += lanes
                        while j < dim:
                            store_f32(int64(gather + (i * dim + j) * 4), load_f32(int64(source + 4 * j)))
                            j += 1
                    scores_of(gather, dim * 4, keys, dim, scores)
                    f0 = float32(1.0)
                    f1 = float32(1.0)
                    f2 = float32(1.0)
                    f3 = float32(1.0)
                    for i in range(4):
                        rr = min(r + i, count - 1)
                        own = position + t0 + rr // group
                        seen = max(0, min(n, own + 1 - chunk))
                        begin = 0
                        if window > 0:
                            begin = min(seen, max(0, own - window + 1 - chunk))
                        s = scores + i * KEYS * 4
                        state = rows + (r + i) * row_bytes + 4 * padded
                        factor = float32(1.0)
                        if seen > begin:
                            factor = softmax_row(s, begin, seen, scale, cap, state)
                        else:
                            for j in range(0, KEYS, lanes):
                                store(int64(s + 4 * j), zero())
                        if i == 0:
                            f0 = factor
                        elif i == 1:
                            f1 = factor
                        elif i == 2:
                            f2 = factor
                        else:
                            f3 = factor
                    for i in range(0, padded, 2 * lanes):
                        p = four_products(scores, 4 * KEYS, n, 4, values + 4 * i, 4 * padded)
                        at = rows + r * row_bytes + 4 * i
                        accumulate(at, p[0], splat(f0))
                        accumulate(at + 4 * lanes, p[1], splat(f0))
                        at += row_bytes
                        accumulate(at, p[2], splat(f1))
                        accumulate(at + 4 * lanes, p[3], splat(f1))
                        at += row_bytes
                        accumulate(at, p[4], splat(f2))
                        accumulate(at + 4 * lanes, p[5], splat(f2))
                        at += row_bytes
                        accumulate(at, p[6], splat(f3))
                        accumulate(at + 4 * lanes, p[7], splat(f3))
                    r += 4
            for r in range(count):
                source = rows + r * row_bytes
                target = out + ((t0 + r // group) * heads + kv_head * group + r % group) * dim_v * 4
                inverse = splat(float32(1.0) / load_f32(int64(source + 4 * padded + 4)))
                for i in range(0, dim_v, lanes):
                    value = times(load(int64(source + 4 * i)), inverse)
                    store_masked(int64(target + 4 * i), value, int64(dim_v - i))
        store_release(int64(busy + 8 * slot), int64(0))

    return attention_prompt, kernel_signature()
