"""VNNI: `vpdpbusd` adds four products of u8 and i8 to an i32 lane, exactly and in one instruction.

Signed codes become unsigned by + 128, which the chain's start takes off again: it must hold -128 times the sum of the
activations, in integers (in floats, what a row gets would depend on its neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerun.kernels import simd
from edgerun.kernels.ops.avx2 import Avx2
from edgerun.kernels.ops.avx512 import Avx512
from edgerun.kernels.ops.emitter import Chain, Emitter, SumChain, Value


class Vnni(Emitter):
    """What both widths have; a register is that of the other base."""

    signed_start = True

    def signed_codes(self, w: Value) -> Any:
        return self.b.xor(w, self.constant(0x80808080))

    def table_codes(self, codes: Value, values: Sequence[int]) -> Any:
        return self.table(codes, [value + 128 for value in values])

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        return VnniChain(self, start, scale, total)

    def dot_pairs(self, total: Value | None, a: Value, c: Value) -> Value:
        return dot(self, "vpdpwssd", self.constant(0) if total is None else total, a, c)


class Avx512Vnni(Vnni, Avx512):
    """512 bits (Ice Lake, Zen 4 and later)."""


class AvxVnni(Vnni, Avx2):
    """256 bits (Alder Lake and later, Zen 5)."""


class VnniChain(SumChain):
    """One instruction a step."""

    def step(self, codes: Any, x: Value) -> None:
        self._sum = dot(self._e, "vpdpbusd", self._sum, codes, x)


def dot(e: Emitter, name: str, total: Value, a: Value, c: Value) -> Value:
    """One of VNNI's instructions."""
    call = simd.declare(e.b, f"llvm.x86.avx512.{name}.{32 * e.lanes}", e.words, [e.words] * 3)
    return e.b.call(call, (total, e.b.bitcast(a, e.words), e.b.bitcast(c, e.words)))
