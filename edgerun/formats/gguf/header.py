"""The header of one GGUF file: magic, version, metadata, tensors. All is checked before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgerun.errors import UnsupportedError
from edgerun.formats.gguf.cursor import Cursor
from edgerun.formats.gguf.metadata import Metadata, scan_metadata
from edgerun.formats.gguf.types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    UNSUPPORTED_TYPES,
    GgmlType,
    ValueKind,
)

_MAX_TENSORS = 1 << 20
_MAX_NAME_BYTES = 1024  # ggml itself allows 63
_MAX_ALIGNMENT = 1 << 20
_TYPES: dict[int, GgmlType] = {int(type_): type_ for type_ in GgmlType}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a GGUF: `shape` in numpy order (rows, cols); `offset`: its first byte in `path`."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    n_bytes: int
    path: Path
    offset: int
    part: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last dimension)."""
        return self.type.row_bytes(self.shape[-1])

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """The shape of the stored bytes: (*shape[:-1], row_bytes)."""
        return (*self.shape[:-1], self.row_bytes)


@dataclass(frozen=True)
class Header:
    """What stands before the tensor data of one file."""

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    data_offset: int


def read_header(cursor: Cursor, path: Path, part: int = 0) -> Header:
    """Parse and check a whole header. FormatError with the byte where it is wrong, UnsupportedError for kinds
    that edgerun does not run (version 1, big-endian, unknown tensor types)."""
    found = cursor.at(0, min(4, cursor.size))
    if found != MAGIC:
        cursor.fail(f"not a GGUF file: it begins with {found!r}, not {MAGIC!r}")
    cursor.position = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, 2, 3):
            raise UnsupportedError(
                f"{cursor.name}: byte 4: a big-endian GGUF; edgerun reads little-endian files only: "
                "convert it with gguf-convert-endian (from the gguf package)"
            )
        if version == 1:
            raise UnsupportedError(f"{cursor.name}: byte 4: GGUF version 1 (2023); convert the model again")
        cursor.fail(f"GGUF version {version}; edgerun reads 2 and 3", 4)
    n_tensors = cursor.u64("the tensor count")
    n_keys = cursor.u64("the metadata count")
    metadata = scan_metadata(cursor, n_keys)
    return _read_tensors(cursor, path, part, version, metadata, n_tensors)


def _read_tensors(cursor: Cursor, path: Path, part: int, version: int, metadata: Metadata, n_tensors: int) -> Header:
    alignment = _alignment(cursor, metadata)
    if n_tensors > min(_MAX_TENSORS, (cursor.size - cursor.position) // 33):
        cursor.fail(f"{n_tensors} tensors cannot be listed in this file (most: {_MAX_TENSORS})")
    found: list[tuple[int, TensorInfo]] = []  # (byte of the entry, info with the offset relative to the data)
    names: set[str] = set()
    for _ in range(n_tensors):
        at = cursor.position
        info = _read_tensor(cursor, path, part, alignment)
        if info.name in names:
            cursor.fail(f"the tensor {info.name!r} stands twice", at)
        names.add(info.name)
        found.append((at, info))
    data_offset = -(-cursor.position // alignment) * alignment
    _check_q2_0(cursor, [info for _, info in found], cursor.size - data_offset, alignment)
    tensors: dict[str, TensorInfo] = {}
    for at, info in found:
        offset = data_offset + info.offset
        if offset + info.n_bytes > cursor.size:
            cursor.fail(
                f"the tensor {info.name!r} needs bytes {offset} to {offset + info.n_bytes}, the file ends at "
                f"{cursor.size}; it is truncated: fetch it again",
                at,
            )
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type, info.n_bytes, info.path, offset, info.part)
    _check_overlap(cursor, tensors)
    return Header(version, metadata, tensors, data_offset)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    if "general.alignment" not in metadata:
        return DEFAULT_ALIGNMENT
    kind, _ = metadata.kind("general.alignment")
    value = metadata["general.alignment"]
    if kind is not ValueKind.UINT32 or not isinstance(value, int):
        cursor.fail("general.alignment is not a 32-bit number")
    if value <= 0 or value & (value - 1) or value > _MAX_ALIGNMENT:
        cursor.fail(f"general.alignment is {value}, not a power of two up to {_MAX_ALIGNMENT}")
    return value


def _read_tensor(cursor: Cursor, path: Path, part: int, alignment: int) -> TensorInfo:
    at = cursor.position
    name = cursor.text("a tensor name", _MAX_NAME_BYTES)
    n_dims = cursor.u32(f"the number of dimensions of {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        cursor.fail(f"the tensor {name!r} has {n_dims} dimensions, not 1 to {MAX_DIMS}", at)
    dims = [cursor.u64(f"a dimension of {name!r}") for _ in range(n_dims)]
    number = cursor.u32(f"the type of {name!r}")
    offset = cursor.u64(f"the offset of {name!r}")
    type_ = _TYPES.get(number)
    if type_ is None:
        kind = f"{UNSUPPORTED_TYPES.get(number, 'of type')} ({number})"
        raise UnsupportedError(
            f"{cursor.name}: byte {at}: the tensor {name!r} is {kind}, which edgerun does not read; "
            f"it reads {', '.join(t.name for t in GgmlType)}"
        )
    if 0 in dims or prod(dims) >= 1 << 63:
        cursor.fail(f"the tensor {name!r} has the impossible shape {tuple(reversed(dims))}", at)
    if dims[0] % type_.block_size:
        cursor.fail(
            f"the tensor {name!r} has rows of {dims[0]} weights, not a multiple of {type_.name}'s block of "
            f"{type_.block_size}",
            at,
        )
    if offset % alignment:
        cursor.fail(f"the tensor {name!r} begins at {offset} of the data, not a multiple of {alignment}", at)
    n_bytes = type_.row_bytes(dims[0]) * prod(dims[1:])
    return TensorInfo(name, tuple(reversed(dims)), type_, n_bytes, path, offset, part)


def _check_q2_0(cursor: Cursor, infos: list[TensorInfo], data_bytes: int, alignment: int) -> None:
    """A fork of llama.cpp gave the number of Q2_0 to blocks of 128 weights (34 bytes): told by where tensors end."""
    in_order = sorted(infos, key=lambda info: info.offset)
    ends = [*(info.offset for info in in_order[1:]), data_bytes]
    for info, end in zip(in_order, ends, strict=False):  # without tensors there is an end all the same
        forks_bytes = prod(info.shape) // 128 * 34
        room = end - info.offset
        if info.type is GgmlType.Q2_0 and room < info.n_bytes and forks_bytes <= room < forks_bytes + alignment:
            raise UnsupportedError(
                f"{cursor.name}: the tensor {info.name!r} is Q2_0 in blocks of 128 weights, as a fork of llama.cpp "
                "wrote them before the type was settled at 64; fetch a file that was made later"
            )


def _check_overlap(cursor: Cursor, tensors: dict[str, TensorInfo]) -> None:
    """Tensors that share bytes would let a small file claim any amount of memory."""
    end, previous = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset < end:
            cursor.fail(f"the tensors {previous!r} and {info.name!r} overlap", info.offset)
        end, previous = info.offset + info.n_bytes, info.name
