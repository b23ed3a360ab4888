"""Decoding a token as recorded launches: Python's share of a token becomes a few numpy assignments.

The first token is recorded while it is computed. Later ones patch what depends on the position and on the cache (the
addresses of keys and values, the rotary row, the range that attention sees) and run the recording in one call. Where
experts must be chosen the recording is cut into pieces; what cannot be recorded is computed eagerly for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.kernels.abi import AttentionDecode, AttentionMerge, KvWrite, Rope, slot_of
from edgerun.kernels.attention_layout import decode_chunks
from edgerun.kernels.program import I64, Patch, Program
from edgerun.kv import KvCache
from edgerun.models.blocks.base import Cancel, Cut, Decide
from edgerun.models.plan import LayerPlan
from edgerun.models.rope import RopeTable
from edgerun.models.spec import Rotation

# Argument slots of the kernels that are patched
_ROPE_COS, _ROPE_SIN = (slot_of(Rope, name) for name in ("cos", "sin"))
_KV_KEYS, _KV_VALUES, _KV_K_STRIDE, _KV_V_STRIDE, _KV_START = (
    slot_of(KvWrite, name) for name in ("keys", "values", "keys_stride", "values_stride", "start")
)
_K, _V, _K_STRIDE, _V_STRIDE, _FIRST, _END, _SCRATCH, _PARTS, _CHUNKS = (
    slot_of(AttentionDecode, name)
    for name in ("k", "v", "k_stride", "v_stride", "first", "end", "scratch", "out", "chunks")
)
_MERGE_PARTS, _MERGE_CHUNKS = (slot_of(AttentionMerge, name) for name in ("parts", "chunks"))


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A whole token. It is there only once all of it is, so that no error and no interrupt can leave half of one.

    cuts: the number of launches before it, what decides.
    body: launches before those of the logits.
    write, attend, merge: the launches that are patched when keys and values lie elsewhere than for the token before.
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
        record: Callable[[KvCache, Cut], None],
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
        self._laid_out: tuple[Any, int, int] | None = None  # the cache's addresses and the scratch that are recorded

    def run(self, cache: KvCache, cancelled: Cancel, logits: bool) -> None:
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

    def _record(self, cache: KvCache, cancelled: Cancel) -> None:
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
        write, attend, merge = (program.find(name) for name in ("kv_write", "attention_decode", "attention_merge"))
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
            (program.argument_places(write, _KV_START), every),
            (program.argument_places(attend, _END), every + 1),
            (program.argument_places(attend, _FIRST), first),
            (program.argument_places(attend, _CHUNKS), first + 1),
            (program.argument_places(merge, _MERGE_CHUNKS), first + 1),
            (program.item_places(attend), first + 2),
            (program.argument_places(rope, _ROPE_COS), rotated + 3),
            (program.argument_places(rope, _ROPE_SIN), rotated + 4),
        ]
        return program.patch(places, 12)

    def _patch(self, recorded: _Recorded, cache: KvCache) -> None:
        attention, position = self._attention, cache.length
        end = position + 1
        first = max(0, end - self._window) if self._window else 0
        all_chunks, chunks = decode_chunks(0, end), decode_chunks(first, end)
        scratch = self._kernels.decode_attention_scratch(attention.heads, all_chunks, attention.head_dim_v)
        addresses = cache.addresses()
        laid_out = self._laid_out
        if laid_out is None or laid_out[0] is not addresses or laid_out[1:] != scratch:
            self._lay_out(recorded, addresses, *scratch)
        (cos, sin), (local_cos, local_sin) = (
            (0, 0) if rope is None else rope.addresses(position) for rope in self._ropes
        )
        heads = attention.kv_heads
        recorded.step.write(
            *(position, end),
            *(0, all_chunks, heads * all_chunks, cos, sin),
            *(first, chunks, heads * chunks, local_cos, local_sin),
        )

    def _lay_out(self, recorded: _Recorded, addresses: tuple[I64, I64, I64, I64], scratch: int, parts: int) -> None:
        """Where keys, values and the parts of attention lie."""
        self._laid_out = None  # an interrupt may leave half of it
        program = recorded.program
        keys, values, key_stride, value_stride = addresses
        program.set(recorded.write, _KV_KEYS, keys)
        program.set(recorded.write, _KV_VALUES, values)
        program.set(recorded.write, _KV_K_STRIDE, key_stride)
        program.set(recorded.write, _KV_V_STRIDE, value_stride)
        for slot, value in (
            (_K, keys),
            (_V, values),
            (_K_STRIDE, key_stride),
            (_V_STRIDE, value_stride),
            (_SCRATCH, scratch),
            (_PARTS, parts),
        ):
            program.set(recorded.attend, slot, value)
        program.set(recorded.merge, _MERGE_PARTS, parts)
        self._laid_out = addresses, scratch, parts
