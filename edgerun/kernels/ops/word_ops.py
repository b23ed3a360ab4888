"""LLVM of the vector operations that products are made of, as every processor runs it; an instruction set overrides
what it does better (`emitter`).

A *word vector* is L x i32, one lane a row of weights; as *byte vector* it is 4 L bytes, four weights of each row. Codes
of weights are bytes, unsigned and at most `top`, or signed; activations are signed bytes in -127 .. 127. All of this is
plain integer arithmetic, exact on every instruction set, so which one computes cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.numba_target import made_for
from edgerun.kernels.simd import FLOAT, HALF, I1, I8, I16, I32, I64

Value = Any  # an LLVM value
T = TypeVar("T")

_PAIR_BYTES = (("avx512bw", 64), ("avx2", 32))  # of the widest register with `pmaddubsw`; LLVM misses it in SSSE3


class WordOps:
    """Emits at `builder`, for `lanes` rows. See the module for words."""

    REGISTER = ""  # LLVM's constraint for a vector register, where the processor is known
    signed_start = False  # whether chains of signed codes want the sum of activations to start from

    def __init__(self, builder: Any, lanes: int, several: bool = False) -> None:
        self.b = builder
        self.several = several  # rows of activations share codes: what is made of these once costs little
        self.lanes = lanes
        self.words = ir.VectorType(I32, lanes)
        self.floats = ir.VectorType(FLOAT, lanes)
        self.pairs = ir.VectorType(I16, 2 * lanes)
        self.bytes = ir.VectorType(I8, 4 * lanes)
        self._made: dict[Any, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several parts of a block share, made where the first of them asks for it."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    @property
    def bias(self) -> int:
        """What signed codes have added where they are unsigned to the processor."""
        return 128 if self.signed_start else 0

    # -- memory: an address is an i64, offsets are bytes ----------------------------------------------------------

    def load(self, address: Value, offset: int, kind: Any) -> Value:
        at = self.b.add(address, ir.Constant(I64, offset)) if offset else address
        value = self.b.load(self.b.inttoptr(at, kind.as_pointer()))
        value.align = 1
        return value

    def load_words(self, address: Value, offset: int) -> Value:
        return self.load(address, offset, self.words)

    def load_floats(self, address: Value, offset: int) -> Value:
        return self.load(address, offset, self.floats)

    def load_halves(self, address: Value, offset: int) -> Value:
        """L x f16 -> f32."""
        return self.b.fpext(self.load(address, offset, ir.VectorType(HALF, self.lanes)), self.floats)

    def halves_of(self, bits: Value) -> Value:
        """L x f16 in the lower halves of i32 -> f32."""
        small = self.b.bitcast(self.b.trunc(bits, ir.VectorType(I16, self.lanes)), ir.VectorType(HALF, self.lanes))
        return self.b.fpext(small, self.floats)

    def load_bfloats(self, address: Value, offset: int) -> Value:
        """L x bf16 -> f32: its upper half."""
        small = self.load(address, offset, ir.VectorType(I16, self.lanes))
        return self.b.bitcast(self.shl(self.b.zext(small, self.words), 16), self.floats)

    def load_u16(self, address: Value, offset: int) -> Value:
        """L x u16 -> i32."""
        return self.b.zext(self.load(address, offset, ir.VectorType(I16, self.lanes)), self.words)

    def load_u8(self, address: Value, offset: int) -> Value:
        """L x u8 -> i32."""
        return self.b.zext(self.load(address, offset, ir.VectorType(I8, self.lanes)), self.words)

    def spread(self, address: Value, offset: int) -> Value:
        """The four bytes there, in every lane."""
        return simd.splat(self.b, self.load(address, offset, I32), self.lanes)

    def spread_quants(self, address: Value, column: int) -> Value:
        """`spread` of a row's quants from `column` on, a multiple of four; all sixteen around it may be read."""
        return self.spread(address, column)

    def spread_float(self, address: Value, offset: int) -> Value:
        return simd.splat(self.b, self.load(address, offset, FLOAT), self.lanes)

    def prefetch(self, address: Value, offset: int, level: int = 1) -> None:
        """Ask for the line there, into this level of caches."""
        pointer = self.b.inttoptr(self.b.add(address, ir.Constant(I64, offset)), I8.as_pointer())
        call = simd.declare(self.b, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, I32, I32, I32])
        self.b.call(call, (pointer, *(ir.Constant(I32, v) for v in (0, 4 - level, 1))))

    def store_floats(self, address: Value, value: Value, valid: Value) -> None:
        """The first `valid` (i32) lanes."""
        simd.masked_store(self.b, value, address, valid)

    def load_some_floats(self, address: Value, valid: Value) -> Value:
        """The first `valid` (i32) lanes, the others 0 and not touched."""
        return simd.masked_load(self.b, self.floats, address, valid)

    def barrier(self) -> None:
        """What is read before is not kept, and what is read after is not read before: LLVM would mix the parts of a
        block until registers run out."""
        kind = ir.FunctionType(ir.VoidType(), [])
        self.b.call(ir.InlineAsm(kind, "", "~{memory}", side_effect=True), [])

    def settled(self, a: Value) -> Value:
        """The same vector, but LLVM does not know, and makes it before the next `barrier`: it cannot put off or regroup
        a sum, for which it would keep so many products that registers run out."""
        if not self.REGISTER:
            return self._unknown(a)
        kind = ir.FunctionType(a.type, [a.type])
        return self.b.call(ir.InlineAsm(kind, "", f"={self.REGISTER},0", side_effect=True), [a])

    def gather(self, table: Value, index: Value) -> Value:
        """The 32-bit words of a table (a pointer) by their numbers."""
        words = self.b.bitcast(table, I32.as_pointer())
        found = ir.Constant(self.words, ir.Undefined)
        for lane in range(self.lanes):
            place = ir.Constant(I32, lane)
            at = self.b.gep(words, [self.b.extract_element(index, place)])
            found = self.b.insert_element(found, self.b.load(at), place)
        return found

    # -- bits ---------------------------------------------------------------------------------------------------

    def constant(self, value: int) -> Value:
        """In every lane."""
        value &= 0xFFFFFFFF
        return ir.Constant(self.words, [value - (1 << 32) if value >= 1 << 31 else value] * self.lanes)

    def constant_float(self, value: float) -> Value:
        return ir.Constant(self.floats, [value] * self.lanes)

    def mask(self, a: Value, byte: int) -> Value:
        """a & byte, for every byte of a."""
        return self.b.and_(a, self.constant(byte * 0x01010101))

    def field(self, a: Value, shift: int, byte: int) -> Value:
        """(a >> shift, or << -shift) & byte, for every byte of a: what crosses bytes must be masked away."""
        if shift > 0:
            a = self.b.lshr(a, self.constant(shift))
        elif shift < 0:
            a = self.b.shl(a, self.constant(-shift))
        return self.mask(a, byte)

    def either(self, a: Value, c: Value) -> Value:
        return self.b.or_(a, c)

    def shl(self, a: Value, bits: int) -> Value:
        return self.b.shl(a, self.constant(bits)) if bits else a

    def shr(self, a: Value, bits: int) -> Value:
        """Zeros come in."""
        return self.b.lshr(a, self.constant(bits))

    def split_float(self, a: Value) -> tuple[Value, Value]:
        """L x f32 -> the nearest bf16 (in the upper half of its lane), and what is left of it: exact."""
        near = self.b.and_(self.add(self.b.bitcast(a, self.words), self.constant(0x8000)), self.constant(0xFFFF0000))
        return near, self.fsub(a, self.b.bitcast(near, self.floats))

    def byte_of(self, a: Value, index: int) -> Value:
        """Byte `index` of every lane, as i32."""
        moved = self.b.lshr(a, self.constant(8 * index)) if index else a
        return moved if index == 3 else self.b.and_(moved, self.constant(255))

    def signed_byte_of(self, a: Value, index: int) -> Value:
        moved = self.shl(a, 24 - 8 * index)
        return self.b.ashr(moved, self.constant(24))

    def table(self, codes: Value, values: Sequence[int]) -> Value:
        """The byte of `values` (16, signed or unsigned) for every byte of `codes` (below 16)."""
        if made_for("ssse3"):
            return self._shuffled_table(codes, values)
        masks = []
        for bit in range(4):
            wide = self.b.bitcast(codes, self.bytes)
            shifted = self.b.shl(wide, simd_constant(self.bytes, 7 - bit))
            masks.append(self.b.ashr(shifted, simd_constant(self.bytes, 7)))
        level = [simd_constant(self.bytes, value) for value in values]
        for mask in masks:
            level = [
                self.b.xor(low, self.b.and_(self.b.xor(low, high), mask))
                for low, high in zip(level[::2], level[1::2], strict=True)
            ]
        return self.b.bitcast(level[0], self.words)

    def _shuffled_table(self, codes: Value, values: Sequence[int]) -> Value:
        """`table` by 16 bytes, each taken out by its code: LLVM finds that this is one instruction (`pshufb`)."""
        kind, parts = ir.VectorType(I8, 16), []
        known = ir.Constant(kind, [value - 256 if value > 127 else value for value in values])
        wide = self.b.bitcast(codes, self.bytes)
        for first in range(0, 4 * self.lanes, 16):
            found = ir.Constant(kind, ir.Undefined)
            for byte in range(16):
                code = self.b.zext(self.b.extract_element(wide, ir.Constant(I32, first + byte)), I32)
                found = self.b.insert_element(found, self.b.extract_element(known, code), ir.Constant(I32, byte))
            parts.append(found)
        return self.b.bitcast(simd.concatenated(self.b, parts), self.words)

    def byte_fields(self, a: Value, offsets: Sequence[int], byte: int) -> Value:
        """(a >> offsets[j]) & byte as byte j of every lane."""
        found: Value | None = None
        for place, offset in enumerate(offsets):
            field, up = ir.Constant(self.words, [byte << 8 * place] * self.lanes), 8 * place - offset
            moved = self.shl(a, up) if up >= 0 else self.b.lshr(a, self.constant(-up))
            moved = self.b.and_(moved, field)
            found = moved if found is None else self.b.or_(found, moved)
        return found

    def pick_bytes(self, a: Value, c: Value, places: Sequence[int]) -> Value:
        """Of every lane four bytes, 0 .. 3 of a and 4 .. 7 of c."""
        picked = [4 * lane + place % 4 + place // 4 * 4 * self.lanes for lane in range(self.lanes) for place in places]
        a, c = self.b.bitcast(a, self.bytes), self.b.bitcast(c, self.bytes)
        return self.b.bitcast(simd.shuffle(self.b, a, c, picked), self.words)

    # -- arithmetic ---------------------------------------------------------------------------------------------

    def add(self, a: Value, c: Value) -> Value:
        return self.b.add(a, c)

    def sub(self, a: Value, c: Value) -> Value:
        return self.b.sub(a, c)

    def mul(self, a: Value, c: Value) -> Value:
        """i32."""
        return self.b.mul(a, c)

    def to_floats(self, a: Value) -> Value:
        return self.b.sitofp(a, self.floats)

    def fmul(self, a: Value, c: Value) -> Value:
        return self.b.fmul(a, c)

    def fsub(self, a: Value, c: Value) -> Value:
        return self.b.fsub(a, c)

    def fadd(self, a: Value, c: Value) -> Value:
        return self.b.fadd(a, c)

    def fma(self, a: Value, c: Value, d: Value) -> Value:
        """a * c + d, rounded once."""
        call = simd.declare(self.b, f"llvm.fma.v{self.lanes}f32", self.floats, [self.floats] * 3)
        return self.b.call(call, (a, c, d))

    def mul_pairs(self, u: Value, s: Value) -> Value:
        """Byte vectors u8, i8 -> i16 sums of two neighbouring products (which must fit).

        Where the processor has one instruction for that (`pmaddubsw`), LLVM takes it for sums that are cut off at what
        i16 holds, of a register's bytes about which it knows nothing: else it finds that these fit and does better."""
        u, s = self.b.bitcast(u, self.bytes), self.b.bitcast(s, self.bytes)
        size = self._pair_bytes()
        if not size:
            return self._pairs_summed(u, s, self.pairs)
        wide, parts = ir.VectorType(I32, size // 2), []
        for first in range(0, 4 * self.lanes, size):
            places = list(range(first, first + size))
            part_u, part_s = (self._unknown(simd.shuffle(self.b, each, each, places)) for each in (u, s))
            total = self._pairs_summed(part_u, part_s, wide)
            for name, bound in (("smax", -32768), ("smin", 32767)):
                call = simd.declare(self.b, f"llvm.{name}.v{size // 2}i32", wide, [wide] * 2)
                total = self.b.call(call, (total, simd_constant(wide, bound)))
            parts.append(self.b.trunc(total, ir.VectorType(I16, size // 2)))
        return simd.concatenated(self.b, parts)

    def _pair_bytes(self) -> int:
        """Of codes that one `pmaddubsw` takes; 0: plain products are better."""
        return min(4 * self.lanes, next((size for feature, size in _PAIR_BYTES if made_for(feature)), 0))

    def _pairs_summed(self, u: Value, s: Value, kind: Any) -> Value:
        """Byte vectors u8, i8 -> sums of two neighbouring products, computed in the integers of vector type `kind`."""
        even, odd = list(range(0, 2 * kind.count, 2)), list(range(1, 2 * kind.count, 2))

        def half(places: list[int]) -> Value:
            first = self.b.zext(simd.shuffle(self.b, u, u, places), kind)
            return self.b.mul(first, self.b.sext(simd.shuffle(self.b, s, s, places), kind))

        return self.b.add(half(even), half(odd))

    def _unknown(self, a: Value) -> Value:
        """The same bytes, but LLVM does not know which are alike or have bits that are zero. No instruction."""
        is_float = isinstance(a.type.element, ir.FloatType)
        kind = a.type if is_float else ir.VectorType(FLOAT, a.type.count * a.type.element.width // 32)
        call = simd.declare(self.b, f"llvm.arithmetic.fence.v{kind.count}f32", kind, [kind])
        return self.b.bitcast(self.b.call(call, [self.b.bitcast(a, kind)]), a.type)

    def add_pairs(self, a: Value, c: Value) -> Value:
        """i16, i16 -> i32 sums of two neighbouring products."""
        a, c = self.b.bitcast(a, self.pairs), self.b.bitcast(c, self.pairs)
        unknown = self._pair_bytes() > 0  # LLVM takes `pmaddwd` for what it cannot reason about, before or after
        if unknown:
            a, c = self._unknown(a), self._unknown(c)
        even, odd = list(range(0, 2 * self.lanes, 2)), list(range(1, 2 * self.lanes, 2))

        def half(places: list[int]) -> Value:
            first = self.b.sext(simd.shuffle(self.b, a, a, places), self.words)
            return self.b.mul(first, self.b.sext(simd.shuffle(self.b, c, c, places), self.words))

        total = self.b.add(half(even), half(odd))
        return self._unknown(total) if unknown else total

    def ones(self, beside: Value) -> Value:
        """Pairs (i16) of ones, for `add_pairs` of `beside`. Of a constant LLVM would make a loop's business before it,
        where `pmaddwd` does not find it."""
        if not self._pair_bytes():
            return simd_constant(self.pairs, 1)
        one = simd_constant(self.pairs, 1)
        return self.b.and_(self._unknown(self.b.or_(beside, one)), one)

    def dot_pairs(self, total: Value | None, a: Value, c: Value) -> Value:
        """total + `add_pairs`."""
        product = self.add_pairs(a, c)
        return product if total is None else self.b.add(total, product)

    def absolute(self, w: Value) -> Value:
        """Of signed bytes; -128 becomes 128."""
        kind = self.bytes
        call = simd.declare(self.b, f"llvm.abs.v{4 * self.lanes}i8", kind, [kind, I1])
        return self.b.call(call, (self.b.bitcast(w, kind), ir.Constant(I1, 0)))

    def negative(self, w: Value) -> Value:
        """-1 where a signed byte is below 0, else 0."""
        wide = self.b.bitcast(w, self.bytes)
        return self.b.sext(self.b.icmp_signed("<", wide, simd_constant(self.bytes, 0)), self.bytes)

    def with_sign(self, x: Value, w: Value) -> Value:
        """x where w >= 0, -x where w < 0, bytes."""
        x, w = self.b.bitcast(x, self.bytes), self.b.bitcast(w, self.bytes)
        zero = simd_constant(self.bytes, 0)
        return self.b.select(self.b.icmp_signed("<", w, zero), self.b.sub(zero, x), x)


def simd_constant(kind: Any, value: int) -> Any:
    """`value` in every lane of a vector type."""
    bits = kind.element.width
    value &= (1 << bits) - 1
    return ir.Constant(kind, [value - (1 << bits) if value >> (bits - 1) else value] * kind.count)
