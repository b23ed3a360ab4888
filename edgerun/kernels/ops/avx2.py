"""AVX2: eight rows a register. `pmaddubsw` saturates at i16, so chains widen before it can."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.formats.lookup import Lookup
from edgerun.kernels.ops.emitter import Emitter, Value, simd_constant
from edgerun.kernels.ops.lookups import Gathered, GatheredNibbles, Looked
from edgerun.kernels.simd import I8


class Avx2(Emitter):
    """256 bits."""

    REGISTER = "x"

    _MUL_PAIRS, _ADD_PAIRS, _SHUFFLE = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pshuf.b"

    def mul_pairs(self, u: Value, s: Value) -> Value:
        call = simd.declare(self.b, self._MUL_PAIRS, self.pairs, [self.bytes] * 2)
        return self.b.call(call, (self.b.bitcast(u, self.bytes), self.b.bitcast(s, self.bytes)))

    def add_pairs(self, a: Value, c: Value) -> Value:
        call = simd.declare(self.b, self._ADD_PAIRS, self.words, [self.pairs] * 2)
        return self.b.call(call, (self.b.bitcast(a, self.pairs), self.b.bitcast(c, self.pairs)))

    def ones(self, beside: Value) -> Value:
        return simd_constant(self.pairs, 1)

    def with_sign(self, x: Value, w: Value) -> Value:
        call = simd.declare(self.b, "llvm.x86.avx2.psign.b", self.bytes, [self.bytes] * 2)
        return self.b.call(call, (self.b.bitcast(x, self.bytes), self.b.bitcast(w, self.bytes)))

    def look_up(self, table: Lookup, low: Value, high: Value | None = None) -> Looked:
        return (GatheredNibbles if table.width == 8 else Gathered)(self, table, low, high)

    def table(self, codes: Value, values: Sequence[int]) -> Value:
        signed = [value - 256 if value > 127 else value for value in values]
        constant = ir.Constant(ir.VectorType(I8, 4 * self.lanes), signed * (self.lanes // 4))
        call = simd.declare(self.b, self._SHUFFLE, self.bytes, [self.bytes] * 2)
        return self.b.bitcast(self.b.call(call, (constant, self.b.bitcast(codes, self.bytes))), self.words)
