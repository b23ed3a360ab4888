"""Where a sequence's recurrent states lie: in one block of memory for all layers that have some, which does not grow.

Of a layer it holds the last inputs of a causal convolution, then matrices that every position changes. A step reads the
block that it begins with, the source, and writes another, the target: what was there before is still there when it
fails. Kernels get a table of both addresses, row by row, and the layer's place in a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError

I64 = NDArray[np.int64]
_LINE = 64  # bytes: both parts begin on a cache line
CONV_COLUMNS = 64  # of a convolution that a thread does at once: a multiple of any set's lanes
SCAN_COLUMNS = 16  # of a matrix that lie together: as many as the widest set has lanes


@dataclass(frozen=True)
class StateLayout:
    """One layer's place in a block, f32: from `conv_at` bytes on (conv_rows, conv_cols), the last inputs of its
    convolution, oldest first; from `matrices_at` on the heads' matrices (key_dim, value_dim), each in groups of
    SCAN_COLUMNS columns, (key_dim, columns), one after another. Either may be empty."""

    conv_rows: int
    conv_cols: int
    heads: int
    key_dim: int
    value_dim: int
    at: int  # bytes from a block's beginning

    @property
    def conv_at(self) -> int:
        """Bytes from a block's beginning to the convolution's inputs."""
        return self.at

    @property
    def matrices_at(self) -> int:
        """Bytes from a block's beginning to the matrices."""
        return self.at + _whole_lines(4 * self.conv_rows * self.conv_cols)

    @property
    def end(self) -> int:
        """Bytes from a block's beginning to the next layer."""
        return self.matrices_at + _whole_lines(4 * self.heads * self.key_dim * self.value_dim)


@dataclass(frozen=True, eq=False)
class StateRows:
    """One layer's states of some rows. `table` (rows, 2): the addresses of the source's and the target's block of every
    row; whoever makes this keeps the table and the blocks where they are.

    Rows go in their order: each goes on from what its source holds, which may be the target of the row before, and
    leaves what comes out of it in its target. A row whose target is 0 is nobody's: it repeats the row before."""

    table: I64
    layout: StateLayout

    @cached_property
    def address(self) -> int:
        """Of the table."""
        return int(self.table.ctypes.data)


def check_states(states: StateRows, rows: int) -> None:
    """UsageError unless there are addresses for so many rows: kernels trust what the table says."""
    table = states.table
    if table.shape != (rows, 2) or table.dtype != np.int64 or not table.flags.c_contiguous:
        raise UsageError(f"states of {table.shape} {table.dtype} for {rows} rows")
    if not table[table[:, 1] != 0].all() or (rows and not table[0, 1]):
        raise UsageError("a row goes on from states that are not held")


def _whole_lines(n_bytes: int) -> int:
    return -(-n_bytes // _LINE) * _LINE
