"""The vector operations of one instruction set, as Numba intrinsics: what kernels are written in."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgerun.kernels import simd
from edgerun.kernels.isa import Isa
from edgerun.kernels.simd import FLOAT, HALF, I8, I16, I32, constant, function, loader, shuffle, splat, vector


class Ops:
    """The vector operations of one instruction set, as Numba intrinsics. L = lanes; "bytes" = 4 L bytes."""

    def __init__(self, isa: Isa) -> None:
        lanes = isa.lanes
        self.isa = isa
        self.lanes = lanes
        byte_vec, pair_vec = vector(I8, 4 * lanes), vector(I16, 2 * lanes)
        int_vec, float_vec = vector(I32, lanes), vector(FLOAT, lanes)
        self.load_bytes = loader(byte_vec)
        self.load_pairs, self.load_ints = loader(pair_vec), loader(int_vec)
        self.load_floats = loader(float_vec)
        self.store_bytes, self.store_ints = simd.storer(byte_vec), simd.storer(int_vec)
        self.store_floats = simd.storer(float_vec)
        self.load_floats_masked = simd.masked_loader(float_vec)
        self.store_floats_masked = simd.masked_storer(float_vec)

        self.load_halves = function(  # L x f16 -> f32
            (types.int64,),
            float_vec,
            lambda b, a: b.fpext(simd._load(b, a, ir.VectorType(HALF, lanes)), float_vec.llvm),
        )

        def halves_apart(b: Any, address: Any, stride: Any) -> Any:
            small = ir.Constant(ir.VectorType(I16, lanes), ir.Undefined)
            for lane in range(lanes):
                small = b.insert_element(small, simd._load(b, address, I16), ir.Constant(I32, lane))
                address = b.add(address, stride)
            return b.fpext(b.bitcast(small, ir.VectorType(HALF, lanes)), float_vec.llvm)

        self.load_halves_apart = function(
            (types.int64, types.int64), float_vec, halves_apart
        )  # L x f16, a stride apart
        self.load_bfloats = function(  # L x bf16 -> f32: its upper half
            (types.int64,),
            float_vec,
            lambda b, a: b.bitcast(
                b.shl(b.zext(simd._load(b, a, ir.VectorType(I16, lanes)), int_vec.llvm), constant(int_vec, 16)),
                float_vec.llvm,
            ),
        )
        self.splat4 = function(  # four bytes of memory in every lane
            (types.int64,), byte_vec, lambda b, a: b.bitcast(splat(b, simd._load(b, a, I32), lanes), byte_vec.llvm)
        )
        self.splat2 = function(  # two i16 of memory in every lane
            (types.int64,), pair_vec, lambda b, a: b.bitcast(splat(b, simd._load(b, a, I32), lanes), pair_vec.llvm)
        )
        self.splat = function((types.float32,), float_vec, lambda b, a: splat(b, a, lanes))
        self.splat_load = function((types.int64,), float_vec, lambda b, a: splat(b, simd._load(b, a, FLOAT), lanes))
        self.zero_floats = function((), float_vec, lambda b: constant(float_vec, 0.0))
        self.zero_ints = function((), int_vec, lambda b: constant(int_vec, 0))
        self.zero_pairs = function((), pair_vec, lambda b: constant(pair_vec, 0))
        self.ones = function((), pair_vec, lambda b: constant(pair_vec, 1))

        def high_nibbles(b: Any, a: Any, shift: int = 4) -> Any:
            moved = b.lshr(b.bitcast(a, pair_vec.llvm), constant(pair_vec, shift))
            return b.and_(b.bitcast(moved, byte_vec.llvm), constant(byte_vec, 15))

        self.low_nibbles = function((byte_vec,), byte_vec, lambda b, a: b.and_(a, constant(byte_vec, 15)))
        self.high_nibbles = function((byte_vec,), byte_vec, high_nibbles)

        def bit_field(shift: int, mask: int) -> Any:
            """bytes -> (byte moved right by `shift`, or left if negative) & mask."""

            def emit(b: Any, a: Any) -> Any:
                wide = b.bitcast(a, pair_vec.llvm)
                if shift > 0:
                    wide = b.lshr(wide, constant(pair_vec, shift))
                elif shift < 0:
                    wide = b.shl(wide, constant(pair_vec, -shift))
                return b.and_(b.bitcast(wide, byte_vec.llvm), constant(byte_vec, mask))

            return function((byte_vec,), byte_vec, emit)

        self.bit_field = bit_field
        self.xor_bytes = function((byte_vec, byte_vec), byte_vec, lambda b, a, c: b.xor(a, c))
        self.negative = function(  # 255 where a < 0, else 0
            (byte_vec,), byte_vec, lambda b, a: b.sext(b.icmp_signed("<", a, constant(byte_vec, 0)), byte_vec.llvm)
        )
        self.or_bytes = function((byte_vec, byte_vec), byte_vec, lambda b, a, c: b.or_(a, c))
        self.add_i16 = function((pair_vec, pair_vec), pair_vec, lambda b, a, c: b.add(a, c))
        self.add_i32 = function((int_vec, int_vec), int_vec, lambda b, a, c: b.add(a, c))
        self.sub_i32 = function((int_vec, int_vec), int_vec, lambda b, a, c: b.sub(a, c))
        self.in_turn = function((int_vec,), int_vec, _in_turn(isa, int_vec))
        self.shl_i32 = lambda bits: function((int_vec,), int_vec, lambda b, a: b.shl(a, constant(int_vec, bits)))
        self.to_floats = function((int_vec,), float_vec, lambda b, a: b.sitofp(a, float_vec.llvm))
        self.mul = function((float_vec, float_vec), float_vec, lambda b, a, c: b.fmul(a, c))
        self.sub = function((float_vec, float_vec), float_vec, lambda b, a, c: b.fsub(a, c))
        self.add = function((float_vec, float_vec), float_vec, lambda b, a, c: b.fadd(a, c))

        def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
            call = declare_fma(b, lanes)
            return b.call(call, (x, y, z))

        self.fma = function((float_vec,) * 3, float_vec, fma)  # x * y + z

        def fma_one(b: Any, x: Any, y: Any, z: Any) -> Any:
            return b.call(simd.declare(b, "llvm.fma.f32", FLOAT, [FLOAT] * 3), (x, y, z))

        self.fma_one = function((types.float32,) * 3, types.float32, fma_one)  # as a lane of fma

        def within(b: Any, x: Any, first: Any, end: Any, other: Any) -> Any:
            kind = ir.VectorType(I32, lanes)
            lane = ir.Constant(kind, list(range(lanes)))
            after = b.icmp_signed(">=", lane, splat(b, b.trunc(first, I32), lanes))
            before = b.icmp_signed("<", lane, splat(b, b.trunc(end, I32), lanes))
            return b.select(b.and_(after, before), x, splat(b, other, lanes))

        self.within = function(  # (x, first, end, other) -> x in the lanes first .. end - 1, else the other
            (float_vec, types.int64, types.int64, types.float32), float_vec, within
        )
        self.first_lane = function((float_vec,), types.float32, lambda b, a: b.extract_element(a, ir.Constant(I32, 0)))

        def scale_pairs(signed: bool) -> Any:
            """address of L bytes -> every byte as an i16 in both halves of its lane."""

            def emit(b: Any, address: Any) -> Any:
                small = simd._load(b, address, ir.VectorType(I8, lanes))
                wide = b.sext(small, ir.VectorType(I16, lanes)) if signed else b.zext(small, ir.VectorType(I16, lanes))
                return shuffle(b, wide, wide, [i // 2 for i in range(2 * lanes)])

            return function((types.int64,), pair_vec, emit)

        self.load_scales_u8 = scale_pairs(False)
        self.load_scales_i8 = scale_pairs(True)

        def byte_pairs(signed: bool) -> Any:
            """address of 2 L bytes -> 2 L i16."""

            def emit(b: Any, address: Any) -> Any:
                small = simd._load(b, address, ir.VectorType(I8, 2 * lanes))
                return b.sext(small, pair_vec.llvm) if signed else b.zext(small, pair_vec.llvm)

            return function((types.int64,), pair_vec, emit)

        self.load_pairs_u8 = byte_pairs(False)
        self.load_pairs_i8 = byte_pairs(True)

        def block_dot(nibbles: bool) -> Any:
            """(address of 32 weights of a block, of 32 i8) -> L x i32 whose sum is their product's."""
            wide = ir.VectorType(I32, 32)

            def emit(b: Any, weights: Any, x: Any) -> Any:
                if nibbles:
                    small = simd._load(b, weights, ir.VectorType(I8, 16))
                    low = b.and_(small, ir.Constant(small.type, [15] * 16))
                    high = b.lshr(small, ir.Constant(small.type, [4] * 16))
                    w = b.zext(shuffle(b, low, high, list(range(32))), wide)
                    w = b.sub(w, ir.Constant(wide, [8] * 32))
                else:
                    w = b.sext(simd._load(b, weights, ir.VectorType(I8, 32)), wide)
                product = b.mul(w, b.sext(simd._load(b, x, ir.VectorType(I8, 32)), wide))
                total = shuffle(b, product, product, list(range(lanes)))
                for first in range(lanes, 32, lanes):
                    total = b.add(total, shuffle(b, product, product, list(range(first, first + lanes))))
                return total

            return function((types.int64, types.int64), int_vec, emit)

        self.dot_nibbles, self.dot_bytes = block_dot(True), block_dot(False)

        def small_floats(shift: int, mask: int, offset: int) -> Any:
            """address of L bytes -> f32 of each: signed, or with a mask (byte >> shift & mask) - offset."""

            def emit(b: Any, address: Any) -> Any:
                small = simd._load(b, address, ir.VectorType(I8, lanes))
                if not mask:
                    return b.sitofp(b.sext(small, int_vec.llvm), float_vec.llvm)
                if shift:
                    small = b.lshr(small, ir.Constant(small.type, [shift] * lanes))
                small = b.and_(small, ir.Constant(small.type, [mask] * lanes))
                whole = b.sub(b.zext(small, int_vec.llvm), constant(int_vec, offset))
                return b.sitofp(whole, float_vec.llvm)

            return function((types.int64,), float_vec, emit)

        self.load_bytes_as_floats = small_floats(0, 0, 0)
        self.load_low_nibbles_as_floats = small_floats(0, 15, 8)
        self.load_high_nibbles_as_floats = small_floats(4, 15, 8)

        def absolute(b: Any, a: Any) -> Any:
            call = simd.declare(b, f"llvm.abs.v{4 * lanes}i8", byte_vec.llvm, [byte_vec.llvm, simd.I1])
            return b.call(call, (a, ir.Constant(simd.I1, 0)))

        self.abs = function((byte_vec,), byte_vec, absolute)  # -128 becomes 128 as u8

        if isa.dot == "avx2":

            def with_sign(b: Any, x: Any, w: Any) -> Any:
                call = simd.declare(b, "llvm.x86.avx2.psign.b", byte_vec.llvm, [byte_vec.llvm] * 2)
                return b.call(call, (x, w))

        else:

            def with_sign(b: Any, x: Any, w: Any) -> Any:
                zero = constant(byte_vec, 0)
                return b.select(b.icmp_signed("<", w, zero), b.sub(zero, x), x)

        self.with_sign = function((byte_vec, byte_vec), byte_vec, with_sign)  # x where w >= 0, -x where w < 0
        self.mul_pairs = function((byte_vec, byte_vec), pair_vec, _mul_pairs(isa))
        self.add_pairs = function((pair_vec, pair_vec), int_vec, _add_pairs(isa))
        self.dup_even = function(  # the first i16 of every pair in both places
            (pair_vec,), pair_vec, lambda b, a: shuffle(b, a, a, [i // 2 * 2 for i in range(2 * lanes)])
        )
        self.dup_odd = function(
            (pair_vec,), pair_vec, lambda b, a: shuffle(b, a, a, [i // 2 * 2 + 1 for i in range(2 * lanes)])
        )

        def named(name: str, *more: Any) -> simd.Emit:
            """An LLVM intrinsic over f32 lanes."""

            def emit(b: Any, *values: Any) -> Any:
                call = simd.declare(b, f"{name}.v{lanes}f32", float_vec.llvm, [float_vec.llvm] * len(values))
                return b.call(call, values)

            return emit

        self.magnitude = function((float_vec,), float_vec, named("llvm.fabs"))
        self.maximum = function((float_vec, float_vec), float_vec, named("llvm.maxnum"))
        self.minimum = function((float_vec, float_vec), float_vec, named("llvm.minnum"))
        self.round = function((float_vec,), float_vec, named("llvm.nearbyint"))
        self.div = function((float_vec, float_vec), float_vec, lambda b, a, c: b.fdiv(a, c))

        def reduce(kind: str, first: float | None) -> simd.Emit:
            def emit(b: Any, a: Any) -> Any:
                # halves onto each other: the same tree on every processor, so the same rounding
                width = lanes
                while width > 1:
                    width //= 2
                    upper = shuffle(b, a, a, [i + width for i in range(width)])
                    lower = shuffle(b, a, a, list(range(width)))
                    if kind == "add":
                        a = b.fadd(lower, upper)
                    elif kind == "int":
                        a = b.add(lower, upper)
                    else:
                        a = b.select(b.fcmp_ordered(">", lower, upper), lower, upper)
                return b.extract_element(a, ir.Constant(I32, 0))

            return emit

        self.sum_floats = function((float_vec,), types.float32, reduce("add", 0.0))
        self.max_floats = function((float_vec,), types.float32, reduce("max", None))
        self.sum_ints = function((int_vec,), types.int32, reduce("int", 0))

        self.to_ints = function((float_vec,), int_vec, lambda b, a: b.fptosi(a, int_vec.llvm))

        def store_small(b: Any, address: Any, value: Any) -> None:
            small = b.trunc(value, ir.VectorType(I8, lanes))
            b.store(small, b.inttoptr(address, small.type.as_pointer())).align = 1

        self.store_as_i8 = function((types.int64, int_vec), types.void, store_small)

        def store_halves(b: Any, address: Any, value: Any) -> None:
            small = b.fptrunc(value, ir.VectorType(HALF, lanes))
            b.store(small, b.inttoptr(address, small.type.as_pointer())).align = 1

        self.store_halves = function((types.int64, float_vec), types.void, store_halves)

        def exp(b: Any, x: Any) -> Any:
            """e^x to 2 ulp: 2^n * e^r with |r| <= ln 2 / 2 (Cephes); 0 below -87, clamped above 88."""

            def const(value: float) -> Any:
                return constant(float_vec, value)

            fma_call = declare_fma(b, lanes)
            tiny = b.fcmp_ordered("<", x, const(-87.0))
            x = named("llvm.minnum")(b, x, const(88.0))
            x = named("llvm.maxnum")(b, x, const(-87.0))
            n = named("llvm.nearbyint")(b, b.fmul(x, const(1.44269504088896341)))
            r = b.call(fma_call, (n, const(-0.693359375), x))
            r = b.call(fma_call, (n, const(2.12194440054690583e-4), r))
            p = const(1.9875691500e-4)
            for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
                p = b.call(fma_call, (p, r, const(c)))
            p = b.fadd(b.call(fma_call, (p, b.fmul(r, r), r)), const(1.0))
            power = b.shl(b.add(b.fptosi(n, int_vec.llvm), constant(int_vec, 127)), constant(int_vec, 23))
            value = b.fmul(p, b.bitcast(power, float_vec.llvm))
            return b.select(tiny, const(0.0), value)

        self.exp = function((float_vec,), float_vec, exp)

        # Pairs of neighbours, (0, 1), (2, 3), ..: for rotations.
        self.swap_pairs = function(
            (float_vec,), float_vec, lambda b, a: shuffle(b, a, a, [i ^ 1 for i in range(lanes)])
        )
        self.to_pairs = function(  # the first half of the lanes, each twice
            (float_vec,), float_vec, lambda b, a: shuffle(b, a, a, [i // 2 for i in range(lanes)])
        )
        self.negate_first = function(  # of every pair
            (float_vec,), float_vec, lambda b, a: b.fmul(a, constant(float_vec, [-1.0, 1.0] * (lanes // 2)))
        )


def _in_turn(isa: Isa, vec: simd.Vector) -> simd.Emit:
    """The value itself, by no instruction, but LLVM does not look through it: it cannot regroup a sum, for which it
    would keep so many products that registers run out."""
    if isa.dot == "llvm":
        return lambda b, a: a
    kind = ir.FunctionType(vec.llvm, [vec.llvm])
    return lambda b, a: b.call(ir.InlineAsm(kind, "", "=x,0"), [a])


def declare_fma(b: Any, lanes: int) -> Any:
    """LLVM's fused multiply-add over f32 lanes."""
    vec = ir.VectorType(FLOAT, lanes)
    return simd.declare(b, f"llvm.fma.v{lanes}f32", vec, [vec] * 3)


def _mul_pairs(isa: Isa) -> simd.Emit:
    lanes = isa.lanes
    bytes_t, pairs_t = ir.VectorType(I8, 4 * lanes), ir.VectorType(I16, 2 * lanes)
    names = {"avx2": "llvm.x86.avx2.pmadd.ub.sw", "avx512": "llvm.x86.avx512.pmaddubs.w.512"}
    if isa.dot in names:
        return lambda b, u, s: b.call(simd.declare(b, names[isa.dot], pairs_t, [bytes_t, bytes_t]), (u, s))

    def plain(b: Any, u: Any, s: Any) -> Any:
        even, odd = list(range(0, 4 * lanes, 2)), list(range(1, 4 * lanes, 2))
        first = b.mul(b.zext(shuffle(b, u, u, even), pairs_t), b.sext(shuffle(b, s, s, even), pairs_t))
        second = b.mul(b.zext(shuffle(b, u, u, odd), pairs_t), b.sext(shuffle(b, s, s, odd), pairs_t))
        return b.add(first, second)

    return plain


def _add_pairs(isa: Isa) -> simd.Emit:
    lanes = isa.lanes
    pairs_t, ints_t = ir.VectorType(I16, 2 * lanes), ir.VectorType(I32, lanes)
    names = {"avx2": "llvm.x86.avx2.pmadd.wd", "avx512": "llvm.x86.avx512.pmaddw.d.512"}
    if isa.dot in names:
        return lambda b, a, c: b.call(simd.declare(b, names[isa.dot], ints_t, [pairs_t, pairs_t]), (a, c))

    def plain(b: Any, a: Any, c: Any) -> Any:
        even, odd = list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))
        first = b.mul(b.sext(shuffle(b, a, a, even), ints_t), b.sext(shuffle(b, c, c, even), ints_t))
        second = b.mul(b.sext(shuffle(b, a, a, odd), ints_t), b.sext(shuffle(b, c, c, odd), ints_t))
        return b.add(first, second)

    return plain
