"""AVX-512 without VNNI (Skylake-X, Cascade Lake's cheaper cousins): AVX2's instructions at sixteen rows."""

from __future__ import annotations

from edgerun.kernels.ops.avx2 import Avx2
from edgerun.kernels.ops.emitter import Emitter, Value


class Avx512(Avx2):
    """512 bits."""

    REGISTER = "v"

    _MUL_PAIRS, _ADD_PAIRS = "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"
    _SHUFFLE = "llvm.x86.avx512.pshuf.b.512"

    def with_sign(self, x: Value, w: Value) -> Value:
        return Emitter.with_sign(self, x, w)  # there is no psignb here
