"""TQ1_0: d (q - 1), five ternary digits a byte."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class Tq1_0(Super):
    """A byte is the fraction 0.d0 d1 d2 d3 d4 to the base 3, in 256ths, rounded up: digit n is the integer part of
    three times what 3^n times the byte leaves of 256. Of the first 32 bytes digit n is column 32 n + i; of the next
    sixteen 160 + 16 n + i, of the last four 240 + 4 n + i. Codes come eightfold: see Q3_K."""

    type = GgmlType.TQ1_0
    fields = (Field(52, 2, 1), Field(0, 4, 13))
    parts, top, beyond = 1, 24, 8

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        for t in range(13):
            first, step, digits = (4 * t, 32, 5) if t < 8 else (160 + 4 * (t - 8), 16, 5) if t < 12 else (240, 4, 4)
            word = self.words(e, q, 1, t)
            even = e.b.and_(word, e.constant(0x00FF00FF))
            odd = e.b.and_(e.b.lshr(word, e.constant(8)), e.constant(0x00FF00FF))
            for digit in range(digits):
                even, low = self._next(e, even)
                odd, high = self._next(e, odd)
                yield first + step * digit, e.either(low, e.shl(high, 8))

    @staticmethod
    def _next(e: Emitter, rest: Value) -> tuple[Value, Value]:
        """Bytes in the lower halves of i16 -> (the same of what is left, eight times the digit)."""
        tripled = e.add(rest, e.shl(rest, 1))  # at most 765: nothing reaches the other half
        digit = e.b.and_(e.b.lshr(tripled, e.constant(5)), e.constant(0x00180018))
        return e.b.and_(tripled, e.constant(0x00FF00FF)), digit

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))
