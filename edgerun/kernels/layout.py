"""How packed weights lie in memory, and the way there from GGUF blocks, in numpy. `formats.base` draws it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.formats.base import Field, swap_masks

U8 = NDArray[np.uint8]

_CACHED_BYTES = 512 << 10  # of activations in a product: half of a core's second-level cache
TILE_ROWS_AT_ONCE = 128  # the same where products go by tiles, which do more for each byte that they read
FLOAT_ROWS_AT_ONCE = 256  # and, where they do, of F32: of its weights reading takes so long as to show
PARTS_GROUPS = 4  # of weight rows that go together where activations are parts (`tile_floats`)
NEURON_SLICE = 128  # columns of a result that neurons are added to at a time: they stay in the first-level cache
# Neurons of these types are used as they lie in the file. Rows of all others are packed when their neuron fires: `up`
# is then a product like any other, and `down` is made floats.
ROW_TYPES = (GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_0)
NEURON_FLOATS_BYTES = 4 << 20  # of so many floats at a time, unless a single group of rows is more
_MOST_LANES = 16
_PACKED_NAME = re.compile(r"rows[1-9][0-9]?")
_ROWS_AT_ONCE = 512  # bounds the scratch memory of packing


@lru_cache(maxsize=256)
def rows_at_once(cols: int) -> int:
    """Of activations in a product: so many that they stay in the second-level cache while all weights go by."""
    return min(max(_CACHED_BYTES // (2 * cols) // 32 * 32, 32), 128)


def layout_name(lanes: int) -> str:
    """Of matrices packed `lanes` rows at a time."""
    return f"rows{lanes}"


def packed_bytes(type: GgmlType, rows: int, cols: int, lanes: int) -> int:
    """Size of a packed matrix."""
    groups = -(-rows // lanes)
    return groups * (cols // type.block_size) * type.block_bytes * lanes


def layout_bytes(name: str, type: GgmlType, rows: int, cols: int) -> int:
    """Of a matrix in a layout by its name: "gguf", rows as they are in the file, or "rows16", packed 16 at a time.
    UsageError for a layout or a shape that no matrix can have."""
    if rows < 1 or cols < 1 or cols % type.block_size:
        raise UsageError(f"{rows} x {cols} {type.name} is no matrix of whole blocks")
    if name == "gguf":
        return rows * type.row_bytes(cols)
    lanes = int(name[4:]) if _PACKED_NAME.fullmatch(name) else 0
    if not lanes or type not in FORMATS:
        raise UsageError(f"there is no layout {name!r} of {type.name}")
    return packed_bytes(type, rows, cols, lanes)


def neurons_at_once(cols: int, tokens: int, lanes: int) -> int:
    """Neurons whose rows are packed together: a float for each of their columns, or of the tokens, is in bounds."""
    return max(1, NEURON_FLOATS_BYTES // (4 * max(cols, tokens)) // lanes) * lanes


def neuron_scratch_bytes(types: Sequence[GgmlType], cols: int) -> int:
    """What neurons of these types take while they are used, beside their rows, at most."""
    rows = neurons_at_once(cols, 1, _MOST_LANES)
    return max((rows * (4 * cols + each.row_bytes(cols)) for each in types if each not in ROW_TYPES), default=0)


class PackedSizes:
    """What matrices take once packed for `lanes` rows at a time; 1: as in the file, for kernels that do not pack."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def has_kernels(self, type: GgmlType) -> bool:
        """Whether there are kernels for matrices of this type, or numpy computes them."""
        return self._lanes > 1 and type in FORMATS

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        """Bytes; types without kernels of their own stay as they are."""
        if not self.has_kernels(type):
            return rows * type.row_bytes(cols)
        return packed_bytes(type, rows, cols, self._lanes)


def pack(raw: U8, type: GgmlType, cols: int, lanes: int) -> U8:
    """GGUF rows (rows, row_bytes) -> packed (groups, blocks, block_bytes * lanes). Lossless."""
    format, rows = FORMATS[type], raw.shape[0]
    groups, blocks = -(-rows // lanes), cols // format.cols
    out = np.empty((groups, blocks, format.bytes * lanes), np.uint8)
    step = max(1, _ROWS_AT_ONCE // lanes)
    for low in range(0, groups, step):
        high = min(low + step, groups)
        part = np.asarray(raw[low * lanes : high * lanes])
        missing = (high - low) * lanes - part.shape[0]
        if missing:
            part = np.concatenate([part, np.zeros((missing, raw.shape[1]), np.uint8)])
        part = part.reshape(high - low, lanes, blocks, format.bytes)
        for field, start in zip(format.fields, format.starts, strict=True):
            units = part[..., field.source : field.source + field.bytes]
            out[low:high, :, start * lanes : (start + field.bytes) * lanes] = _interleave(units, field)
    return out


def _interleave(units: U8, field: Field) -> U8:
    """(groups, L, blocks, bytes) -> (groups, blocks, L * bytes): L neighbours of every unit."""
    groups, lanes, blocks, n_bytes = units.shape
    whole = np.ascontiguousarray(units).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[field.unit])
    for shift, mask in swap_masks(field.swaps):
        moved = ((whole >> np.uint32(shift)) ^ whole) & np.uint32(mask)
        whole = whole ^ moved ^ (moved << np.uint32(shift))
    turned = np.ascontiguousarray(whole.transpose(0, 2, 3, 1))
    return turned.view(np.uint8).reshape(groups, blocks, n_bytes * lanes)
