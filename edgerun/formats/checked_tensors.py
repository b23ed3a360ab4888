"""Files of our own that hold arrays: safetensors, which anybody can read, with a JSON header and checksums.

`__metadata__` has `kind` (what the file is), `version`, and `header`, a JSON object as a text. The last tensor,
`checksums` u32, has the CRC-32 of the header, and of every other tensor in their order. They are against accidents, for
which a quick sum is as good as a slow one; what protects against others is `trust`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import EdgerunError, FormatError, UnsupportedError, UsageError
from edgerun.formats.safetensors import SafetensorsFile

Form = tuple[str, tuple[int, ...]]
"""A tensor's dtype, as safetensors names it, and its shape."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype(np.uint8),
    "U32": np.dtype("<u4"),
}

_CHECKSUMS = "checksums"
_MOST_HEADER_BYTES = 64 << 20
_ALIGNMENT = 8  # of where data begins, as the format wants it


def tensor_file(
    kind: str,
    version: int,
    header: Mapping[str, Any],
    forms: Mapping[str, Form],
    content: Callable[[str], NDArray[Any]],
) -> Iterator[bytes | memoryview]:
    """The file in pieces. `content` is asked once for each tensor of `forms`, in order: a contiguous array of its form,
    which may be overwritten when it is asked again. UsageError for a header that JSON cannot hold, or that is too
    large."""
    try:
        text = json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{kind}: only what JSON can hold can be saved: {error}") from error
    described: dict[str, Any] = {"__metadata__": {"kind": kind, "version": str(version), "header": text}}
    checksums: Form = "U32", (1 + len(forms),)
    at = 0
    for name, (dtype, shape) in {**forms, _CHECKSUMS: checksums}.items():
        end = at + prod(shape) * DTYPES[dtype].itemsize
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    data = json.dumps(described).encode()
    data += b" " * (-len(data) % _ALIGNMENT)
    if len(data) > _MOST_HEADER_BYTES:
        raise UsageError(f"{kind}: a text of {len(data)} bytes cannot be saved; the most is {_MOST_HEADER_BYTES}")
    yield len(data).to_bytes(8, "little") + data
    sums = [zlib.crc32(text.encode())]
    for name, (dtype, shape) in forms.items():
        array = content(name)
        if (array.dtype, array.shape) != (DTYPES[dtype], shape) or not array.flags.c_contiguous:
            raise ValueError(f"{name}: {array.dtype} {array.shape} was announced as {dtype} {shape}")
        piece = array.reshape(-1).view(np.uint8).data
        sums.append(zlib.crc32(piece))
        yield piece
    yield np.array(sums, DTYPES["U32"]).tobytes()


def is_tensor_file(path: Path, kind: str) -> bool:
    """Whether a file says that it is of this kind, whatever its version."""
    try:
        with SafetensorsFile([path], _MOST_HEADER_BYTES) as file:
            return file.metadata.get("kind") == kind
    except EdgerunError:
        return False


class CheckedTensors:
    """Such a file, opened. Context manager.

    NotFoundError: there is none. FormatError: it is not of this `kind`, or not whole. UnsupportedError: of another
    version.
    """

    def __init__(self, path: Path, kind: str, version: int) -> None:
        self.path = path
        self._file = SafetensorsFile([path], _MOST_HEADER_BYTES)
        try:
            said = self._file.metadata
            if said.get("kind") != kind:
                raise FormatError(f"{path}: not {kind}")
            if said.get("version") != str(version):
                raise UnsupportedError(
                    f"{path}: {kind} of version {said.get('version', '')[:20]!r}, which this edgerun cannot read; it "
                    f"reads version {version}"
                )
            text = said.get("header", "")
            forms = {name: (tensor.dtype, tensor.shape) for name, tensor in self._file.tensors.items()}
            if forms.pop(_CHECKSUMS, None) != ("U32", (1 + len(forms),)):
                raise FormatError(f"{path}: has no checksums of its {len(forms)} tensors")
            self.forms: Mapping[str, Form] = forms
            sums = self._file.raw(_CHECKSUMS).view(DTYPES["U32"]).tolist()
            self._sums = dict(zip(["", *forms], sums, strict=True))
            self._check("", text.encode("utf-8", "surrogatepass"))
            self.header = _parsed(text, path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """A tensor of `forms`, whose dtype must be one of `DTYPES`: a new array. FormatError when it is damaged,
        ReadError when it cannot be read."""
        dtype, shape = self.forms[name]
        raw = self._file.raw(name)
        self._check(name, raw.data)
        return raw.view(DTYPES[dtype]).reshape(shape)

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, name: str, data: bytes | memoryview) -> None:
        if zlib.crc32(data) != self._sums[name]:
            what = f"the tensor {name!r}" if name else "the header"
            raise FormatError(f"{self.path}: {what} is not what was written; the file is damaged")


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: its header is no JSON object")
    return value
