"""How a prompt is cut for graphs of fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.models.chunks import CHUNK, chunks

LADDER = (32, 128, 256)  # rows of a chunk for which graphs are built


def graph_chunks(tokens: int, sizes: Sequence[int]) -> list[tuple[slice, int]]:
    """Rows and the size of the graph that takes them: the largest repeatedly, then the smallest that fits, padded.
    A size of 0 takes any number."""
    if 0 in sizes:
        return [(part, 0) for part in chunks(tokens, CHUNK)]
    largest = max(sizes)
    cut = [(slice(low, low + largest), largest) for low in range(0, tokens - largest + 1, largest)]
    done = len(cut) * largest
    if done < tokens:
        cut.append((slice(done, tokens), min(size for size in sizes if size >= tokens - done)))
    return cut


def padded(rows: F32, size: int) -> F32:
    """(size, cols): zero rows after the others. 0: as they are."""
    if not size or len(rows) == size:
        return np.ascontiguousarray(rows)
    out = np.zeros((size, rows.shape[1]), np.float32)
    out[: len(rows)] = rows
    return out
