"""Read safetensors checkpoints: one file, or a directory with shards and an index. Source: its README.

Eight bytes of header length, a JSON header (name -> dtype, shape, byte range), then the data. Nothing is
trusted: lengths, ranges, shapes and names are checked before any use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, NotFoundError, UnsupportedError
from edgerun.formats.file_bytes import FileBytes

_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MAX_JSON_BYTES = 64 << 20
_MAX_DIMS = 8
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOAT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor: its dtype as the format names it, shape, and where its bytes lie in `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int


class SafetensorsFile:
    """One or more safetensors files as one mapping of names to tensors. Context manager. Reading raises ReadError when
    a file was cut or changed since it was opened.

    metadata: the texts that files have beside their tensors, by name.
    """

    def __init__(self, paths: list[Path], most_header_bytes: int = _MAX_HEADER_BYTES) -> None:
        self._files: dict[Path, FileBytes] = {}
        tensors: dict[str, SafeTensor] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            self._files[path] = FileBytes(path)
            metadata, found = _read_header(path, self._files[path], most_header_bytes)
            self.metadata.update(metadata)
            for tensor in found:
                if tensor.name in tensors:
                    raise FormatError(f"{path}: {tensor.name!r} also stands in {tensors[tensor.name].path.name}")
                tensors[tensor.name] = tensor
        self.tensors: Mapping[str, SafeTensor] = tensors

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, (n_bytes,)."""
        tensor = self.tensors[name]
        return self._files[tensor.path].read_array(tensor.offset, tensor.n_bytes)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` of a float tensor seen as (rows, cols), where cols is the last dimension:
        (stop - start, cols) f32. UnsupportedError when it does not hold F32, F16 or BF16."""
        tensor = self.tensors[name]
        cols = tensor.shape[-1]
        item = _ITEM_BYTES[tensor.dtype]
        first = tensor.offset + start * cols * item
        raw = self._files[tensor.path].read(first, (stop - start) * cols * item)
        return _to_f32(tensor, raw).reshape(stop - start, cols)

    def bytes_of_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` of a tensor of whatever dtype, seen as (rows, cols): (stop - start, row bytes) u8."""
        tensor = self.tensors[name]
        n_bytes = tensor.shape[-1] * _ITEM_BYTES[tensor.dtype]
        raw = self._files[tensor.path].read_array(tensor.offset + start * n_bytes, (stop - start) * n_bytes)
        return raw.reshape(stop - start, n_bytes)

    def array(self, name: str) -> NDArray[np.float32]:
        """A whole float tensor in its shape, f32."""
        tensor = self.tensors[name]
        if not tensor.shape:
            raise FormatError(f"{tensor.path}: {name!r} is a single number, not a weight")
        return self.rows(name, 0, prod(tensor.shape[:-1])).reshape(tensor.shape)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Open a .safetensors file, or a directory's: by `model.safetensors.index.json` where there is one,
    else every *.safetensors in it.

    NotFoundError: nothing there, or shards named by the index are missing. FormatError: malformed.
    """
    path = Path(path)
    if not path.is_dir():
        return SafetensorsFile([path])
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if not indexes:
        paths = sorted(path.glob("*.safetensors"))
        if not paths:
            raise NotFoundError(f"{path}: holds no *.safetensors files")
        return SafetensorsFile(paths)
    weight_map = read_json(indexes[0]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{indexes[0]}: has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise FormatError(f"{indexes[0]}: {strange[0]!r} is not a file name in this directory")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise NotFoundError(f"{path}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}")
    opened = SafetensorsFile([path / name for name in names])
    lost = [name for name in weight_map if name not in opened.tensors]
    if lost:
        raise FormatError(f"{indexes[0]}: the tensor {lost[0]!r} is in none of the shards")
    return opened


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MiB. NotFoundError, FormatError."""
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes of JSON, the most is {_MAX_JSON_BYTES}")
    return _parse_object(path.read_bytes(), str(path))


def _parse_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    except FormatError:
        raise
    except ValueError as error:  # numbers of thousands of digits
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise FormatError(f"{where}: {name!r} stands twice")
        made[name] = value
    return made


def _read_header(path: Path, file: FileBytes, most_bytes: int) -> tuple[dict[str, str], list[SafeTensor]]:
    """The texts and the tensors."""
    if file.size < 8:
        raise FormatError(f"{path}: {file.size} bytes are too few for a safetensors file")
    n_header = int.from_bytes(file.read(0, 8), "little")
    if n_header > min(most_bytes, file.size - 8):
        raise FormatError(f"{path}: byte 0: a header of {n_header} bytes in a file of {file.size}")
    header = _parse_object(file.read(8, n_header), str(path))
    begin = 8 + n_header
    tensors = [
        _read_entry(path, name, entry, begin, file.size) for name, entry in header.items() if name != "__metadata__"
    ]
    end = begin
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end and tensor.n_bytes:
            raise FormatError(f"{path}: byte {tensor.offset}: {tensor.name!r} overlaps the tensor before it")
        end = max(end, tensor.offset + tensor.n_bytes)
    metadata = header.get("__metadata__")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return {key: text for key, text in texts if isinstance(text, str)}, tensors


def _read_entry(path: Path, name: str, entry: Any, begin: int, size: int) -> SafeTensor:
    def fail(message: str) -> FormatError:
        return FormatError(f"{path}: the tensor {name!r} {message}")

    if not isinstance(entry, dict):
        raise fail("has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise UnsupportedError(f"{path}: the tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise fail(f"has the shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise fail(f"has the data_offsets {offsets!r}")
    first, last = offsets
    n_bytes = prod(shape) * _ITEM_BYTES[dtype]
    if last - first != n_bytes:
        raise fail(f"needs {n_bytes} bytes as {dtype}{list(shape)}, its range has {last - first}")
    if begin + last > size:
        raise fail(f"ends at byte {begin + last}, the file at {size}; it is truncated: fetch it again")
    return SafeTensor(name, dtype, tuple(shape), path, begin + first, n_bytes)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _to_f32(tensor: SafeTensor, raw: bytes) -> NDArray[np.float32]:
    if tensor.dtype == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float32)
    if tensor.dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if tensor.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise UnsupportedError(
        f"{tensor.path}: the tensor {tensor.name!r} holds {tensor.dtype}; edgerun converts {', '.join(FLOAT_DTYPES)}"
    )
