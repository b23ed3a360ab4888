"""Vector operations as Numba intrinsics: what norms, attention and quantising are written in. Plain LLVM: what differs
between instruction sets is in `emitter` and its kin."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgerun.kernels import simd
from edgerun.kernels.isa import Isa
from edgerun.kernels.simd import FLOAT, HALF, I8, I16, I32, constant, function, loader, shuffle, splat, vector


class Ops:
    """The vector operations for the lanes of one instruction set. L = lanes."""

    def __init__(self, isa: Isa) -> None:
        lanes = isa.lanes
        self.lanes = lanes
        int_vec, float_vec = vector(I32, lanes), vector(FLOAT, lanes)
        self.load_floats = loader(float_vec)
        self.store_floats = simd.storer(float_vec)
        self.load_floats_masked = simd.masked_loader(float_vec)
        self.store_floats_masked = simd.masked_storer(float_vec)

        self.load_halves = function(  # L x f16 -> f32
            (types.int64,),
            float_vec,
            lambda b, a: b.fpext(simd._load(b, a, ir.VectorType(HALF, lanes)), float_vec.llvm),
        )

        def bfloats(b: Any, address: Any) -> Any:
            small = simd._load(b, address, ir.VectorType(I16, lanes))
            return b.bitcast(b.shl(b.zext(small, int_vec.llvm), constant(int_vec, 16)), float_vec.llvm)

        self.load_bfloats = function((types.int64,), float_vec, bfloats)  # L x bf16 -> f32

        def gather(b: Any, address: Any, stride: Any, n: Any) -> Any:
            pointers = ir.VectorType(ir.IntType(8).as_pointer(), lanes)
            steps = ir.Constant(ir.VectorType(simd.I64, lanes), list(range(lanes)))
            where = b.add(splat(b, address, lanes), b.mul(splat(b, stride, lanes), steps))
            mask = simd.first_lanes(b, lanes, b.trunc(n, I32))
            kinds = [pointers, I32, mask.type, float_vec.llvm]
            call = simd.declare(b, f"llvm.masked.gather.v{lanes}f32.v{lanes}p0", float_vec.llvm, kinds)
            return b.call(call, (b.inttoptr(where, pointers), ir.Constant(I32, 4), mask, constant(float_vec, 0.0)))

        self.gather = function(  # (address, bytes from lane to lane, n) -> the first n lanes, the rest zero
            (types.int64,) * 3, float_vec, gather
        )

        self.splat = function((types.float32,), float_vec, lambda b, a: splat(b, a, lanes))
        self.splat_load = function((types.int64,), float_vec, lambda b, a: splat(b, simd._load(b, a, FLOAT), lanes))
        self.zero_floats = function((), float_vec, lambda b: constant(float_vec, 0.0))
        self.zero_ints = function((), int_vec, lambda b: constant(int_vec, 0))
        self.add_i32 = function((int_vec, int_vec), int_vec, lambda b, a, c: b.add(a, c))
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
            """e^x to 2 ulp: 2^n * e^r with |r| <= ln 2 / 2 (Cephes); 0 below -87, clamped above 88, NaN of NaN."""

            def const(value: float) -> Any:
                return constant(float_vec, value)

            fma_call = declare_fma(b, lanes)
            tiny = b.fcmp_ordered("<", x, const(-87.0))
            given, x = x, named("llvm.minnum")(b, x, const(88.0))  # NaN becomes 88 here, and itself at the end
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
            return b.select(b.fcmp_unordered("uno", given, given), given, b.select(tiny, const(0.0), value))

        self.exp = function((float_vec,), float_vec, exp)

        # Pairs of neighbours, (0, 1), (2, 3), ..: for rotations.
        self.swap_pairs = function(
            (float_vec,), float_vec, lambda b, a: shuffle(b, a, a, [i ^ 1 for i in range(lanes)])
        )
        self.to_pairs = function(  # the first half of the lanes, each twice
            (float_vec,), float_vec, lambda b, a: shuffle(b, a, a, [i // 2 for i in range(lanes)])
        )

        def butterflies(b: Any, a: Any) -> Any:
            """Of lanes i and i + 1, then i and i + 2, ..: their sum and their difference in their places."""
            step = 1
            while step < lanes:
                other = shuffle(b, a, a, [i ^ step for i in range(lanes)])
                signs = constant(float_vec, [-1.0 if i & step else 1.0 for i in range(lanes)])
                a = b.fadd(other, b.fmul(a, signs))
                step *= 2
            return a

        self.butterflies = function((float_vec,), float_vec, butterflies)
        self.negate_first = function(  # of every pair
            (float_vec,), float_vec, lambda b, a: b.fmul(a, constant(float_vec, [-1.0, 1.0] * (lanes // 2)))
        )


def declare_fma(b: Any, lanes: int) -> Any:
    """LLVM's fused multiply-add over f32 lanes."""
    vec = ir.VectorType(FLOAT, lanes)
    return simd.declare(b, f"llvm.fma.v{lanes}f32", vec, [vec] * 3)
