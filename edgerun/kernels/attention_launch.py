"""Attention: new keys and values into pages, and queries over them. See `attention_layout`, `attention_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import KvWrite, Rotate, WrittenSpan
from edgerun.kernels.attention_abi import AttentionDecode, AttentionMerge, AttentionPrompt, AttentionRow, MergedRow
from edgerun.kernels.attention_layout import (
    KEYS_PER_PAGE,
    decode_pages,
    decode_scratch_bytes,
    prompt_scratch_bytes,
    prompt_tile,
    seen_apart,
)
from edgerun.kernels.far import Far
from edgerun.kernels.interface import F32
from edgerun.kernels.kv_formats import GROUP, IN_KEYS, decode_kernel, rotation_size
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants
from edgerun.kernels.pages import LayerLayout, Span, check_spans, layout_of

FEW_ROWS = 8  # of a span: they go one by one, beside those of all other short spans; longer ones go by tiles
_FEW = 16  # rows; fewer are written by the caller alone
_MOST_ROWS = 256  # of a launch: the parts of their results are kept until they are joined


@dataclass(frozen=True, eq=False)
class Scores:
    """What becomes of scores: see `interface.Kernels.attention`."""

    scale: float
    softcap: float = 0.0
    window: int = 0
    chunked: bool = False
    sinks: F32 | None = None
    far: Far | None = None

    @property
    def constants(self) -> int:
        """Address of scale and softcap."""
        return constants(self.scale, self.softcap)

    @property
    def sinks_at(self) -> int:
        """Their address; 0: none."""
        return 0 if self.sinks is None else address(self.sinks)

    def first_seen(self, end: int) -> int:
        """Of the positions before `end`, as they lie."""
        return self.seen(end)[0]

    def seen(self, end: int) -> tuple[int, int]:
        """`attention_layout.seen_apart`."""
        return seen_apart(end, self.far.positions if self.far else 0, self.window, self.chunked)


class AttentionLaunch:
    """Lays out attention and launches it, with scratch memory that all launches share, one after another."""

    def __init__(self, launcher: Launcher, lanes: int) -> None:
        self._launcher = launcher
        self._lanes = lanes
        self._scratch = np.zeros(0, np.float32)
        self._busy = np.zeros(launcher.threads + 1, np.int64)  # which parts of the scratch threads have taken

    def write(self, spans: Sequence[Span], k: F32, v: F32) -> None:
        """See `interface.Kernels.kv_write`."""
        layout, rows = layout_of(spans), len(k)
        heads, dim, dim_v = layout.kv_heads, layout.head_dim, layout.head_dim_v
        if k.shape != (rows, heads, dim) or v.shape != (rows, heads, dim_v):
            raise UsageError(f"cannot write {k.shape}, {v.shape} to pages of {heads} x {dim}, {heads} x {dim_v}")
        check_spans(spans, rows, [span.start for span in spans])
        if layout.keys.is_rotated:
            k = self._rotated(k)
        arguments = KvWrite(
            keys_at=layout.keys_at,
            values_at=layout.values_at,
            keys_stride=layout.keys_stride,
            values_stride=layout.values_stride,
            k=address(k),
            v=address(v),
            heads=heads,
            head_dim=dim,
            head_dim_v=dim_v,
            keys_format=layout.keys.number,
            values_format=layout.values.number,
        )
        written, row = [], 0
        for span in spans:
            written.append(WrittenSpan(span.pages.address, span.start, row, span.rows))
            row += span.rows
        items = heads * len(spans)
        self._launcher.launch("kv_write", arguments, items, items if rows < _FEW else 1, written)

    def attend(self, q: F32, spans: Sequence[Span], out: F32, scores: Scores) -> None:
        """See `interface.Kernels.attention`."""
        layout, (rows, heads, dim) = layout_of(spans), q.shape
        if heads % layout.kv_heads or dim != layout.head_dim or out.shape != (rows, heads, layout.head_dim_v):
            raise UsageError(f"attention of {q.shape} over {layout.kv_heads} kv heads into {out.shape}")
        if scores.sinks is not None and (scores.sinks.shape != (heads,) or not scores.sinks.flags.c_contiguous):
            raise UsageError(f"{heads} heads cannot have sinks of {scores.sinks.shape}")
        check_spans(spans, rows, [scores.first_seen(span.start + 1) for span in spans])
        far = scores.far
        if far is not None:
            if far.q.shape != q.shape or not 0 < far.positions <= KEYS_PER_PAGE or not scores.window or scores.chunked:
                raise UsageError(
                    f"{far.positions} positions cannot be seen apart by {far.q.shape} in place of {q.shape}"
                )
            if any(scores.seen(span.end)[1] and not span.pages.table[0] for span in spans):
                raise UsageError("the first positions are in no page")
            if layout.keys.is_rotated:
                scores = replace(scores, far=replace(far, q=self._rotated(far.q)))
        if layout.keys.is_rotated:
            q = self._rotated(q)
        few: list[tuple[int, int, int]] = []  # row of q, address of its sequence's table, position after the last
        with self._launcher.lock:  # the scratch is ours until the last launch is done
            row = 0
            for span in spans:
                if span.rows <= FEW_ROWS or far is not None:
                    few += [(row + i, span.pages.address, span.start + i + 1) for i in range(span.rows)]
                else:
                    self._prompt(q[row : row + span.rows], span, layout, scores, out[row : row + span.rows])
                row += span.rows
            for first in range(0, len(few), _MOST_ROWS):
                self._single_rows(q, few[first : first + _MOST_ROWS], layout, scores, out)

    def decode_scratch(self, layout: LayerLayout, heads: int, pages: int) -> tuple[int, int]:
        """Of attention for single rows, which have so many pages together: addresses of the threads' slots, of the
        parts of results."""
        slots = _slot_bytes(layout) // 4 * self._launcher.threads
        scratch = self._floats(slots + heads * pages * (layout.head_dim_v + 2))
        return scratch, scratch + 4 * slots

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._busy[:] = 0

    def _single_rows(
        self, q: F32, few: list[tuple[int, int, int]], layout: LayerLayout, scores: Scores, out: F32
    ) -> None:
        """Each by itself, in pages that threads share and a second launch joins."""
        _, heads, dim = q.shape
        dim_v, kv_heads, part_bytes = layout.head_dim_v, layout.kv_heads, 4 * (layout.head_dim_v + 2)
        seen = [scores.seen(end) for _, _, end in few]
        far = [decode_pages(0, far_end) if far_end else 0 for _, far_end in seen]
        pages = [n + decode_pages(first, end) for n, (first, _), (_, _, end) in zip(far, seen, few, strict=True)]
        scratch, parts = self.decode_scratch(layout, heads, sum(pages))
        q_at, out_at = address(q), address(out)
        rows, merged, before = [], [], 0
        for (row, table, end), (first, far_end), far_count, count in zip(few, seen, far, pages, strict=True):
            item, part, of_row = kv_heads * before, parts + heads * before * part_bytes, 4 * row * heads * dim
            if scores.far is not None:
                far_q = address(scores.far.q) + of_row
                rows.append(AttentionRow(item, far_q, table, 0, far_end, part, count))
            near_part = part + far_count * part_bytes
            rows.append(AttentionRow(item + kv_heads * far_count, q_at + of_row, table, first, end, near_part, count))
            merged.append(MergedRow(part, count, out_at + 4 * row * heads * dim_v))
            before += count
        arguments = AttentionDecode(
            **self._places(layout, heads, scores),
            scratch=scratch,
            scratch_bytes=_slot_bytes(layout),
            rows=len(rows),
        )
        self._launcher.launch(decode_kernel(layout.keys, layout.values), arguments, kv_heads * before, 1, rows)
        self._launcher.launch(
            "attention_merge", AttentionMerge(heads, dim_v, scores.sinks_at), heads * len(few), heads, merged
        )

    def _prompt(self, q: F32, span: Span, layout: LayerLayout, scores: Scores, out: F32) -> None:
        """Many rows of one sequence, each of which sees the positions up to its own."""
        rows, heads, dim = q.shape
        group = heads // layout.kv_heads
        tile = prompt_tile(rows, layout.kv_heads, group, self._launcher.threads)
        slot_bytes = prompt_scratch_bytes(dim, layout.head_dim_v, group, tile, self._lanes)
        arguments = AttentionPrompt(
            **self._places(layout, heads, scores),
            scratch=self._floats(slot_bytes // 4 * self._launcher.threads),
            scratch_bytes=slot_bytes,
            q=address(q),
            table=span.pages.address,
            heads=heads,
            out=address(out),
            rows=rows,
            window=-scores.window if scores.chunked else scores.window,
            start=span.start,
            keys_format=layout.keys.number,
            values_format=layout.values.number,
            sinks=scores.sinks_at,
            tile=tile,
        )
        self._launcher.launch("attention_prompt", arguments, -(-rows // tile) * layout.kv_heads, 1)

    def _places(self, layout: LayerLayout, heads: int, scores: Scores) -> dict[str, int]:
        """Slots that all attention of a layer takes alike."""
        return {
            "keys_at": layout.keys_at,
            "values_at": layout.values_at,
            "keys_stride": layout.keys_stride,
            "values_stride": layout.values_stride,
            "head_dim": layout.head_dim,
            "head_dim_v": layout.head_dim_v,
            "group": heads // layout.kv_heads,
            "constants": scores.constants,
            "busy": address(self._busy),
        }

    def _rotated(self, x: F32) -> F32:
        """(rows, heads, head_dim), rotated: see `kv_formats`."""
        out = np.empty_like(x)
        self._launcher.keep(out)
        size = rotation_size(x.shape[2])
        items = x.size // size
        arguments = Rotate(address(x), address(out), size, constants(size**-0.5))
        self._launcher.launch("rotate", arguments, items, 64)
        return out

    def _floats(self, count: int) -> int:
        if self._scratch.size < count:
            self._scratch = np.empty(count + 16, np.float32)
        return address(self._scratch)


def _slot_bytes(layout: LayerLayout) -> int:
    if layout.values is IN_KEYS:
        return decode_scratch_bytes(0, layout.head_dim_v)
    return decode_scratch_bytes(0 if layout.values.is_plain else layout.head_dim_v // GROUP)
