"""Decoding a token as recorded launches: Python's share of a token becomes a few numpy assignments.

The first token is recorded while it is computed. Later ones patch what depends on the position and on the cache (the
addresses of keys and values, the rotary row, the range that attention sees) and run the recording in one call. Where
experts must be chosen the recording is cut into pieces; what cannot be recorded is computed eagerly for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.kernels.attention_layout import decode_chunks
from edgerun.kernels.program import I64, Program
from edgerun.kv import KvCache

if TYPE_CHECKING:
    from edgerun.models.decoder import Decoder

# Argument slots of the kernels that are patched (see layer_kernels, attention_kernels)
_ROPE_COS, _ROPE_SIN = 3, 4
_KV_KEYS, _KV_VALUES, _KV_K_STRIDE, _KV_V_STRIDE, _KV_START = 0, 1, 2, 3, 4
_K, _V, _K_STRIDE, _V_STRIDE, _FIRST, _END, _SCRATCH, _PARTS, _CHUNKS = 1, 2, 3, 4, 9, 10, 12, 13, 16
_MERGE_PARTS, _MERGE_CHUNKS = 0, 1


Decide = Callable[[int, Callable[[], bool]], None]  # of a layer; raises Cancelled when the second argument says so


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A whole token. It is there only once all of it is, so that no error and no interrupt can leave half of one.

    cuts: the number of launches before it, what decides, its layer. The others: which launches are patched."""

    program: Program
    cuts: tuple[tuple[int, Decide, int], ...]
    rope: I64
    write: I64
    attend: I64
    merge: I64


class DecodeReplay:
    """One decoder's single-token step. `run` expects the token's embedding in the decoder's scratch."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kernels: Any = decoder.kernels
        self._recorded: _Recorded | None = None
        self._eager = False
        spec = decoder.spec
        self._windows = np.array([spec.window(layer) for layer in range(spec.n_layers)], np.int64)
        self._rotated = np.array([spec.rotates(layer) for layer in range(spec.n_layers)], bool)
        self._local_layer = int(np.argmax(self._windows > 0)) if self._windows.any() else 0
        self._global_layer = int(np.argmax(self._windows == 0))

    def run(self, cache: KvCache, cancelled: Callable[[], bool]) -> None:
        """Compute one token at cache.length; logits are left in the decoder's scratch. Raises Cancelled."""
        if self._eager:
            self._decoder.record_decode(cache, lambda decide, layer: decide(layer, cancelled))
        elif self._recorded is None:
            self._record(cache, cancelled)
        else:
            recorded = self._recorded
            self._patch(recorded, cache)
            start = 0
            for end, decide, layer in recorded.cuts:
                self._kernels.run_program(recorded.program, start, end)
                decide(layer, cancelled)
                start = end
            self._kernels.run_program(recorded.program, start)

    def _record(self, cache: KvCache, cancelled: Callable[[], bool]) -> None:
        cuts: list[tuple[int, Decide, int]] = []
        with self._kernels.record() as recorder:

            def cut(decide: Decide, layer: int) -> None:
                cuts.append((len(recorder), decide, layer))
                with recorder.paused():
                    decide(layer, cancelled)

            self._decoder.record_decode(cache, cut)
        if recorder.spoilt:
            self._eager = True
            return
        program = recorder.program()
        self._recorded = _Recorded(
            program,
            tuple(cuts),
            rope=program.find("rope"),
            write=program.find("kv_write"),
            attend=program.find("attention_decode"),
            merge=program.find("attention_merge"),
        )

    def _patch(self, recorded: _Recorded, cache: KvCache) -> None:
        program, spec, position = recorded.program, self._decoder.spec, cache.length
        keys, values, key_stride, value_stride = cache.addresses()
        end = position + 1
        if self._windows.any():
            first = np.where(self._windows > 0, np.maximum(0, end - self._windows), 0)
        else:
            first = np.zeros(1, np.int64)
        chunks = decode_chunks(first, end)
        scratch, parts = self._kernels.decode_attention_scratch(spec.n_heads, int(chunks.max()), spec.head_dim_v)
        cos, sin = self._rope_addresses(position)
        program.set(recorded.rope, _ROPE_COS, cos)
        program.set(recorded.rope, _ROPE_SIN, sin)
        program.set(recorded.write, _KV_KEYS, keys)
        program.set(recorded.write, _KV_VALUES, values)
        program.set(recorded.write, _KV_K_STRIDE, key_stride)
        program.set(recorded.write, _KV_V_STRIDE, value_stride)
        program.set(recorded.write, _KV_START, position)
        for slot, value in (
            (_K, keys),
            (_V, values),
            (_K_STRIDE, key_stride),
            (_V_STRIDE, value_stride),
            (_FIRST, first),
            (_END, end),
            (_SCRATCH, scratch),
            (_PARTS, parts),
            (_CHUNKS, chunks),
        ):
            program.set(recorded.attend, slot, value)
        program.rows[recorded.attend, 2] = spec.n_kv_heads * chunks
        program.set(recorded.merge, _MERGE_PARTS, parts)
        program.set(recorded.merge, _MERGE_CHUNKS, chunks)

    def _rope_addresses(self, position: int) -> tuple[Any, Any]:
        """Of the rotary rows, for every rope launch (two a layer), or one for all."""
        rows = self._decoder.rope_row(self._global_layer, position)
        cos, sin = (row.ctypes.data for row in rows)
        if not self._windows.any():
            return cos, sin
        local = [row.ctypes.data for row in self._decoder.rope_row(self._local_layer, position)]
        windowed = np.repeat(self._windows[self._rotated] > 0, 2)
        return np.where(windowed, local[0], cos), np.where(windowed, local[1], sin)
