"""LLVM of the vector operations that products are made of, as every processor runs it; an instruction set overrides
what it does better.

A *word vector* is L x i32, one lane a row of weights; as *byte vector* it is 4 L bytes, four weights of each row. Codes
of weights are bytes, unsigned and at most `top`, or signed; activations are signed bytes in -127 .. 127. All of this is
plain integer arithmetic, exact on every instruction set, so which one computes cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.formats.lookup import Lookup
from edgerun.kernels.ops.lookups import Gathered, Looked
from edgerun.kernels.simd import FLOAT, HALF, I1, I8, I16, I32, I64

Value = Any  # an LLVM value
T = TypeVar("T")


class Emitter:
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

    def prefetch(self, address: Value, offset: int) -> None:
        pointer = self.b.inttoptr(self.b.add(address, ir.Constant(I64, offset)), I8.as_pointer())
        call = simd.declare(self.b, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, I32, I32, I32])
        self.b.call(call, (pointer, *(ir.Constant(I32, v) for v in (0, 3, 1))))

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
            return a
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

    def byte_of(self, a: Value, index: int) -> Value:
        """Byte `index` of every lane, as i32."""
        moved = self.b.lshr(a, self.constant(8 * index)) if index else a
        return moved if index == 3 else self.b.and_(moved, self.constant(255))

    def signed_byte_of(self, a: Value, index: int) -> Value:
        moved = self.shl(a, 24 - 8 * index)
        return self.b.ashr(moved, self.constant(24))

    def table(self, codes: Value, values: Sequence[int]) -> Value:
        """The byte of `values` (16, signed or unsigned) for every byte of `codes` (below 16)."""
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
        """Byte vectors u8, i8 -> i16 sums of two neighbouring products (which must fit)."""
        u, s = self.b.bitcast(u, self.bytes), self.b.bitcast(s, self.bytes)
        even, odd = list(range(0, 4 * self.lanes, 2)), list(range(1, 4 * self.lanes, 2))

        def half(places: list[int]) -> Value:
            first = self.b.zext(simd.shuffle(self.b, u, u, places), self.pairs)
            return self.b.mul(first, self.b.sext(simd.shuffle(self.b, s, s, places), self.pairs))

        return self.b.add(half(even), half(odd))

    def add_pairs(self, a: Value, c: Value) -> Value:
        """i16, i16 -> i32 sums of two neighbouring products."""
        a, c = self.b.bitcast(a, self.pairs), self.b.bitcast(c, self.pairs)
        even, odd = list(range(0, 2 * self.lanes, 2)), list(range(1, 2 * self.lanes, 2))

        def half(places: list[int]) -> Value:
            first = self.b.sext(simd.shuffle(self.b, a, a, places), self.words)
            return self.b.mul(first, self.b.sext(simd.shuffle(self.b, c, c, places), self.words))

        return self.b.add(half(even), half(odd))

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

    # -- products -----------------------------------------------------------------------------------------------

    def signed_codes(self, w: Value) -> Any:
        """Signed bytes as `Chain.step` takes them, made once for all rows of activations."""
        size = self.absolute(w)
        if not self.several:
            return size, w, None
        negative = self.negative(w)
        return size, negative, self.mul_pairs(size, negative)

    def table_codes(self, codes: Value, values: Sequence[int]) -> Any:
        """The values (16, signed) of codes below 16, as `Chain.step` takes them."""
        return self.signed_codes(self.table(codes, values))

    # -- grids: see `lookups` -------------------------------------------------------------------------------------

    @property
    def bias(self) -> int:
        """What signed codes have added where they are unsigned to the processor."""
        return 128 if self.signed_start else 0

    def look_up(self, table: Lookup, low: Value, high: Value | None = None) -> Looked:
        """The letters of four codes of each row, with the bias on where signs will be."""
        return Gathered(self, table, low, high)

    def spread_grid(self, table: Lookup, x: Value, column: int) -> Value:
        """Activations in the order in which the table's vectors hold columns; column / 4 is the vector's number."""
        return self.spread_quants(x, column)

    def grid_columns(self, table: Lookup, column: int) -> Sequence[int]:
        """The columns of that vector, in their order."""
        return range(column, column + 4)

    def negatives(self, table: Lookup, signs: Value, half: int) -> list[Value]:
        """Bits of 32 columns -> of 16 of them, for each of a half's vectors: which bytes are negative."""
        bits = (
            ir.Constant(self.bytes, [1, 2, 4, 8] * self.lanes),
            ir.Constant(self.bytes, [16, 32, 64, -128] * self.lanes),
        )
        zero, found = simd_constant(self.bytes, 0), []
        for byte in (2 * half, 2 * half + 1):
            eight = self.b.bitcast(self.pick_bytes(signs, signs, [byte] * 4), self.bytes)
            found += [self.b.icmp_signed("!=", self.b.and_(eight, each), zero) for each in bits]
        return found

    def by_code(self, table: Lookup, four: Value, half: int) -> list[Value]:
        """A byte for each of four codes of eight letters -> for each of a half's vectors, beside every letter."""
        return [self.pick_bytes(four, four, [2 * half + k // 2] * 4) for k in range(4)]

    def even_signs(self, seven: Value) -> Value:
        """Bytes of seven signs -> of eight, an even number of which is negative."""
        parity = self.b.xor(seven, self.field(seven, 4, 15))
        parity = self.b.xor(parity, self.field(parity, 2, 63))
        parity = self.b.xor(parity, self.field(parity, 1, 127))
        return self.either(seven, self.field(parity, -7, 128))

    def with_signs(self, weights: Value, negative: Value) -> Any:
        """Letters with signs, as `Chain.step` takes them."""
        signed = self.signed(weights, negative)
        return signed if self.signed_start else (weights, signed, None)

    def signed(self, weights: Value, negative: Value) -> Value:
        """Bytes, turned to their negatives where so."""
        plain = self.b.bitcast(weights, self.bytes)
        turned = self.b.sub(simd_constant(self.bytes, 0), plain)  # 128 + w becomes 128 - w
        return self.b.bitcast(self.b.select(negative, turned, plain), self.words)

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        """total + scale * (start + a sum of products of codes up to `top` with activations), all i32; None: 0, for
        scale 1. top 0: codes are signed, up to `signed_top` either way. -32768 <= scale < 32768."""
        return PairChain(self, top or -signed_top, start, scale, total)


class Chain:
    """A sum of products of four neighbours, lane by lane, while it is made."""

    def step(self, codes: Any, x: Value) -> None:
        """Add codes (unsigned bytes, or what `Emitter.signed_codes` made) times activations."""
        raise NotImplementedError

    def end(self) -> Value:
        """The sum, i32."""
        raise NotImplementedError


class SumChain(Chain):
    """One sum in i32, of processors that can add products to it."""

    def __init__(self, emitter: Emitter, start: Value | None, scale: Value | None, total: Value | None) -> None:
        self._e = emitter
        if start is None:
            start = total if scale is None else None
        elif scale is None and total is not None:
            start = emitter.add(start, total)
        self._sum = emitter.constant(0) if start is None else start
        self._scale, self._total = scale, total

    def end(self) -> Value:
        if self._scale is None:
            return self._sum
        product = self._e.mul(self._sum, self._scale)
        return product if self._total is None else self._e.add(self._total, product)


class PairChain(Chain):
    """Products of two neighbours in i16, as many as fit before they are widened.

    Signed codes are magnitudes times the activation with the code's sign. Where several rows share codes, its bits are
    inverted instead, which more units of a processor can do: that gives -x - 1, so each negative code's magnitude is
    missed once, the same for all rows. (Two products are at least 2 * 128 * -128 = -32768, at most 2 * 128 * 127.)

    `top` is the largest code, negative for signed ones: they are up to as much either way."""

    def __init__(
        self, emitter: Emitter, top: int, start: Value | None, scale: Value | None, total: Value | None
    ) -> None:
        e = self._e = emitter
        self._signed = top < 0
        self._limit = 32768 // (2 * 128 * -top) if self._signed else 32767 // (2 * 127 * top)
        self._pending: Value | None = None  # i16
        self._missed: Value | None = None  # i16, below 0
        self._room = 0
        self._factor = simd_constant(e.pairs, 1)
        if scale is not None:
            twice = e.either(e.b.and_(scale, e.constant(0xFFFF)), e.shl(scale, 16))
            self._factor = e.b.bitcast(twice, e.pairs)
        if start is not None:
            beyond = start if scale is None else e.mul(start, scale)
            total = beyond if total is None else e.add(total, beyond)
        self._total = total

    def step(self, codes: Any, x: Value) -> None:
        e = self._e
        product = self._signed_product(codes, x) if self._signed else e.mul_pairs(codes, x)
        if self._pending is not None and self._room:
            self._pending = e.b.add(self._pending, product)
            self._room -= 1
            return
        self._widen()
        self._pending, self._room = product, self._limit - 1

    def _signed_product(self, codes: Any, x: Value) -> Value:
        e, (size, sign, missed) = self._e, codes
        if missed is None:
            return e.mul_pairs(size, e.with_sign(x, sign))
        self._missed = missed if self._missed is None else e.b.add(self._missed, missed)
        return e.mul_pairs(size, e.b.xor(e.b.bitcast(x, e.bytes), sign))

    def end(self) -> Value:
        self._widen()
        assert self._total is not None
        if self._missed is None:
            return self._total
        return self._e.sub(self._total, self._e.add_pairs(self._missed, self._factor))

    def _widen(self) -> None:
        if self._pending is not None:
            self._total = self._e.dot_pairs(self._total, self._pending, self._factor)
            self._pending = None


def simd_constant(kind: Any, value: int) -> Any:
    """`value` in every lane of a vector type."""
    bits = kind.element.width
    value &= (1 << bits) - 1
    return ir.Constant(kind, [value - (1 << bits) if value >> (bits - 1) else value] * kind.count)
