"""GGUF rows to the packed layout at memory speed: the same result as `layout.pack`, bit for bit.

Arguments (int64 slots): 0 rows' first byte, 1 row bytes, 2 rows, 3 out, 4 blocks in a row. An item is a group of
lanes rows; rows that do not exist become zeros. Everything moves in 32-bit words where it can.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit, uint8, uint32

from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64, load_u8, load_u16, load_u32, store_u8, store_u16, store_u32

_LOW, _HIGH = 0x0F0F0F0F, 0xF0F0F0F0


def _build(ops: Ops, source_bytes: int, packed_bytes: int, block: Any) -> Any:
    """A kernel from `block(source, out, row)`, which packs one block of one row of the group."""
    lanes = ops.lanes

    def pack(arguments: int, low: int, high: int) -> None:
        source, row_bytes = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        rows, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        blocks = load_i64(int64(arguments + 32))
        for group in range(low, high):
            valid = min(lanes, rows - group * lanes)
            target = out + group * blocks * packed_bytes * lanes
            if valid < lanes:
                for i in range(blocks * packed_bytes * lanes):
                    store_u8(int64(target + i), uint8(0))
            for b in range(blocks):
                for r in range(valid):
                    block(source + (group * lanes + r) * row_bytes + b * source_bytes, target, r)
                target += packed_bytes * lanes

    return pack, kernel_signature()


def _words(ops: Ops, count: int) -> Any:
    """(source, out, row): `count` words of a row, each among its lane's neighbours."""
    lanes = ops.lanes

    @njit(forceinline=True)
    def words(source: int, out: int, row: int) -> None:
        for t in range(count):
            store_u32(int64(out + 4 * (t * lanes + row)), load_u32(int64(source + 4 * t)))

    return words


def _halves(ops: Ops, count: int) -> Any:
    lanes = ops.lanes

    @njit(forceinline=True)
    def halves(source: int, out: int, row: int) -> None:
        for t in range(count):
            store_u16(int64(out + 2 * (t * lanes + row)), load_u16(int64(source + 2 * t)))

    return halves


def build_pack_f32(ops: Ops) -> Any:
    """A column is a block."""
    return _build(ops, 4, 4, _words(ops, 1))


def build_pack_f16(ops: Ops) -> Any:
    """F16 and BF16."""
    return _build(ops, 2, 2, _halves(ops, 1))


def build_pack_q4_0(ops: Ops) -> Any:
    """Scale, then four words."""
    lanes, scale, words = ops.lanes, _halves(ops, 1), _words(ops, 4)

    @njit(forceinline=True)
    def block(source: int, out: int, row: int) -> None:
        scale(source, out, row)
        words(source + 2, out + 2 * lanes, row)

    return _build(ops, 18, 18, block)


def build_pack_q8_0(ops: Ops) -> Any:
    """Scale, then eight words."""
    lanes, scale, words = ops.lanes, _halves(ops, 1), _words(ops, 8)

    @njit(forceinline=True)
    def block(source: int, out: int, row: int) -> None:
        scale(source, out, row)
        words(source + 2, out + 2 * lanes, row)

    return _build(ops, 34, 34, block)


def _k_head(ops: Ops) -> Any:
    """d, dmin, and the twelve bytes of 6-bit scales and mins as bytes."""
    lanes, both = ops.lanes, _halves(ops, 2)

    @njit(forceinline=True)
    def head(source: int, out: int, row: int) -> None:
        both(source, out, row)
        p = source + 4
        for j in range(4):
            a = load_u8(int64(p + j))
            b = load_u8(int64(p + 4 + j))
            c = load_u8(int64(p + 8 + j))
            store_u8(int64(out + (4 + j) * lanes + row), uint8(a & 63))
            store_u8(int64(out + (8 + j) * lanes + row), uint8((c & 15) | ((a >> 6) << 4)))
            mins = out + 12 * lanes + 2 * row + (j & 1)
            store_u8(int64(mins + (j // 2) * 2 * lanes), uint8(b & 63))
            store_u8(int64(mins + (2 + j // 2) * 2 * lanes), uint8((c >> 4) | ((b >> 6) << 4)))

    return head


def _k_nibbles(ops: Ops) -> Any:
    """128 bytes: 32 bytes hold sub-block 2 c low and 2 c + 1 high; ours pair weight k with k + 16 of one sub-block."""
    lanes = ops.lanes

    @njit(forceinline=True)
    def nibbles(source: int, out: int, row: int) -> None:
        for c in range(4):
            for t in range(4):
                a = load_u32(int64(source + 32 * c + 4 * t))
                b = load_u32(int64(source + 32 * c + 16 + 4 * t))
                first = (a & uint32(_LOW)) | ((b & uint32(_LOW)) << uint32(4))
                second = ((a >> uint32(4)) & uint32(_LOW)) | (b & uint32(_HIGH))
                store_u32(int64(out + 4 * ((8 * c + t) * lanes + row)), uint32(first))
                store_u32(int64(out + 4 * ((8 * c + 4 + t) * lanes + row)), uint32(second))

    return nibbles


def build_pack_q4_k(ops: Ops) -> Any:
    """Head, then nibbles."""
    lanes, head, nibbles = ops.lanes, _k_head(ops), _k_nibbles(ops)

    @njit(forceinline=True)
    def block(source: int, out: int, row: int) -> None:
        head(source, out, row)
        nibbles(source + 16, out + 20 * lanes, row)

    return _build(ops, 144, 148, block)


def build_pack_q5_k(ops: Ops) -> Any:
    """Head, fifth bits of a sub-block side by side, nibbles."""
    lanes, head, nibbles = ops.lanes, _k_head(ops), _k_nibbles(ops)

    @njit(forceinline=True)
    def block(source: int, out: int, row: int) -> None:
        head(source, out, row)
        for s in range(8):  # bit s of byte 4 t + j -> bit t of byte j
            word = uint32(0)
            for t in range(8):
                bits = (load_u32(int64(source + 16 + 4 * t)) >> uint32(s)) & uint32(0x01010101)
                word = uint32(word | (bits << uint32(t)))
            store_u32(int64(out + 20 * lanes + 4 * (s * lanes + row)), word)
        nibbles(source + 48, out + 52 * lanes, row)

    return _build(ops, 176, 180, block)


def build_pack_q6_k(ops: Ops) -> Any:
    """A half of 128 weights: quarters 0 and 1 are the low nibbles of 64 bytes, 2 and 3 the high ones; two more bits
    of every quarter in 32 bytes."""
    lanes, scale, pairs = ops.lanes, _halves(ops, 1), _halves(ops, 8)

    @njit(forceinline=True)
    def block(source: int, out: int, row: int) -> None:
        scale(source + 208, out, row)
        pairs(source + 192, out + 2 * lanes, row)
        for half in range(2):
            for quarter in range(4):
                chunk = 4 * half + quarter
                low = source + 64 * half + 32 * (quarter & 1)
                shift = uint32(4 * (quarter // 2))
                for t in range(4):
                    a = (load_u32(int64(low + 4 * t)) >> shift) & uint32(_LOW)
                    b = (load_u32(int64(low + 16 + 4 * t)) >> shift) & uint32(_LOW)
                    nibble_at = out + 82 * lanes + 4 * ((4 * chunk + t) * lanes + row)
                    store_u32(int64(nibble_at), uint32(a | (b << uint32(4))))
                high = source + 128 + 32 * half
                move = uint32(2 * quarter)
                for h in range(2):
                    word = uint32(0)
                    for odd in range(2):
                        t = 2 * h + odd
                        a = (load_u32(int64(high + 4 * t)) >> move) & uint32(0x03030303)
                        b = (load_u32(int64(high + 16 + 4 * t)) >> move) & uint32(0x03030303)
                        word = uint32(word | (a << uint32(4 * odd)) | (b << uint32(4 * odd + 2)))
                    store_u32(int64(out + 18 * lanes + 4 * ((2 * chunk + h) * lanes + row)), word)

    return _build(ops, 210, 210, block)
