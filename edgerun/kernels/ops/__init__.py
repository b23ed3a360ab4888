"""The vector language that kernels are written in, and what each instruction set does better in it.

`vectors.Ops` are Numba intrinsics, for loops written in Numba (norms, attention, quantising). `emitter.Emitter` emits
LLVM directly, for the straight-line bodies of products, which are made by Python loops; one file an instruction set
overrides it. `emitter_of` finds the one of an `Isa`.
"""

from __future__ import annotations

from typing import Any

from edgerun.kernels.isa import Isa
from edgerun.kernels.ops.avx2 import Avx2
from edgerun.kernels.ops.avx512 import Avx512
from edgerun.kernels.ops.emitter import Emitter
from edgerun.kernels.ops.i8mm import MatrixProduct
from edgerun.kernels.ops.neon import DotProduct, Neon
from edgerun.kernels.ops.plain import Plain
from edgerun.kernels.ops.vbmi import Avx512Vbmi
from edgerun.kernels.ops.vectors import Ops
from edgerun.kernels.ops.vnni import Avx512Vnni, AvxVnni

__all__ = ["Emitter", "Ops", "emitter_of"]

_EMITTERS: dict[str, type[Emitter]] = {
    "llvm": Plain,
    "avx2": Avx2,
    "avxvnni": AvxVnni,
    "avx512": Avx512,
    "avx512vnni": Avx512Vnni,
    "neon": Neon,
    "dotprod": DotProduct,
    "i8mm": MatrixProduct,
    "avx512vbmi": Avx512Vbmi,
}


def emitter_of(isa: Isa, builder: Any, rows: int = 1) -> Emitter:
    """Emits at `builder` what `isa` does best, for products of so many rows of activations."""
    return _EMITTERS[isa.dot](builder, isa.lanes, rows > 1)
