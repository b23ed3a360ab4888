"""A GGUF file taken apart so that it can be put together wrongly: nothing is checked, lies are the purpose."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


@dataclass
class Value:
    """A metadata value: `item` is the kind of an array's items."""

    kind: int
    data: Any  # number, bytes, or a list of these
    item: int = 0


@dataclass
class Tensor:
    """`dims` innermost first, as in the file; `offset` None: where it belongs."""

    name: bytes
    dims: list[int]
    type: int
    data: bytes
    offset: int | None = None


@dataclass
class Parts:
    """Everything in a file, and what it claims to hold (None: the truth)."""

    metadata: list[tuple[bytes, Value]]
    tensors: list[Tensor]
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    gap: int = 0  # bytes between tensors
    long_strings: dict[int, int] = field(default_factory=dict)  # number of a metadata entry -> claimed length


def take_apart(data: bytes) -> Parts:
    """Of a good file."""
    position = 8

    def read(code: str) -> Any:
        nonlocal position
        value = struct.unpack_from("<" + code, data, position)[0]
        position += struct.calcsize("<" + code)
        return value

    def text() -> bytes:
        nonlocal position
        length = read("Q")
        position += length
        return data[position - length : position]

    def value(kind: int) -> Any:
        return text() if kind == STRING else read(SCALARS[kind])

    version = struct.unpack_from("<I", data, 4)[0]
    n_tensors, n_keys = read("Q"), read("Q")
    metadata = []
    for _ in range(n_keys):
        key, kind = text(), read("I")
        if kind == ARRAY:
            item, count = read("I"), read("Q")
            metadata.append((key, Value(kind, [value(item) for _ in range(count)], item)))
        else:
            metadata.append((key, Value(kind, value(kind))))
    found = []
    for _ in range(n_tensors):
        name, n_dims = text(), read("I")
        dims = [read("Q") for _ in range(n_dims)]
        found.append((name, dims, read("I"), read("Q")))
    base = -(-position // ALIGNMENT) * ALIGNMENT
    ends = sorted(offset for *_, offset in found) + [len(data) - base]
    tensors = []
    for name, dims, kind, offset in found:
        end = next(each for each in ends if each > offset)
        tensors.append(Tensor(name, dims, kind, data[base + offset : base + end]))
    return Parts(metadata, tensors, version)


def _pack(code: str, number: Any) -> bytes:
    """Numbers that do not fit wrap around."""
    try:
        return struct.pack("<" + code, number)
    except (struct.error, OverflowError, TypeError):
        if code in "fd":
            return struct.pack("<" + code, float("inf"))
        return (int(number) if isinstance(number, (int, bool)) else 0).to_bytes(64, "little", signed=True)[
            : struct.calcsize("<" + code)
        ]


def _text(data: bytes, claimed: int | None = None) -> bytes:
    return _pack("Q", len(data) if claimed is None else claimed) + data


def put_together(parts: Parts) -> bytes:
    """The file, with all its lies."""
    out = [b"GGUF", _pack("I", parts.version)]
    out.append(_pack("Q", len(parts.tensors) if parts.n_tensors is None else parts.n_tensors))
    out.append(_pack("Q", len(parts.metadata) if parts.n_keys is None else parts.n_keys))
    for number, (key, value) in enumerate(parts.metadata):
        claimed = parts.long_strings.get(number)
        out += [_text(key), _pack("I", value.kind)]
        if value.kind == ARRAY:
            out += [_pack("I", value.item), _pack("Q", len(value.data) if claimed is None else claimed)]
            out += [_one(value.item, each, None) for each in value.data]
        else:
            out.append(_one(value.kind, value.data, claimed))
    at, body = 0, []
    for tensor in parts.tensors:
        offset = at if tensor.offset is None else tensor.offset
        out += [_text(tensor.name), _pack("I", len(tensor.dims)), *(_pack("Q", dim) for dim in tensor.dims)]
        out += [_pack("I", tensor.type), _pack("Q", offset)]
        size = -(-len(tensor.data) // ALIGNMENT) * ALIGNMENT + parts.gap
        body.append(tensor.data.ljust(size, b"\0"))
        at += size
    head = b"".join(out)
    return head.ljust(-(-len(head) // ALIGNMENT) * ALIGNMENT, b"\0") + b"".join(body)


def _one(kind: int, data: Any, claimed: int | None) -> bytes:
    if kind == STRING:
        return _text(data if isinstance(data, bytes) else str(data).encode(), claimed)
    return _pack(SCALARS.get(kind, "I"), data)
