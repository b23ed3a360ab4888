"""Attention over pages of keys and values. Never an n x n matrix: scores live for a block of positions at a time.

Decode (single rows, of any sequences): an item is (row, kv head, page of positions); it leaves each head's maximum, sum
and weighted values, which `attention_merge` joins (FlashDecoding, Dao et al. 2023).

Prompt (many rows of one sequence): an item is (kv head, tile of rows); keys and values are widened once a block for all
rows of the tile, and the softmax is kept running (FlashAttention, Dao et al. 2022; Milakov and Gimelshein 2018).

Both are made of the pieces of `attention_blocks` over the same blocks and pages, which are counted from the sequence's
first position: a row's result is the same to the bit whichever computes it, and whatever else is computed with it.
`attention_layout` says how keys and values lie, `abi` what the slots of the arguments are. A working thread takes a
slot of scratch by its busy flag.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.abi import LIST_AT
from edgerun.kernels.attention_blocks import LOWEST, build_join, build_products, build_share, build_softmax
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE, STRIP
from edgerun.kernels.attention_quantised import build_scaled, build_scores, build_values
from edgerun.kernels.attention_rows import build_several
from edgerun.kernels.attention_turned import build_turn, build_turn_panels
from edgerun.kernels.kv_formats import F16, GROUP, IN_KEYS, Q4_0, Q8_0, KvFormat
from edgerun.kernels.kv_kernels import block_bytes, build_widen, keys_block_bytes
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import exchange, load_f16, load_f32, load_i64, store_f32, store_release

_PLAIN, _BYTES, _NIBBLES, _IN_KEYS = F16.number, Q8_0.number, Q4_0.number, IN_KEYS.number
_ROW_BYTES = 64  # of an `attention_abi.AttentionRow`


@njit(forceinline=True)
def _places(arguments: int) -> Any:
    """keys_at, values_at, keys_stride, values_stride, head_dim, head_dim_v, group: what both kinds begin with."""
    keys_at, values_at = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
    k_stride, v_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
    dim, dim_v = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
    return keys_at, values_at, k_stride, v_stride, dim, dim_v, load_i64(int64(arguments + 48))


@njit(forceinline=True)
def _taken(arguments: int) -> Any:
    """scale, softcap, scratch that is this thread's until it clears the flag, and the flag's address."""
    constants, scratch = load_i64(int64(arguments + 56)), load_i64(int64(arguments + 64))
    busy, slot_bytes = load_i64(int64(arguments + 72)), load_i64(int64(arguments + 80))
    slot = 0
    while exchange(int64(busy + 8 * slot), int64(1)) != 0:
        slot += 1  # one slot a thread: there is always a free one
    return load_f32(constants), load_f32(int64(constants + 4)), scratch + slot * slot_bytes, busy + 8 * slot


def build_attention_decode(ops: Ops, keys_format: KvFormat = F16, values_format: KvFormat = F16) -> Any:
    """See `attention_abi.AttentionDecode`. Of a row, for every head and page: head_dim_v weighted values, maximum, sum.

    Scratch of a working thread, f32: scores (4, KEYS), for quantised values also (groups, 4, KEYS); for values in keys
    these, f16 (KEYS, head_dim_v). Heads of a kv head go by fours, twos and ones."""
    lanes = ops.lanes
    load, store, fma, fma_one, first_lane = ops.load_floats, ops.store_floats, ops.fma, ops.fma_one, ops.first_lane
    zero, softmax = ops.zero_floats, build_softmax(ops)
    four, two, one, single, eight = build_products(ops, ops.load_halves, 2)
    keys_number, values_number = keys_format.number, values_format.number

    @njit(forceinline=True)
    def put(scores: int, row: int, j: int, a: Any, b: Any) -> None:
        """Scores of a row from position j on."""
        at = scores + 4 * (row * KEYS + j)
        store(int64(at), a)
        store(int64(at + 4 * lanes), b)

    @njit(forceinline=True)
    def scores_of(rows: int, q: int, dq: int, keys: int, dim: int, begin: int, end: int, out: int) -> None:
        step, two_vectors = 2 * KEYS, 2 * lanes
        if rows == 4:
            for j in range(begin // (2 * lanes) * (2 * lanes), end, 2 * lanes):
                r = four((q, q + dq, q + 2 * dq, q + 3 * dq), dim, keys + 2 * j, step)
                put(out, 0, j, r[0], r[1])
                put(out, 1, j, r[2], r[3])
                put(out, 2, j, r[4], r[5])
                put(out, 3, j, r[6], r[7])
            return
        j = begin // (4 * lanes) * (4 * lanes)
        if rows == 2:
            while j < end:
                r = two((q, q + dq), dim, keys + 2 * j, step)
                put(out, 0, j, r[0], r[1])
                put(out, 1, j, r[2], r[3])
                put(out, 0, j + two_vectors, r[4], r[5])
                put(out, 1, j + two_vectors, r[6], r[7])
                j += 4 * lanes
            return
        while j + 4 * lanes < end and j + 8 * lanes <= KEYS:
            r = eight((q,), dim, keys + 2 * j, step)
            put(out, 0, j, r[0], r[1])
            put(out, 0, j + two_vectors, r[2], r[3])
            put(out, 0, j + 2 * two_vectors, r[4], r[5])
            put(out, 0, j + 3 * two_vectors, r[6], r[7])
            j += 8 * lanes
        while j < end:
            s = one((q,), dim, keys + 2 * j, step)
            put(out, 0, j, s[0], s[1])
            put(out, 0, j + two_vectors, s[2], s[3])
            j += 4 * lanes

    @njit(forceinline=True)
    def gather(at: int, factor: Any, a: Any, b: Any) -> None:
        store(int64(at), fma(load(int64(at)), factor, a))
        store(int64(at + 4 * lanes), fma(load(int64(at + 4 * lanes)), factor, b))

    @njit(forceinline=True)
    def rest(w: int, n: int, v: int, dim: int, i: int, out: int, factor: Any) -> None:
        """A row's dimensions from i on: by single vectors, then one by one."""
        while i + lanes <= dim:
            at = int64(out + 4 * i)
            store(at, fma(load(at), factor, single(w, n, v + 2 * i, 2 * dim)))
            i += lanes
        while i < dim:
            total = float32(0.0)
            for p in range(n):
                total = fma_one(load_f32(int64(w + 4 * p)), load_f16(int64(v + 2 * (p * dim + i))), total)
            at = int64(out + 4 * i)
            store_f32(at, fma_one(load_f32(at), first_lane(factor), total))
            i += 1

    @njit(forceinline=True)
    def values_of(rows: int, w: int, n: int, v: int, dim: int, out: int, stride: int, f: Any) -> None:
        """Rows of weights (n of every KEYS) times values (n, dim), added to the rows of `out`, `stride` bytes apart."""
        dw, pair, i = 4 * KEYS, 8 * lanes, 0
        if rows == 4:
            while i + 2 * lanes <= dim:
                r = four((w, w + dw, w + 2 * dw, w + 3 * dw), n, v + 2 * i, 2 * dim)
                at = out + 4 * i
                gather(at, f[0], r[0], r[1])
                gather(at + stride, f[1], r[2], r[3])
                gather(at + 2 * stride, f[2], r[4], r[5])
                gather(at + 3 * stride, f[3], r[6], r[7])
                i += 2 * lanes
            rest(w + dw, n, v, dim, i, out + stride, f[1])
            rest(w + 2 * dw, n, v, dim, i, out + 2 * stride, f[2])
            rest(w + 3 * dw, n, v, dim, i, out + 3 * stride, f[3])
        elif rows == 2:
            while i + 4 * lanes <= dim:
                r = two((w, w + dw), n, v + 2 * i, 2 * dim)
                at = out + 4 * i
                gather(at, f[0], r[0], r[1])
                gather(at + stride, f[1], r[2], r[3])
                gather(at + pair, f[0], r[4], r[5])
                gather(at + stride + pair, f[1], r[6], r[7])
                i += 4 * lanes
            rest(w + dw, n, v, dim, i, out + stride, f[1])
        else:
            while i + 8 * lanes <= dim:
                r = eight((w,), n, v + 2 * i, 2 * dim)
                at = out + 4 * i
                gather(at, f[0], r[0], r[1])
                gather(at + pair, f[0], r[2], r[3])
                gather(at + 2 * pair, f[0], r[4], r[5])
                gather(at + 3 * pair, f[0], r[6], r[7])
                i += 8 * lanes
            while i + 4 * lanes <= dim:
                s = one((w,), n, v + 2 * i, 2 * dim)
                at = out + 4 * i
                gather(at, f[0], s[0], s[1])
                gather(at + pair, f[0], s[2], s[3])
                i += 4 * lanes
        rest(w, n, v, dim, i, out, f[0])

    @njit(forceinline=True)
    def plain_values(
        rows: int, w: int, first: int, n: int, block: int, dim: int, out: int, stride: int, f: Any, space: int
    ) -> None:
        values_of(rows, w + 4 * first, n, block + first * dim * 2, dim, out, stride, f)

    add_scores = scores_of if keys_format.is_plain else build_scores(ops, keys_format)
    in_keys = values_format is IN_KEYS
    add_values = plain_values if values_format.is_plain or in_keys else build_values(ops, values_format)
    turn = build_turn(lanes, 2)

    @njit(forceinline=True)
    def empty(part: int, dim: int) -> None:
        for i in range(dim):
            store_f32(int64(part + 4 * i), float32(0.0))
        store_f32(int64(part + 4 * dim), float32(LOWEST))
        store_f32(int64(part + 4 * dim + 4), float32(0.0))

    def attention_decode(arguments: int, low: int, high: int) -> None:
        keys_at, values_at, k_stride, v_stride, dim, dim_v, group = _places(arguments)
        scale, cap, scores, flag = _taken(arguments)
        count = load_i64(int64(arguments + 88))
        part_bytes = (dim_v + 2) * 4
        row = arguments + LIST_AT
        last = row + (count - 1) * _ROW_BYTES
        for item in range(low, high):
            while row < last and load_i64(int64(row + _ROW_BYTES)) <= item:
                row += _ROW_BYTES
            q, table = load_i64(int64(row + 8)), load_i64(int64(row + 16))
            first, end = load_i64(int64(row + 24)), load_i64(int64(row + 32))
            stride = load_i64(int64(row + 48)) * part_bytes  # from head to head
            pages = (end - 1) // KEYS_PER_PAGE - first // KEYS_PER_PAGE + 1
            within = item - load_i64(int64(row))
            kv_head, number = within // pages, within % pages
            start = (first // KEYS_PER_PAGE + number) * KEYS_PER_PAGE
            after = min(end, start + KEYS_PER_PAGE)
            begin = max(first, start)
            page = load_i64(int64(table + start // KEYS_PER_PAGE * 8))
            page_keys = page + keys_at + kv_head * k_stride
            page_values = page + values_at + kv_head * v_stride
            parts = load_i64(int64(row + 40)) + kv_head * group * stride + number * part_bytes
            for h in range(group):
                empty(parts + h * stride, dim_v)
            for at in range(begin // KEYS * KEYS, after, KEYS):
                lowest, n = max(0, begin - at), min(KEYS, after - at)
                block = (at - start) // KEYS
                keys = page_keys + block * keys_block_bytes(keys_number, dim)
                values = page_values + block * block_bytes(values_number, dim_v)
                if in_keys:
                    values = scores + 4 * KEYS * 4
                    turn(keys + (dim - dim_v) * KEYS * 2, dim_v, values, 2 * dim_v)
                h = 0
                while h < group:
                    rows = min(4, group - h)
                    if rows == 3:
                        rows = 2
                    head = q + (kv_head * group + h) * dim * 4
                    add_scores(rows, head, dim * 4, keys, dim, lowest, n, scores)
                    part = parts + h * stride
                    state = part + 4 * dim_v
                    f0 = softmax(scores, lowest, n, scale, cap, state)
                    f1, f2, f3 = zero(), zero(), zero()
                    if rows > 1:
                        f1 = softmax(scores + 4 * KEYS, lowest, n, scale, cap, state + stride)
                    if rows > 2:
                        f2 = softmax(scores + 8 * KEYS, lowest, n, scale, cap, state + 2 * stride)
                        f3 = softmax(scores + 12 * KEYS, lowest, n, scale, cap, state + 3 * stride)
                    f, space = (f0, f1, f2, f3), scores + 4 * KEYS * 4
                    add_values(rows, scores, lowest, n - lowest, values, dim_v, part, stride, f, space)
                    h += rows
        store_release(int64(flag), int64(0))

    return attention_decode, kernel_signature()


def build_attention_prompt(ops: Ops) -> Any:
    """See `attention_abi.AttentionPrompt`: later tiles come first because they see more.

    Keys and values of a block lie in panels as wide as two vectors (`kv_kernels.build_widen`), and all rows of a tile
    pass a panel before the next: it stays in the nearest cache meanwhile, where a block of wide heads would not.
    Scratch of a working thread, f32: keys (head_dim, KEYS), values (KEYS, padded head_dim_v), scaled weights of
    `together` rows (KEYS), scores and factors of a tile's rows (KEYS), (lanes), and twice of each of these rows,
    for the page and for the pages before: weighted values (padded head_dim_v), maximum, sum.
    """
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats, ops.store_floats, ops.fma, ops.mul
    store_masked, zero, splat = ops.store_floats_masked, ops.zero_floats, ops.splat
    softmax, join, share = build_softmax(ops), build_join(ops), build_share(ops)
    widen_keys, widen_values = build_widen(ops)
    scaled, load_halves = build_scaled(ops), ops.load_halves
    together, queries, spread, moved, sums, begun, add_scaled, stored, joined = build_several(ops)
    turn, panel = build_turn_panels(lanes), 2 * lanes

    @njit(forceinline=True)
    def empty(row: int, padded: int) -> None:
        for i in range(0, padded, lanes):
            store(int64(row + 4 * i), zero())
        store_f32(int64(row + 4 * padded), float32(LOWEST))
        store_f32(int64(row + 4 * padded + 4), float32(0.0))

    @njit(forceinline=True)
    def add_page(row: int, whole: int, padded: int) -> None:
        at, to = row + 4 * padded, whole + 4 * padded
        top, total, old, new = join(
            load_f32(int64(to)), load_f32(int64(to + 4)), load_f32(int64(at)), load_f32(int64(at + 4))
        )
        store_f32(int64(to), top)
        store_f32(int64(to + 4), total)
        for i in range(0, padded, lanes):
            added = times(load(int64(row + 4 * i)), new)
            store(int64(whole + 4 * i), fma(load(int64(whole + 4 * i)), old, added))

    @njit(forceinline=True)
    def first_of(own: int, window: int) -> int:
        """The first position that a row at position `own` sees."""
        if window > 0:
            return max(0, own - window + 1)
        if window < 0:
            return own // -window * -window
        return 0

    @njit(forceinline=True)
    def seen(own: int, window: int, at: int) -> Any:
        """Which positions of the block from `at` on a row at position `own` sees: begin, end; none: (0, 0)."""
        end = max(0, min(KEYS, own + 1 - at))
        begin = max(0, first_of(own, window) - at)
        if begin >= end:
            begin, end = 0, 0
        return begin, end

    @njit(forceinline=True)
    def last_seen(first: int, last: int, window: int, at: int) -> int:
        """How many positions of the block from `at` on the rows at positions first .. last see, at most."""
        return 0 if first_of(first, window) >= at + KEYS else max(0, min(KEYS, last + 1 - at))

    @njit(forceinline=True)
    def add_scores(qs: Any, dim: int, kept: int, format: int, keys: int, j: int, to: int) -> None:
        """Scores of rows for the panel of positions from j on."""
        if format == _PLAIN:
            stored(sums(qs, dim, keys + 4 * j * dim, 4 * panel), to + 4 * j, 4 * KEYS)
            return
        chain = GROUP if format == _BYTES else GROUP // 2  # dimensions whose codes are summed together
        p = begun(qs, kept, dim, format)
        for i in range(0, dim, chain):
            scales = kept + i // GROUP * block_bytes(format, GROUP) + 2 * j
            a, b = load_halves(int64(scales)), load_halves(int64(scales + 2 * lanes))
            codes = sums(moved(qs, 4 * i), chain, keys + 4 * (j * dim + i * panel), 4 * panel)
            p = add_scaled(a, b, codes, p)
        stored(p, to + 4 * j, 4 * KEYS)

    def attention_prompt(arguments: int, low: int, high: int) -> None:
        keys_at, values_at, k_stride, v_stride, dim, dim_v, group = _places(arguments)
        scale, cap, keys, flag = _taken(arguments)
        q, table = load_i64(int64(arguments + 88)), load_i64(int64(arguments + 96))
        heads, out = load_i64(int64(arguments + 104)), load_i64(int64(arguments + 112))
        tokens, window = load_i64(int64(arguments + 120)), load_i64(int64(arguments + 128))
        position = load_i64(int64(arguments + 136))
        keys_format, values_format = load_i64(int64(arguments + 144)), load_i64(int64(arguments + 152))
        sinks, tile_rows = load_i64(int64(arguments + 160)), load_i64(int64(arguments + 168))
        padded = (dim_v + panel - 1) // panel * panel
        quantised = values_format in (_BYTES, _NIBBLES)
        tiles = (tokens + tile_rows - 1) // tile_rows
        kv_heads = heads // group
        values = keys + dim * KEYS * 4
        space = values + KEYS * padded * 4
        scores = space + together * KEYS * 4
        factors = scores + (tile_rows * group + together) * KEYS * 4
        rows = factors + (tile_rows * group + together) * lanes * 4
        row_bytes = (padded + 2) * 4
        wholes = rows + (tile_rows * group + together) * row_bytes
        for item in range(low, high):
            tile, kv_head = tiles - 1 - item // kv_heads, item % kv_heads
            t0 = tile * tile_rows
            t1 = min(t0 + tile_rows, tokens)
            count = (t1 - t0) * group  # row r is token t0 + r // group, head kv_head * group + r % group
            own, end = position + t0, position + t1
            first_q = q + (t0 * heads + kv_head * group) * dim * 4
            first = first_of(own, window) // KEYS * KEYS
            for r in range((count + together - 1) // together * together):
                empty(wholes + r * row_bytes, padded)
            for at in range(first, end, KEYS):
                n = min(KEYS, end - at)
                if at == first or at % KEYS_PER_PAGE == 0:
                    for r in range((count + together - 1) // together * together):
                        empty(rows + r * row_bytes, padded)
                page, block = load_i64(int64(table + at // KEYS_PER_PAGE * 8)), at % KEYS_PER_PAGE // KEYS
                kept_keys = page + keys_at + kv_head * k_stride + block * keys_block_bytes(keys_format, dim)
                widen_keys(kept_keys, dim, keys_format, keys)
                kept_values = page + values_at + kv_head * v_stride + block * block_bytes(values_format, dim_v)
                if values_format == _IN_KEYS:
                    turn(keys + (dim - dim_v) * 4 * panel, 4 * panel * dim, dim_v, padded, values)
                else:
                    widen_values(kept_values, n, dim_v, padded, values_format, values)
                for j in range(0, n, panel):
                    for r in range(0, count, together):
                        # the last rows may stand for less than there are: the others repeat the last
                        after = min(r + together, count)
                        if last_seen(own + r // group, own + (after - 1) // group, window, at) > j:
                            qs = queries(first_q, r, count, group, heads * dim * 4, dim * 4)
                            add_scores(qs, dim, kept_keys, keys_format, keys, j, scores + 4 * KEYS * r)
                for r in range((count + together - 1) // together * together):
                    begin, seen_end = seen(own + min(r, count - 1) // group, window, at)
                    factor = splat(float32(-1.0))  # sees nothing of the block
                    if seen_end > 0:
                        state = rows + r * row_bytes + 4 * padded
                        factor = softmax(scores + 4 * KEYS * r, begin, seen_end, scale, cap, state)
                    store(int64(factors + 4 * lanes * r), factor)
                step = GROUP if quantised else panel
                for r0 in range(0, count, STRIP):
                    for i in range(0, padded, step):
                        for r in range(r0, min(r0 + STRIP, count), together):
                            after = min(r + together, count)
                            last = last_seen(own + r // group, own + (after - 1) // group, window, at)
                            if last > 0:
                                w, to = scores + 4 * KEYS * r, rows + r * row_bytes
                                if quantised:
                                    scaled(together, w, kept_values + i // GROUP * 2 * KEYS, space)
                                    w = space
                                for c in range(i, i + step, panel):
                                    p = sums(spread(w, 4 * KEYS), last, values + 4 * c * KEYS, 4 * panel)
                                    joined(p, to + 4 * c, row_bytes, factors + 4 * lanes * r)
                if at + KEYS >= end or (at + KEYS) % KEYS_PER_PAGE == 0:
                    page_begin = at // KEYS_PER_PAGE * KEYS_PER_PAGE
                    for r in range(count):
                        mine = own + r // group
                        if mine >= page_begin and first_of(mine, window) < page_begin + KEYS_PER_PAGE:
                            add_page(rows + r * row_bytes, wholes + r * row_bytes, padded)
            for r in range(count):
                source = wholes + r * row_bytes
                target = out + ((t0 + r // group) * heads + kv_head * group + r % group) * dim_v * 4
                sink, state = 0, source + 4 * padded
                if sinks != 0:
                    sink = sinks + 4 * (kv_head * group + r % group)
                inverse = splat(share(load_f32(int64(state)), load_f32(int64(state + 4)), sink))
                for i in range(0, dim_v, lanes):
                    value = times(load(int64(source + 4 * i)), inverse)
                    store_masked(int64(target + 4 * i), value, int64(dim_v - i))
        store_release(int64(flag), int64(0))

    return attention_prompt, kernel_signature()
