"""Attention: new keys and values into the cache, and queries over it. See `attention_layout`, `attention_kernels`."""

from __future__ import annotations

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import AttentionDecode, AttentionMerge, AttentionPrompt, KvWrite
from edgerun.kernels.attention_layout import (
    TILE,
    decode_chunks,
    decode_scratch_bytes,
    keys_shape,
    prompt_scratch_bytes,
)
from edgerun.kernels.interface import F16, F32
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants

_FEW = 16  # tokens; fewer are written by the caller alone


class AttentionLaunch:
    """Lays out attention and launches it, with scratch memory that all launches share, one after another."""

    def __init__(self, launcher: Launcher, lanes: int) -> None:
        self._launcher = launcher
        self._lanes = lanes
        self._scratch = np.zeros(0, np.float32)
        self._busy = np.zeros(launcher.threads + 1, np.int64)  # which parts of the scratch threads have taken

    def write(self, keys: F16, values: F16, k: F32, v: F32, start: int) -> None:
        """See `interface.Kernels.kv_write`."""
        (tokens, heads, dim), dim_v, room = k.shape, v.shape[2], values.shape[1]
        fits = keys.shape == keys_shape(heads, room, dim) and values.shape[::2] == (heads, dim_v)
        if start < 0 or start + tokens > room or v.shape[:2] != (tokens, heads) or not fits:
            raise UsageError(
                f"cannot write {k.shape}, {v.shape} at {start} of keys {keys.shape}, values {values.shape}"
            )
        arguments = KvWrite(
            keys=address(keys),
            values=address(values),
            keys_stride=keys.strides[0],
            values_stride=values.strides[0],
            start=start,
            k=address(k),
            v=address(v),
            tokens=tokens,
            heads=heads,
            head_dim=dim,
            head_dim_v=dim_v,
        )
        self._launcher.launch("kv_write", arguments, heads, heads if tokens < _FEW else 1)

    def attend(
        self, q: F32, k: F16, v: F16, start: int, out: F32, *, scale: float, softcap: float, window: int
    ) -> None:
        """See `interface.Kernels.attention`."""
        tokens, heads, dim = q.shape
        kv_heads, dim_v = k.shape[0], v.shape[2]
        fits = k.shape == keys_shape(kv_heads, v.shape[1], dim) and start + tokens <= v.shape[1]
        if heads % kv_heads or not fits or out.shape != (tokens, heads, dim_v):
            raise UsageError(
                f"attention of {q.shape} over keys {k.shape}, values {v.shape} at {start} into {out.shape}"
            )
        group = heads // kv_heads
        cache = (address(q), address(k), address(v), k.strides[0], v.strides[0], dim, dim_v, heads, group)
        numbers = constants(scale, softcap)
        with self._launcher.lock:  # the scratch is ours until the last launch is done
            if tokens == 1:
                self._one_token(cache, kv_heads, max(0, start + 1 - window) if window else 0, start + 1, numbers, out)
            else:
                self._prompt(cache, kv_heads, tokens, start, window, numbers, out)

    def decode_scratch(self, heads: int, chunks: int, dim_v: int) -> tuple[int, int]:
        """Of attention for one token: addresses of the threads' slots, of the chunks' parts."""
        slots = decode_scratch_bytes() // 4 * self._launcher.threads
        scratch = self._floats(slots + heads * chunks * (dim_v + 2))
        return scratch, scratch + 4 * slots

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._busy[:] = 0

    def _one_token(self, cache: tuple[int, ...], kv_heads: int, first: int, end: int, numbers: int, out: F32) -> None:
        """Positions first .. end - 1, in chunks that threads share and a second launch joins."""
        heads, dim_v = out.shape[1:]
        chunks = decode_chunks(first, end)
        scratch, parts = self.decode_scratch(heads, chunks, dim_v)
        slots = (address(self._busy), decode_scratch_bytes())
        arguments = AttentionDecode(*(*cache, first, end, numbers, scratch, parts, *slots, chunks))
        self._launcher.launch("attention_decode", arguments, kv_heads * chunks, 1)
        self._launcher.launch("attention_merge", AttentionMerge(parts, chunks, dim_v, address(out)), heads, heads)

    def _prompt(
        self, cache: tuple[int, ...], kv_heads: int, tokens: int, start: int, window: int, numbers: int, out: F32
    ) -> None:
        """Many tokens, each of which sees the positions up to its own."""
        dim, dim_v, _, group = cache[-4:]
        slot_bytes = prompt_scratch_bytes(dim, dim_v, group, self._lanes)
        scratch = self._floats(slot_bytes // 4 * self._launcher.threads)
        slots = (address(self._busy), slot_bytes)
        arguments = AttentionPrompt(
            *(*cache, 0, start + tokens, numbers, scratch, address(out), *slots, tokens, window, start)
        )
        self._launcher.launch("attention_prompt", arguments, -(-tokens // TILE) * kv_heads, 1)

    def _floats(self, count: int) -> int:
        if self._scratch.size < count:
            self._scratch = np.empty(count + 16, np.float32)
        return address(self._scratch)
