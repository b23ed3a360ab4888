"""Activations about to be multiplied, and their quantised forms."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import Quantize
from edgerun.kernels.formats.activations import FORMS, WIDE_ROWS, parts_row_bytes, wide_row_bytes
from edgerun.kernels.interface import F32, U8
from edgerun.kernels.kernel_names import QUANTIZE
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, memory_at_line

QUANTIZE_GRAIN = 8  # rows


class Form(NamedTuple):
    """Where rows lie in the form that a product takes; "f32" has neither scales nor sums, "parts" no sums."""

    quants: int  # address
    quants_stride: int  # bytes from row to row
    scales: int
    scales_stride: int
    sums: int
    sums_stride: int

    def row(self, index: int) -> Form:
        """From this row on."""
        quants, dq, scales, ds, sums, dc = self
        return Form(quants + index * dq, dq, scales + index * ds, ds, sums + index * dc, dc)


class Rows:
    """Activations (T, K) f32 and the forms that formats have asked for, each made once. UsageError for other arrays."""

    __slots__ = ("_forms", "_launcher", "_memory", "x")

    def __init__(self, x: F32, launcher: Launcher) -> None:
        if x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous:
            raise UsageError(f"activations must be contiguous (T, K) float32, got {x.dtype} {x.shape}")
        self.x = x
        self._launcher = launcher
        self._forms: dict[str, Form] = {}
        self._memory: list[Any] = []  # what the forms point to

    def form(self, kind: str) -> Form:
        """The rows as "q8", "q8k", "parts" or "f32"."""
        known = self._forms.get(kind)
        if known is None:
            known = self._forms[kind] = self._make(kind)
        return known

    def _make(self, kind: str) -> Form:
        if kind == "f32":
            return plain(self.x)
        form, memory, arguments = quantised(self.x, kind)
        self._memory.append(memory)
        self._launcher.keep(memory)
        self._launcher.launch(QUANTIZE[kind], arguments, self.x.shape[0], QUANTIZE_GRAIN)
        return form


def plain(x: F32) -> Form:
    """Rows (T, K) as they are."""
    return Form(address(x), x.shape[1] * 4, 0, 0, 0, 0)


def quantised(x: F32, kind: str) -> tuple[Form, U8, Quantize]:
    """Where rows (T, K) will be as "q8", "q8k" or "parts", the memory that this is, and what `QUANTIZE[kind]` takes to
    do it."""
    tokens, cols = x.shape
    if kind == "parts":
        return _in_parts(x)
    scales_at, sums_at, size, scales_bytes, sums_bytes = _offsets(kind, tokens, cols)
    memory = memory_at_line(size)
    base = address(memory)
    form = Form(base, cols, base + scales_at, scales_bytes, base + sums_at, sums_bytes)
    return form, memory, Quantize(address(x), cols, base, base + scales_at, base + sums_at)


def _in_parts(x: F32) -> tuple[Form, U8, Quantize]:
    tokens, cols = x.shape
    row_bytes, wide_bytes = parts_row_bytes(cols), wide_row_bytes(cols) if len(x) <= WIDE_ROWS else 0
    memory = memory_at_line(tokens * (row_bytes + wide_bytes))
    base = address(memory)
    wide = base + tokens * row_bytes if wide_bytes else 0
    return Form(base, row_bytes, wide, wide_bytes, 0, 0), memory, Quantize(address(x), cols, base, wide, 0)


@lru_cache(maxsize=256)
def _offsets(kind: str, tokens: int, cols: int) -> tuple[int, int, int, int, int]:
    """In bytes: where the scales begin, the sums, the size; a row's scales, a row's sums."""
    block, sums_bytes = FORMS[kind]
    blocks = cols // block
    scales_at = -(-tokens * cols // 64) * 64
    sums_at = scales_at + -(-tokens * blocks * 4 // 64) * 64
    return scales_at, sums_at, sums_at + tokens * blocks * sums_bytes, blocks * 4, blocks * sums_bytes
