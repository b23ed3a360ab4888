"""AVX-512 without VNNI (Skylake-X, Cascade Lake's cheaper cousins): AVX2's instructions at sixteen rows."""

from __future__ import annotations

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.ops.avx2 import Avx2
from edgerun.kernels.ops.emitter import Emitter, Value
from edgerun.kernels.simd import I1, I32


class Avx512(Avx2):
    """512 bits."""

    REGISTER = "v"

    _MUL_PAIRS, _ADD_PAIRS = "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"
    _SHUFFLE = "llvm.x86.avx512.pshuf.b.512"

    def gather(self, table: Value, index: Value) -> Value:
        mask = ir.VectorType(I1, self.lanes)
        kinds = [self.words, table.type, self.words, mask, I32]
        call = simd.declare(self.b, "llvm.x86.avx512.mask.gather.dpi.512", self.words, kinds)
        all_lanes = ir.Constant(mask, [1] * self.lanes)
        return self.b.call(call, (self.constant(0), table, index, all_lanes, ir.Constant(I32, 4)))

    def with_sign(self, x: Value, w: Value) -> Value:
        return Emitter.with_sign(self, x, w)  # there is no psignb here
