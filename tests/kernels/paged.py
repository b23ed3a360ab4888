"""Pages for tests of kernels: of one layer of one sequence, in any order in memory."""

from __future__ import annotations

import numpy as np

from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.kv_formats import F16, KvFormat
from edgerun.kernels.page_arrays import read_positions, write_positions
from edgerun.kernels.pages import LayerLayout, LayerPages, Span


class Paged:
    """Room for `positions` in pages full of NaN: what was never written must never be read into a result.

    skipped: positions before this are in no page. seed: of the order in which pages lie.
    """

    def __init__(
        self,
        kv_heads: int,
        dim: int,
        dim_v: int,
        positions: int,
        *,
        seed: int = 0,
        skipped: int = 0,
        keys: KvFormat = F16,
        values: KvFormat = F16,
    ) -> None:
        rng = np.random.default_rng(seed)
        layout = LayerLayout(kv_heads, dim, dim_v, keys, values, keys_at=64)
        count, gone = -(-positions // KEYS_PER_PAGE), skipped // KEYS_PER_PAGE
        apart = -(-layout.end // 64) * 64 + 64
        self._memory = np.full(apart * count + 64, 0xFF, np.uint8)
        first = -(-self._memory.ctypes.data // 64) * 64
        table = first + apart * rng.permutation(count).astype(np.int64)
        table[:gone] = 0
        self.pages = LayerPages(table, layout)

    def write(self, k: np.ndarray, v: np.ndarray, start: int = 0) -> Paged:
        """Positions start and on = k (n, kv_heads, dim), v (n, kv_heads, dim_v), as the reference writes them."""
        write_positions(self.pages, start, k, v)
        return self

    def read(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, kv_heads, dim), (n, kv_heads, dim_v) f32."""
        k, v = read_positions(self.pages, first, end)
        return k.transpose(1, 0, 2), v.transpose(1, 0, 2)

    def bytes(self) -> bytes:
        """All of the pages, in the order of positions."""
        first, end = self._memory.ctypes.data, self.pages.layout.end
        held = [int(at) - first for at in self.pages.table if at]
        return b"".join(self._memory[at : at + end].tobytes() for at in held)

    def span(self, start: int, rows: int) -> Span:
        return Span(self.pages, start, rows)
