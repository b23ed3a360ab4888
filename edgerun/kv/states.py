"""The recurrent states of a sequence: what layers keep that go on from a sum of all positions, not from each of them.

They lie in blocks of one size, which hold those of all layers after a certain number of positions. A step reads one
block and writes another, so that a sequence can go back to where a step began; other blocks are checkpoints. Where none
is held, a sequence cannot go on (`KvSequence.held_from`): what came after the one before is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.states import StateLayout
from edgerun.kv.ledger import Holder, KvLedger

U8 = NDArray[np.uint8]

EVERY = 256  # positions: where small states leave a checkpoint
SMALL_BYTES = 1 << 20  # of a block
_LINE = 64  # bytes: of the processor's cache
_STEP_BLOCKS = 2  # of a sequence: where a step begins, and what it writes
_MOST_CHECKPOINTS = 8
_LARGE_BYTES = 8 << 20  # of a block: then a sequence has one checkpoint, the end of its prompt
_EVERY_BYTES = 4 << 20  # of a block: the farther apart checkpoints are, for each of these


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


def checkpoints_every(block_bytes: int) -> int:
    """Positions: so many apart a prompt leaves checkpoints."""
    return EVERY * max(1, -(-block_bytes // _EVERY_BYTES))


def sequence_checkpoints(block_bytes: int, positions: int) -> int:
    """That a sequence of up to so many positions has at most, wherever they are: as many as one prompt leaves."""
    most = _MOST_CHECKPOINTS if block_bytes <= _LARGE_BYTES else 1
    return min(most, (positions - 1) // checkpoints_every(block_bytes) + 1)


def sequence_blocks(block_bytes: int, positions: int) -> int:
    """That a sequence of up to so many positions holds at most, but for the states of guesses."""
    return _STEP_BLOCKS + sequence_checkpoints(block_bytes, positions)


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
        """(n_bytes,): the block itself, which lives as long as this array."""
        first = self.address - int(self._memory.ctypes.data)
        return self._memory[first : first + self.n_bytes]


@dataclass(frozen=True)
class States:
    """Of a model, or of the part that a rank of a group has of each layer. model_bytes: of a block of the whole model,
    by which all ranks decide how many they keep."""

    layouts: Mapping[int, StateLayout]
    model_bytes: int


class StateBlocks:
    """All state blocks of one decoder. zeros: what a sequence begins with, never written. every: so many positions a
    prompt leaves a checkpoint. model_bytes: as of `States`."""

    def __init__(self, states: States, ledger: KvLedger) -> None:
        self.lay_out(states)
        self.model_bytes = states.model_bytes
        self.every = checkpoints_every(states.model_bytes)
        self._ledger = ledger

    def lay_out(self, states: States) -> None:
        """Blocks are of these layers from now on. Nobody may hold any."""
        self.layouts = dict(states.layouts)
        self.n_bytes = block_bytes(states.layouts)
        self.zeros = StateBlock(self.n_bytes)

    def take(self, holder: Holder) -> StateBlock:
        """A block; DoesNotFitError when the ledger has no room."""
        (block,) = self._ledger.grant(holder, self.n_bytes, lambda: [StateBlock(self.n_bytes)])
        return block

    def take_if_free(self, holder: Holder) -> StateBlock | None:
        """A block, if nobody has to make room for it."""
        return self.take(holder) if self._ledger.has_room(self.n_bytes) else None
