"""Keys and values of one sequence, f16, one array a layer, as `kernels.attention_layout` says.

Head-major, because attention reads all positions of one head. Room doubles as the sequence grows, up to the
capacity in whole blocks, so that a long context costs memory only when it is used. A model's caches share a ledger,
which grants what they hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ContextLengthError, UsageError
from edgerun.kernels.attention_layout import KEYS, keys_shape
from edgerun.kv.ledger import Grant, unlimited

F16 = NDArray[np.float16]
I64 = NDArray[np.int64]

_FIRST_ROOM = 256  # positions


class KvCache:
    """`length` positions are written and valid. Not thread-safe: one sequence, one user at a time.

    grant: asked before the cache grows (`KvLedger.grant`). `spare`: nobody needs what is in it, so that the ledger may
    empty it for another cache.
    """

    def __init__(
        self,
        n_layers: int,
        kv_heads: int,
        head_dim_k: int,
        head_dim_v: int,
        capacity: int,
        grant: Grant = unlimited,
    ) -> None:
        if capacity < 1:
            raise UsageError(f"a KV cache needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self.length = 0
        self.held_bytes = 0
        self.spare = False
        self._grant = grant
        self._shape = (n_layers, kv_heads, head_dim_k, head_dim_v)
        self._position_bytes = 2 * n_layers * kv_heads * (head_dim_k + head_dim_v)
        self._empty()

    def _empty(self) -> None:
        n_layers, kv_heads, head_dim_k, head_dim_v = self._shape
        self.length = 0
        self._room = 0
        self._addresses: tuple[I64, I64, I64, I64] | None = None
        self._keys = [np.zeros(keys_shape(kv_heads, 0, head_dim_k), np.float16) for _ in range(n_layers)]
        self._values = [np.zeros((kv_heads, 0, head_dim_v), np.float16) for _ in range(n_layers)]

    @property
    def n_bytes(self) -> int:
        """Memory held now."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def keys(self, layer: int) -> F16:
        """(kv_heads, room / KEYS, head_dim_k, KEYS); valid until the next `reserve`."""
        return self._keys[layer]

    def values(self, layer: int) -> F16:
        """(kv_heads, room, head_dim_v); valid until the next `reserve`."""
        return self._values[layer]

    def addresses(self) -> tuple[I64, I64, I64, I64]:
        """Of every layer's keys and values (n_layers,) and the bytes from head to head in each; until `reserve`."""
        if self._addresses is None:
            keys, values = ([array.ctypes.data for array in each] for each in (self._keys, self._values))
            strides = ([array.strides[0] for array in each] for each in (self._keys, self._values))
            k, v, k_stride, v_stride = (np.array(each, np.int64) for each in (keys, values, *strides))
            self._addresses = (k, v, k_stride, v_stride)
        return self._addresses

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more positions. Raises ContextLengthError beyond the capacity, DoesNotFitError when
        the ledger has no room for them."""
        needed = self.length + tokens
        if needed > self.capacity:
            raise ContextLengthError(
                f"{tokens} more tokens after {self.length} do not fit a context of {self.capacity}; "
                f"use a larger context or a shorter prompt"
            )
        if needed <= self._room:
            return
        room = self._granted_room(needed)
        _, kv_heads, dim_k, dim_v = self._shape
        self._addresses = None  # at once: an interrupt or a lack of memory may leave some layers with the old room
        for layer in range(len(self._keys)):
            if self._keys[layer].shape[1] * KEYS == self._values[layer].shape[1] == room:
                continue
            keys = np.zeros(keys_shape(kv_heads, room, dim_k), np.float16)
            values = np.zeros((kv_heads, room, dim_v), np.float16)
            _copy(self._keys[layer], self._values[layer], keys, values, self.length)
            self._keys[layer] = keys  # not before all of it is there
            self._values[layer] = values
        self._room = room

    def _granted_room(self, needed: int) -> int:
        """Positions: halves of the capacity, so that the last growth is a doubling too, or just the blocks needed."""
        wanted = _whole_blocks(self.capacity)
        while _whole_blocks(wanted // 2) >= max(needed, _FIRST_ROOM) and _whole_blocks(wanted // 2) < wanted:
            wanted = _whole_blocks(wanted // 2)
        least = _whole_blocks(needed)
        return self._grant(self, wanted * self._position_bytes, least * self._position_bytes) // self._position_bytes

    def advance(self, tokens: int) -> None:
        """`tokens` positions after `length` have been written in every layer."""
        self.length += tokens

    def truncate(self, n: int) -> None:
        """Forget all but the first n positions."""
        if not 0 <= n <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} positions to {n}")
        self.length = n

    def release(self) -> None:
        """Forget everything and give the memory back; the cache can be filled again."""
        self._empty()
        self.held_bytes = 0

    def copy(self, n: int) -> KvCache:
        """A cache of its own with the first n positions. Raises DoesNotFitError when the ledger has no room for it."""
        if not 0 <= n <= self.length:
            raise UsageError(f"cannot copy {n} of {self.length} positions")
        other = KvCache(*self._shape, self.capacity, self._grant)
        other.reserve(n)
        for layer in range(len(self._keys)):
            _copy(self._keys[layer], self._values[layer], other._keys[layer], other._values[layer], n)
        other.length = n
        return other


def _whole_blocks(positions: int) -> int:
    """Rounded up."""
    return -(-positions // KEYS) * KEYS


def _copy(keys: F16, values: F16, to_keys: F16, to_values: F16, n: int) -> None:
    """The first n positions, of keys in whole blocks."""
    blocks = -(-n // KEYS)
    to_keys[:, :blocks] = keys[:, :blocks]
    to_values[:, :n] = values[:, :n]
