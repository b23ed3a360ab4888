"""Write GGUF v3. The file appears under its name only when it is whole."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import DoesNotFitError, EdgerunError, UsageError
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf.types import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, SCALAR_DTYPES, GgmlType, ValueKind
from edgerun.new_files import new_file

TensorData = NDArray[Any] | Callable[[], NDArray[Any] | Iterable[NDArray[Any]]]

_MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1: what llama.cpp loads
_PIECE_BYTES = 16 << 20
_PLAIN: dict[GgmlType, np.dtype[Any]] = {
    GgmlType.F32: np.dtype("<f4"),
    GgmlType.F16: np.dtype("<f2"),
    GgmlType.F64: np.dtype("<f8"),
    GgmlType.I8: np.dtype("i1"),
    GgmlType.I16: np.dtype("<i2"),
    GgmlType.I32: np.dtype("<i4"),
    GgmlType.I64: np.dtype("<i8"),
}


@dataclass(frozen=True)
class _Pending:
    name: str
    shape: tuple[int, ...]
    type: GgmlType
    n_bytes: int
    data: TensorData


class GgufWriter:
    """Collects metadata and tensors, writes them at `close` (or at the end of a `with` block without error).

        with GgufWriter("out.gguf", "llama") as w:
            w.add("llama.block_count", 2)
            w.add_tensor("output_norm.weight", np.ones(64, np.float32), GgmlType.F32)

    Tensor data may be a callable, called when its turn to be written comes, so that a file of any size is
    written with the memory of one tensor (or of one piece, when it returns an iterable of pieces). `check` gets the
    whole file under another name before it has its own, and may raise.
    """

    def __init__(
        self,
        path: str | Path,
        architecture: str | None,
        *,
        alignment: int = DEFAULT_ALIGNMENT,
        check: Callable[[Path], None] | None = None,
        events: EventSink = ignore,
    ) -> None:
        if alignment < 8 or alignment & (alignment - 1):
            raise UsageError(f"alignment {alignment} is not a power of two from 8 on")
        self.path = Path(path)
        self.alignment = alignment
        self._check = check
        self._events = events
        self._keys: dict[str, bytes] = {}
        self._tensors: dict[str, _Pending] = {}
        self._closed = False
        if architecture is not None:
            self.add("general.architecture", architecture)
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment, ValueKind.UINT32)

    def add(self, key: str, value: Any, kind: ValueKind | None = None) -> None:
        """Add a metadata value.

        `kind` is the kind of a scalar or of an array's items; left out, it follows from the value: bool, str
        (bytes too), float → FLOAT32, int → UINT32 or INT32 (64 bits where needed), numpy arrays by dtype.
        UsageError for a key that is there already or a value that does not fit the kind.
        """
        if key in self._keys:
            raise UsageError(f"the metadata key {key!r} was added before")
        if not 0 < len(_utf8(key)) < 1 << 16:
            raise UsageError("a metadata key has 1 to 65535 bytes")
        self._keys[key] = _encode_text(key) + _encode_value(key, value, kind)

    def add_tensor(self, name: str, data: TensorData, type: GgmlType, shape: Sequence[int] | None = None) -> None:
        """Add a tensor. `data`: its stored bytes (*shape[:-1], row_bytes) u8, or for F32, F16, F64 and I8 to
        I64 an array of numbers (converted to the type); or a callable that gives either, whole or in pieces.
        `shape` in numpy order; needed for a callable, otherwise found from the data."""
        if name in self._tensors:
            raise UsageError(f"the tensor {name!r} was added before")
        if not 0 < len(_utf8(name)) <= _MAX_NAME_BYTES:
            raise UsageError(f"the tensor name {name!r} does not have 1 to {_MAX_NAME_BYTES} bytes")
        if shape is None:
            if callable(data):
                raise UsageError(f"the tensor {name!r} comes from a callable: say its shape")
            shape = _shape_of(data, type)
        dims = tuple(int(n) for n in shape)
        if not 1 <= len(dims) <= MAX_DIMS or min(dims) < 1 or dims[-1] % type.block_size:
            raise UsageError(
                f"the tensor {name!r} cannot have the shape {dims} as {type.name}: 1 to {MAX_DIMS} "
                f"dimensions, none empty, the last a multiple of {type.block_size}"
            )
        n_bytes = type.row_bytes(dims[-1]) * prod(dims[:-1])
        pending = _Pending(name, dims, type, n_bytes, data)
        if not callable(data) and _stored(pending, data).nbytes != n_bytes:
            raise UsageError(f"the tensor {name!r} needs {n_bytes} bytes, its data has {data.nbytes}")
        self._tensors[name] = pending

    def close(self) -> None:
        """Write the file. On any error, Ctrl-C included, nothing stays behind and what was there is kept.

        DoesNotFitError when the disk is full, EdgerunError when the directory cannot be written.
        """
        if self._closed:
            return
        self._closed = True
        try:
            with new_file(self.path, check=self._check) as file:
                self._write(file)
        except EdgerunError:
            raise
        except OSError as error:
            raise self._explain(error) from error

    def abandon(self) -> None:
        """Forget everything; nothing is written."""
        self._closed = True
        self._tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _explain(self, error: OSError) -> EdgerunError:
        total = sum(pending.n_bytes for pending in self._tensors.values())
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DoesNotFitError(
                f"{self.path}: the disk is full ({error.strerror}); the file needs {total} bytes: free some"
            )
        return EdgerunError(f"{self.path}: cannot be written: {error.strerror or error}")

    def header(self) -> bytes:
        """All that stands before the tensors' data, each of which begins at a multiple of the alignment."""
        parts = [MAGIC + struct.pack("<IQQ", 3, len(self._tensors), len(self._keys)), *self._keys.values()]
        offset = 0
        for pending in self._tensors.values():
            dims = tuple(reversed(pending.shape))
            parts.append(_encode_text(pending.name))
            parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, int(pending.type), offset))
            offset = self._aligned(offset + pending.n_bytes)
        found = b"".join(parts)
        return found + bytes(self._aligned(len(found)) - len(found))

    def _write(self, file: BinaryIO) -> None:
        file.write(self.header())
        for done, pending in enumerate(self._tensors.values()):
            self._events(Progress(f"writing {self.path.name}", done, len(self._tensors), "tensors"))
            self._write_tensor(file, pending)
        self._events(Progress(f"writing {self.path.name}", len(self._tensors), len(self._tensors), "tensors"))

    def _write_tensor(self, file: BinaryIO, pending: _Pending) -> None:
        given = pending.data() if callable(pending.data) else pending.data
        pieces = (given,) if isinstance(given, np.ndarray) else given
        written = 0
        for piece in pieces:
            stored = _stored(pending, piece)
            written += stored.nbytes
            if written > pending.n_bytes:
                break
            for start in range(0, stored.nbytes, _PIECE_BYTES):
                file.write(stored[start : start + _PIECE_BYTES].data)
        if written != pending.n_bytes:
            raise UsageError(
                f"the tensor {pending.name!r} needs {pending.n_bytes} bytes, its data has {written} or more"
            )
        file.write(bytes(self._aligned(pending.n_bytes) - pending.n_bytes))

    def _aligned(self, position: int) -> int:
        return -(-position // self.alignment) * self.alignment


def _shape_of(data: NDArray[Any], type_: GgmlType) -> tuple[int, ...]:
    plain = _PLAIN.get(type_)
    if data.ndim == 0:
        raise UsageError("a tensor has at least one dimension")
    if plain is not None and data.dtype != np.uint8:
        return data.shape
    if data.dtype != np.uint8:
        raise UsageError(f"{type_.name} data is stored bytes (uint8), not {data.dtype}")
    blocks, rest = divmod(data.shape[-1], type_.block_bytes)
    if rest:
        raise UsageError(f"rows of {data.shape[-1]} bytes are not whole {type_.name} blocks of {type_.block_bytes}")
    return (*data.shape[:-1], blocks * type_.block_size)


def _stored(pending: _Pending, data: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes as the file holds them, flat."""
    plain = _PLAIN.get(pending.type)
    if data.dtype == np.uint8:
        return np.ascontiguousarray(data).reshape(-1)
    if plain is None:
        raise UsageError(f"{pending.name}: {pending.type.name} data is stored bytes (uint8), not {data.dtype}")
    return np.ascontiguousarray(data, dtype=plain).reshape(-1).view(np.uint8)


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} holds a lone surrogate and cannot be written as UTF-8") from None


def _encode_text(text: str | bytes) -> bytes:
    data = _utf8(text)
    return struct.pack("<Q", len(data)) + data


def _encode_value(key: str, value: Any, kind: ValueKind | None) -> bytes:
    if isinstance(value, (str, bytes)):
        if kind not in (None, ValueKind.STRING):
            raise UsageError(f"{key}: a string cannot be written as {kind!r}")
        return struct.pack("<I", ValueKind.STRING) + _encode_text(value)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (str, bytes)):
        kind = ValueKind.STRING
    if kind is ValueKind.STRING:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, (str, bytes)) for item in value):
            raise UsageError(f"{key}: not a list of strings")
        head = struct.pack("<IIQ", ValueKind.ARRAY, ValueKind.STRING, len(value))
        return head + b"".join(_encode_text(item) for item in value)
    array = np.asarray(value)
    kind = _kind_of(key, array, value) if kind is None else kind
    numbers = _as_numbers(key, array, kind)
    if array.ndim == 0:
        return struct.pack("<I", kind) + numbers.tobytes()
    return struct.pack("<IIQ", ValueKind.ARRAY, kind, len(array)) + numbers.tobytes()


def _as_numbers(key: str, array: NDArray[Any], kind: ValueKind) -> NDArray[Any]:
    dtype = SCALAR_DTYPES.get(kind)
    if dtype is None or array.ndim > 1 or array.dtype.kind not in "biuf":
        raise UsageError(f"{key}: {array.dtype} of {array.ndim} dimensions cannot be written as {kind.name}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f" or int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(f"{key}: does not fit {kind.name}")
    if dtype.kind == "b" and array.dtype.kind != "b":
        raise UsageError(f"{key}: not a bool")
    return array.astype(dtype)


def _kind_of(key: str, array: NDArray[Any], value: Any) -> ValueKind:
    if isinstance(value, (np.ndarray, np.generic)):
        for kind, dtype in SCALAR_DTYPES.items():
            if dtype == array.dtype:
                return kind
    if array.dtype.kind == "b":
        return ValueKind.BOOL
    if array.dtype.kind == "f":
        return ValueKind.FLOAT32
    if array.dtype.kind not in "iu":
        raise UsageError(f"{key}: {value!r} cannot be written to a GGUF")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.ndim and low >= -(1 << 31) and high < 1 << 31:
        return ValueKind.INT32  # what the gguf package writes for lists
    if low >= 0:
        return ValueKind.UINT32 if high < 1 << 32 else ValueKind.UINT64
    return ValueKind.INT32 if low >= -(1 << 31) and high < 1 << 31 else ValueKind.INT64
