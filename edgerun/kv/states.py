"""The recurrent states of a sequence: what layers keep that go on from a sum of all positions, not from each of them.

They lie in blocks of one size, which hold those of all layers after a certain number of positions. A step reads one
block and writes another, so that a sequence can go back to where a step began; other blocks are checkpoints. Where none
is held, a sequence cannot go on (`KvSequence.held_from`): what came after the one before is computed again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.states import StateLayout
from edgerun.kv.ledger import Holder, KvLedger

U8 = NDArray[np.uint8]

PLANNED_BLOCKS = 3  # of a sequence: where a step begins, what it writes, and the end of the prompt
_LINE = 64  # bytes: of the processor's cache
_MOST_CHECKPOINTS = 16  # of a sequence
_CHECKPOINT_BYTES = 1 << 28  # of a sequence's checkpoints, and at most a quarter of the ledger's


@dataclass(frozen=True)
class StateLayer:
    """What one layer keeps, f32: the last inputs of a convolution (conv_rows, conv_cols), and matrices (heads, key_dim,
    value_dim). Either may be empty."""

    conv_rows: int = 0
    conv_cols: int = 0
    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0


def state_layouts(layers: Sequence[StateLayer | None]) -> dict[int, StateLayout]:
    """Where each layer that has states lies in a block."""
    found: dict[int, StateLayout] = {}
    at = 0
    for index, each in enumerate(layers):
        if each is not None:
            found[index] = StateLayout(each.conv_rows, each.conv_cols, each.heads, each.key_dim, each.value_dim, at)
            at = found[index].end
    return found


def block_bytes(layouts: Mapping[int, StateLayout]) -> int:
    """Of one block; 0 for a model without states."""
    return max((each.end for each in layouts.values()), default=0)


class StateBlock:
    """`n_bytes` of memory that never moves, zeros at first. Hashed by identity. is_shared: others may hold it, so that
    nobody writes it again."""

    __slots__ = ("__weakref__", "_memory", "address", "is_shared", "n_bytes")

    def __init__(self, n_bytes: int) -> None:
        self._memory: U8 = np.zeros(n_bytes + _LINE, np.uint8)
        self.n_bytes = n_bytes
        self.address = -(-int(self._memory.ctypes.data) // _LINE) * _LINE
        self.is_shared = False

    @property
    def content(self) -> U8:
        """(n_bytes,), not a copy."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.n_bytes).from_address(self.address))


class StateBlocks:
    """All state blocks of one decoder. zeros: what a sequence begins with, never written."""

    def __init__(self, layouts: Mapping[int, StateLayout], ledger: KvLedger) -> None:
        self.layouts = dict(layouts)
        self.n_bytes = block_bytes(layouts)
        self.zeros = StateBlock(self.n_bytes)
        self._ledger = ledger

    @property
    def most_checkpoints(self) -> int:
        """Of one sequence."""
        limit = self._ledger.limit_bytes
        share = _CHECKPOINT_BYTES if limit is None else min(limit // 4, _CHECKPOINT_BYTES)
        return max(1, min(share // self.n_bytes, _MOST_CHECKPOINTS))

    def take(self, holder: Holder) -> StateBlock:
        """A block; DoesNotFitError when the ledger has no room."""
        (block,) = self._ledger.grant(holder, self.n_bytes, lambda: [StateBlock(self.n_bytes)])
        return block

    def take_if_free(self, holder: Holder) -> StateBlock | None:
        """A block, if nobody has to make room for it."""
        return self.take(holder) if self._ledger.has_room(self.n_bytes) else None
