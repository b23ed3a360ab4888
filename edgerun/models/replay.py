"""Decoding a token as recorded launches: Python's share of a token becomes a few numpy assignments.

The first token is recorded while it is computed. Later ones patch what depends on the position and on the cache (the
addresses of keys and values, the rotary row, the range that attention sees) and run the recording in one call. Where
experts must be chosen the recording is cut into pieces; what cannot be recorded is computed eagerly for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.kernels.attention_layout import decode_chunks
from edgerun.kv import KvCache

if TYPE_CHECKING:
    from edgerun.models.decoder import Decoder

# Argument slots of the kernels that are patched (see layer_kernels, attention_kernels)
_ROPE_COS, _ROPE_SIN = 3, 4
_KV_KEYS, _KV_VALUES, _KV_K_STRIDE, _KV_V_STRIDE, _KV_START = 0, 1, 2, 3, 4
_K, _V, _K_STRIDE, _V_STRIDE, _FIRST, _END, _SCRATCH, _PARTS, _CHUNKS = 1, 2, 3, 4, 9, 10, 12, 13, 16
_MERGE_PARTS, _MERGE_CHUNKS = 0, 1


class DecodeReplay:
    """One decoder's single-token step. `run` expects the token's embedding in the decoder's scratch."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kernels: Any = decoder.kernels
        self._program: Any = None
        self._eager = False
        self._cuts: list[tuple[int, Callable[[int], None], int]] = []  # launches before it, what decides, its layer
        spec = decoder.spec
        self._windows = np.array([spec.window(layer) for layer in range(spec.n_layers)], np.int64)
        self._rotated = np.array([spec.rotates(layer) for layer in range(spec.n_layers)], bool)
        self._local_layer = int(np.argmax(self._windows > 0)) if self._windows.any() else 0
        self._global_layer = int(np.argmax(self._windows == 0))

    def run(self, cache: KvCache) -> None:
        """Compute one token at cache.length; logits are left in the decoder's scratch."""
        if self._eager:
            self._decoder.record_decode(cache, lambda decide, layer: decide(layer))
        elif self._program is None:
            self._record(cache)
        else:
            self._patch(cache)
            start = 0
            for end, decide, layer in self._cuts:
                self._kernels.run_program(self._program, start, end)
                decide(layer)
                start = end
            self._kernels.run_program(self._program, start)

    def _record(self, cache: KvCache) -> None:
        with self._kernels.record() as recorder:

            def cut(decide: Callable[[int], None], layer: int) -> None:
                self._cuts.append((len(recorder), decide, layer))
                with recorder.paused():
                    decide(layer)

            self._decoder.record_decode(cache, cut)
        if recorder.spoilt:
            self._eager = True
            return
        program = self._program = recorder.program()
        self._rope, self._write = program.find("rope"), program.find("kv_write")
        self._attend, self._merge = program.find("attention_decode"), program.find("attention_merge")

    def _patch(self, cache: KvCache) -> None:
        program, spec, position = self._program, self._decoder.spec, cache.length
        keys, values, key_stride, value_stride = cache.addresses()
        end = position + 1
        if self._windows.any():
            first = np.where(self._windows > 0, np.maximum(0, end - self._windows), 0)
        else:
            first = np.zeros(1, np.int64)
        chunks = decode_chunks(first, end)
        scratch, parts = self._kernels.decode_attention_scratch(spec.n_heads, int(chunks.max()), spec.head_dim_v)
        cos, sin = self._rope_addresses(position)
        program.set(self._rope, _ROPE_COS, cos)
        program.set(self._rope, _ROPE_SIN, sin)
        program.set(self._write, _KV_KEYS, keys)
        program.set(self._write, _KV_VALUES, values)
        program.set(self._write, _KV_K_STRIDE, key_stride)
        program.set(self._write, _KV_V_STRIDE, value_stride)
        program.set(self._write, _KV_START, position)
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
            program.set(self._attend, slot, value)
        program.rows[self._attend, 2] = spec.n_kv_heads * chunks
        program.set(self._merge, _MERGE_PARTS, parts)
        program.set(self._merge, _MERGE_CHUNKS, chunks)

    def _rope_addresses(self, position: int) -> tuple[Any, Any]:
        """Of the rotary rows, for every rope launch (two a layer), or one for all."""
        rows = self._decoder.rope_row(self._global_layer, position)
        cos, sin = (row.ctypes.data for row in rows)
        if not self._windows.any():
            return cos, sin
        local = [row.ctypes.data for row in self._decoder.rope_row(self._local_layer, position)]
        windowed = np.repeat(self._windows[self._rotated] > 0, 2)
        return np.where(windowed, local[0], cos), np.where(windowed, local[1], sin)
