"""MXFP4: a power of two times an E2M1 float (OCP Microscaling specification)."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.nibble_table import NibbleTable

TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class Mxfp4(NibbleTable):
    """The exponent's byte, then nibbles as in Q4_0."""

    type = GgmlType.MXFP4
    fields = (Field(0, 1, 1), Field(1, 4, 4))
    values = TWICE_E2M1

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        """2^(e - 128): half of what E8M0 means, since the table is doubled. Below 2 it is no normal float."""
        exponent = e.load_u8(q, 0)
        small = e.b.shl(e.constant(0x00200000), exponent)
        normal = e.shl(e.sub(exponent, e.constant(1)), 23)
        bits = e.b.select(e.b.icmp_signed("<", exponent, e.constant(2)), small, normal)
        return e.b.bitcast(bits, e.floats)
