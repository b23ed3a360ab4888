"""The portable set: words that LLVM turns into what the processor has."""

from __future__ import annotations

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.ops.emitter import Emitter, Value, simd_constant
from edgerun.kernels.simd import I1, I32, I64


class Plain(Emitter):
    """Of any processor."""

    def gather(self, table: Value, index: Value) -> Value:
        """LLVM knows where an instruction for it is worth while, and reads one by one elsewhere."""
        wide, mask = ir.VectorType(I64, self.lanes), ir.VectorType(I1, self.lanes)
        base = simd.splat(self.b, self.b.ptrtoint(table, I64), self.lanes)
        far = self.b.shl(self.b.zext(index, wide), simd_constant(wide, 2))
        pointers = self.b.inttoptr(self.b.add(base, far), ir.VectorType(I32.as_pointer(), self.lanes))
        name = f"llvm.masked.gather.v{self.lanes}i32.v{self.lanes}p0"
        call = simd.declare(self.b, name, self.words, [pointers.type, I32, mask, self.words])
        return self.b.call(call, (pointers, ir.Constant(I32, 4), ir.Constant(mask, [1] * self.lanes), self.constant(0)))
