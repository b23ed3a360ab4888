"""Decoding a token as recorded launches: Python's share of a token becomes a few numpy assignments.

The first token is recorded while it is computed. Later ones patch what depends on the position and on the sequence
(the rotary row, the range that attention sees; the table of its pages) and run the recording in one call. Where
experts must be chosen the recording is cut into pieces; what cannot be recorded is computed eagerly for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.kernels.abi import AttentionDecode, AttentionRow, MergedRow, Rope, WrittenSpan, slot_of
from edgerun.kernels.attention_layout import decode_pages
from edgerun.kernels.kv_formats import decode_kernel
from edgerun.kernels.program import I64, Patch, Program
from edgerun.kv import KvSequence
from edgerun.models.blocks.base import Cancel, Cut, Decide
from edgerun.models.plan import LayerPlan
from edgerun.models.rope import RopeTable
from edgerun.models.spec import Rotation

# Argument slots of the kernels that are patched
_ROPE_COS, _ROPE_SIN = (slot_of(Rope, name) for name in ("cos", "sin"))
_WRITTEN_TABLE, _START = (slot_of(WrittenSpan, name) for name in ("table", "start"))
_SCRATCH = slot_of(AttentionDecode, "scratch")
_TABLE, _FIRST, _END, _PARTS, _PAGES = (
    slot_of(AttentionRow, name) for name in ("table", "first", "end", "parts", "pages")
)
_MERGED_PARTS, _MERGED_PAGES = (slot_of(MergedRow, name) for name in ("parts", "pages"))


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A whole token. It is there only once all of it is, so that no error and no interrupt can leave half of one.

    cuts: the number of launches before it, what decides.
    body: launches before those of the logits.
    write, attend, merge: the launches that are patched when another sequence comes than for the token before.
    step: what is patched for every token (`DecodeReplay._patch`)."""

    program: Program
    cuts: tuple[tuple[int, Decide], ...]
    body: int
    write: I64
    attend: I64
    merge: I64
    step: Patch


def is_replayable(plan: tuple[LayerPlan, ...]) -> bool:
    """Whether one position of all layers is patched by so few numbers: attention alike in all of them, but for one
    window and one rotation that some have and others have not."""
    kinds = {(each.mixer.heads, each.mixer.kv) for each in plan}
    windows = {each.mixer.window for each in plan if each.mixer.window}
    shapes = {(heads, kv.kv_heads, kv.head_dim_k, kv.head_dim_v) for heads, kv in kinds}
    rotations = {bool(w): {p.mixer.rotation for p in plan if p.mixer.window == w} - {None} for w in windows | {0}}
    return len(shapes) == 1 and len(windows) <= 1 and all(len(each) <= 1 for each in rotations.values())


class DecodeReplay:
    """One decoder's single-token step. `run` expects the token's embedding in the decoder's row.

    record: makes all launches of one token at the cache's length but those of its logits, and `logits` these; `cut` is
    called where Python must decide."""

    def __init__(
        self,
        kernels: Any,
        plan: tuple[LayerPlan, ...],
        ropes: dict[Rotation, RopeTable],
        record: Callable[[KvSequence, Cut], None],
        logits: Callable[[], None],
    ) -> None:
        self._kernels = kernels
        self._record_body, self._record_logits = record, logits
        self._recorded: _Recorded | None = None
        self._eager = False
        self._attention = plan[0].mixer
        windows = [each.mixer.window for each in plan]
        self._window = max(windows)  # all that are not 0 are alike
        self._windowed = np.array([window > 0 for window in windows], np.int64)
        self._rotated = np.array([each.mixer.rotation is not None for each in plan], bool)
        found = {bool(m.window): ropes[m.rotation] for m in (each.mixer for each in plan) if m.rotation is not None}
        self._ropes = found.get(False), found.get(True)  # of layers that see all, of those with a window
        self._laid_out: tuple[Any, int, int] | None = None  # the sequence's tables and the scratch that are recorded

    def run(self, cache: KvSequence, cancelled: Cancel, logits: bool) -> None:
        """Compute one token at cache.length; logits, where wanted, are left where they are recorded. Raises
        Cancelled."""
        if self._eager:
            self._record_body(cache, lambda decide: decide(cancelled))
            if logits:
                self._record_logits()
        elif self._recorded is None:
            self._record(cache, cancelled)
        else:
            recorded = self._recorded
            self._patch(recorded, cache)
            start = 0
            for end, decide in recorded.cuts:
                self._kernels.run_program(recorded.program, start, end)
                decide(cancelled)
                start = end
            self._kernels.run_program(recorded.program, start, None if logits else recorded.body)

    def _record(self, cache: KvSequence, cancelled: Cancel) -> None:
        cuts: list[tuple[int, Decide]] = []
        with self._kernels.record() as recorder:

            def cut(decide: Decide) -> None:
                cuts.append((len(recorder), decide))
                with recorder.paused():
                    decide(cancelled)

            self._record_body(cache, cut)
            body = len(recorder)
            self._record_logits()
        if recorder.spoilt:
            self._eager = True
            return
        program = recorder.program()
        self._laid_out = None
        layout = cache.pages(0).layout
        names = ("kv_write", decode_kernel(layout.keys, layout.values), "attention_merge")
        write, attend, merge = (program.find(name) for name in names)
        self._recorded = _Recorded(
            program, tuple(cuts), body, write, attend, merge, self._step(program, write, attend, merge)
        )

    def _step(self, program: Program, write: I64, attend: I64, merge: I64) -> Patch:
        """Where the values go that `_patch` gives: position and end, then five for layers that see all and five for
        those with a window."""
        first = 2 + 5 * self._windowed  # a layer's first of its five
        rope, rotated = program.find("rope"), first[self._rotated]
        every = np.zeros_like(first)
        places = [
            (program.listed_places(write, _START), every),
            (program.listed_places(attend, _END), every + 1),
            (program.listed_places(attend, _FIRST), first),
            (program.listed_places(attend, _PAGES), first + 1),
            (program.listed_places(merge, _MERGED_PAGES), first + 1),
            (program.item_places(attend), first + 2),
            (program.argument_places(rope, _ROPE_COS), rotated + 3),
            (program.argument_places(rope, _ROPE_SIN), rotated + 4),
        ]
        return program.patch(places, 12)

    def _patch(self, recorded: _Recorded, cache: KvSequence) -> None:
        attention, position = self._attention, cache.length
        end = position + 1
        first = max(0, end - self._window) if self._window else 0
        all_pages, pages = decode_pages(0, end), decode_pages(first, end)
        scratch = self._kernels.decode_attention_scratch(cache.pages(0).layout, attention.heads, all_pages)
        laid_out = self._laid_out
        if laid_out is None or laid_out[0] is not cache.tables or laid_out[1:] != scratch:
            self._lay_out(recorded, cache.tables, *scratch)
        (cos, sin), (local_cos, local_sin) = (
            (0, 0) if rope is None else rope.addresses(position) for rope in self._ropes
        )
        heads = attention.kv_heads
        recorded.step.write(
            *(position, end),
            *(0, all_pages, heads * all_pages, cos, sin),
            *(first, pages, heads * pages, local_cos, local_sin),
        )

    def _lay_out(self, recorded: _Recorded, tables: I64, scratch: int, parts: int) -> None:
        """Where the tables (layers,) of pages and the parts of attention lie."""
        self._laid_out = None  # an interrupt may leave half of it
        program = recorded.program
        program.set_listed(recorded.write, _WRITTEN_TABLE, tables)
        program.set_listed(recorded.attend, _TABLE, tables)
        program.set(recorded.attend, _SCRATCH, scratch)
        program.set_listed(recorded.attend, _PARTS, parts)
        program.set_listed(recorded.merge, _MERGED_PARTS, parts)
        self._laid_out = tables, scratch, parts
