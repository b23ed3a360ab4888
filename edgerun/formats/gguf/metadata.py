"""The key-value part of a GGUF file: scanned at open, decoded when a value is asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.file_bytes import FileBytes
from edgerun.formats.gguf.cursor import Cursor
from edgerun.formats.gguf.types import SCALAR_DTYPES, ValueKind

Scalar = bool | int | float | str
MetadataValue = Scalar | list[str] | NDArray[Any]

_MAX_KEYS = 1 << 16
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_STRINGS = 1 << 24  # largest vocabulary in use: 262,144
_KINDS: dict[int, ValueKind] = {int(kind): kind for kind in ValueKind}
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one value lies (bytes offset .. offset + n_bytes): its kind, and for arrays the kind and count of the
    items."""

    kind: ValueKind
    offset: int
    n_bytes: int  # in the file; of an array of strings, their lengths included
    count: int  # bytes of a string, items of an array, 1 for a scalar
    item: ValueKind | None = None


class Metadata(Mapping[str, MetadataValue]):
    """Keys and values of a GGUF file.

    Scalars come as bool, int, float; strings as str; arrays of numbers as a numpy array (a copy); arrays of
    strings as list[str]. Large values are decoded at each access, not kept: hold on to what you use often.
    Strings are bytes in GGUF and tokens need not be whole characters: bytes that are not UTF-8 come as
    surrogate escapes (PEP 383), so `value.encode("utf-8", "surrogateescape")` gives the file's bytes back.
    Reading a value raises ReadError when the file was cut or changed since it was opened.
    """

    def __init__(
        self, source: FileBytes, name: str, entries: dict[str, _Entry], said: Mapping[str, Scalar] | None = None
    ) -> None:
        self._source: FileBytes | None = source
        self._name = name
        self._entries = entries
        self._said = said or {}  # of those entries that the file does not have so

    def read_as(self, names: Mapping[str, str], said: Mapping[str, Scalar]) -> Metadata:
        """What is read where keys have other `names` (-> the file's), and some values are `said`, not the file's."""
        if self._source is None:
            raise ValueError(f"{self._name} is closed")
        entries = {key: self._entries[name] for key, name in names.items()}
        entries |= {key: _Entry(_kind_of(value), 0, 0, 1) for key, value in said.items()}
        return Metadata(self._source, self._name, entries, said)

    def __getitem__(self, key: str) -> MetadataValue:
        if key in self._said:
            return self._said[key]
        entry = self._entries[key]
        if self._source is None:
            raise ValueError(f"{self._name} is closed")
        data = self._source.read(entry.offset, entry.n_bytes)
        if entry.kind is ValueKind.STRING:
            return data.decode("utf-8", "surrogateescape")
        if entry.item is ValueKind.STRING:
            return self._strings(data, entry)
        values = self._numbers(data, entry, key)
        if entry.kind is ValueKind.ARRAY:
            return values
        scalar: bool | int | float = values[0].item()
        return scalar

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __repr__(self) -> str:
        return f"<Metadata of {self._name}: {len(self)} keys>"

    def kind(self, key: str) -> tuple[ValueKind, int]:
        """The kind of a value (of an array's items) and its count (1 for a scalar), without decoding it."""
        entry = self._entries[key]
        if entry.kind is ValueKind.ARRAY:
            assert entry.item is not None
            return entry.item, entry.count
        return entry.kind, 1

    def strings_bytes(self, key: str) -> int:
        """Bytes that an array of strings takes in the file, without decoding it; 0 for other values."""
        return self._entries[key].n_bytes

    def close(self) -> None:
        """Let go of the file; values can no longer be read."""
        self._source = None

    def _numbers(self, data: bytes, entry: _Entry, key: str) -> NDArray[Any]:
        kind = entry.kind if entry.item is None else entry.item
        if kind is ValueKind.BOOL:
            raw = np.frombuffer(data, np.uint8, entry.count)
            if entry.count and int(raw.max()) > 1:
                raise FormatError(f"{self._name}: byte {entry.offset}: {key} holds a bool that is not 0 or 1")
            return raw.astype(np.bool_)
        if entry.count == 0:
            return np.empty(0, SCALAR_DTYPES[kind])
        return np.frombuffer(data, SCALAR_DTYPES[kind], entry.count).copy()

    @staticmethod
    def _strings(data: bytes, entry: _Entry) -> list[str]:
        position, read = 0, _U64.unpack_from
        values = []
        for _ in range(entry.count):
            start = position + 8
            position = start + read(data, position)[0]
            values.append(data[start:position].decode("utf-8", "surrogateescape"))
        return values


def _kind_of(value: Scalar) -> ValueKind:
    """That converters would write it as."""
    if isinstance(value, bool):
        return ValueKind.BOOL
    if isinstance(value, int):
        return ValueKind.UINT32
    return ValueKind.STRING if isinstance(value, str) else ValueKind.FLOAT32


def scan_metadata(cursor: Cursor, n_keys: int) -> Metadata:
    """Walk `n_keys` key-value pairs, checking every bound; the cursor then stands at the tensors."""
    if n_keys > min(_MAX_KEYS, (cursor.size - cursor.position) // 13):
        cursor.fail(f"{n_keys} metadata keys cannot be in this file (most: {_MAX_KEYS})")
    entries: dict[str, _Entry] = {}
    for _ in range(n_keys):
        at = cursor.position
        key = cursor.text("a metadata key", _MAX_KEY_BYTES)
        if key in entries:
            cursor.fail(f"the metadata key {key!r} stands twice", at)
        entries[key] = _scan_value(cursor, key)
    return Metadata(cursor.source, cursor.name, entries)


def _scan_value(cursor: Cursor, key: str) -> _Entry:
    kind = _kind(cursor, key)
    if kind is ValueKind.STRING:
        n_bytes = cursor.u64(f"the length of {key}")
        return _Entry(kind, cursor.skip(n_bytes, key), n_bytes, n_bytes)
    if kind is not ValueKind.ARRAY:
        size = SCALAR_DTYPES[kind].itemsize
        return _Entry(kind, cursor.skip(size, key), size, 1)
    item = _kind(cursor, key)
    at = cursor.position
    if item is ValueKind.ARRAY:
        raise UnsupportedError(f"{cursor.name}: byte {at}: {key} is an array of arrays, which no model uses")
    count = cursor.u64(f"the count of {key}")
    if item is ValueKind.STRING:
        if count > _MAX_STRINGS:
            cursor.fail(f"{key} claims {count} strings, the most is {_MAX_STRINGS}", at)
        start = cursor.skip_strings(count, key)
        return _Entry(kind, start, cursor.position - start, count, item)
    size = count * SCALAR_DTYPES[item].itemsize
    return _Entry(kind, cursor.skip(size, key), size, count, item)


def _kind(cursor: Cursor, key: str) -> ValueKind:
    at = cursor.position
    number = cursor.u32(f"the kind of {key}")
    kind = _KINDS.get(number)
    if kind is None:
        cursor.fail(f"{key} has the unknown kind {number}", at)
    return kind
