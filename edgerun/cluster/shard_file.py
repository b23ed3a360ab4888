"""A rank's shard as a GGUF file: the tensors of its share, and the model's numbers without its text. What loads and
streams models does so with shards; a rank that is not the head gets neither vocabulary nor embedding.

The same model and share give the same bytes, whoever makes them, so that a file can be fetched in pieces, gone on with
after a break, and known by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.cuts import Cut, cuts_of
from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, TensorInfo, open_gguf
from edgerun.formats.gguf.metadata import Metadata
from edgerun.formats.gguf.types import DEFAULT_ALIGNMENT, ValueKind
from edgerun.models.reading import read_spec
from edgerun.models.shapes import check_tensors
from edgerun.models.share import LayerShare, Share, mixer_heads, spec_of_share
from edgerun.models.spec import ModelSpec
from edgerun.new_files import new_file
from edgerun.weights.identity import file_stamp

U8 = NDArray[np.uint8]

_VERSION = 3
_PREFIX = "edgerun.shard"
_DIMS, _MOST_DIM = 3, 1 << 31  # of a tensor
_RANGES = ("heads", "ff", "experts", "shared")  # of `LayerShare`


def never_waits() -> None:
    """The pace of what is needed now."""


class ShardSource:
    """The file of a share, made while it is read. `gguf`, the model that it is cut from, must stay open.

    n_bytes: of all of it. digest: hex, by which it is known before it was read: of the header, and of the model's.
    """

    def __init__(self, gguf: GgufFile, spec: ModelSpec, share: Share) -> None:
        self._gguf = gguf
        self._cuts = cuts_of(spec, share)
        self._header = _header(gguf, spec, share, self._cuts)
        self.n_bytes = len(self._header) + sum(_aligned(cut.n_bytes) for cut in self._cuts)
        self.digest = hashlib.sha256(self._header + file_stamp(gguf).encode()).hexdigest()
        self._at = -1  # where `read` goes on with `_rest`
        self._rest: Iterator[U8] = iter(())
        self._begun = np.empty(0, np.uint8)  # of the piece that it is in, what was not read yet

    def pieces(self, first_byte: int = 0) -> Iterator[U8]:
        """The file from `first_byte` on, flat, in pieces of some MiB."""
        if first_byte < len(self._header):
            yield np.frombuffer(self._header, np.uint8)[first_byte:]
        at = len(self._header)
        for cut in self._cuts:
            end = at + _aligned(cut.n_bytes)
            if end > first_byte:
                skip = max(0, first_byte - at)
                if skip < cut.n_bytes:
                    yield from cut.pieces(self._gguf, skip)
                yield np.zeros(end - at - max(skip, cut.n_bytes), np.uint8)
            at = end

    def read(self, first_byte: int, count: int) -> bytes:
        """So many bytes of the file. Cheap where they follow those that were read last; for one thread at a time."""
        if first_byte != self._at:
            self._rest, self._begun = self.pieces(first_byte), np.empty(0, np.uint8)
        found = bytearray()
        while len(found) < count:
            if not len(self._begun):
                self._begun = next(self._rest, np.empty(0, np.uint8))
                if not len(self._begun) and first_byte + len(found) >= self.n_bytes:
                    break
            some = self._begun[: count - len(found)]
            found += some.tobytes()
            self._begun = self._begun[len(some) :]
        self._at = first_byte + len(found)
        return bytes(found)

    def write(self, path: Path, pace: Callable[[], None] = never_waits) -> None:
        """All of it; `pace` is called between pieces. Nothing stays behind when it, or that, fails."""
        with new_file(path) as file:
            for piece in self.pieces():
                pace()
                file.write(np.ascontiguousarray(piece).data)


class WholeHeader(GgufFile):
    """What a shard says of the model's own file: its metadata, and which tensors it has, of what shape. There are no
    weights. FormatError."""

    def __init__(self, shard: GgufFile) -> None:
        self.path, self.paths, self.version, self.metadata = shard.path, shard.paths, shard.version, shard.metadata
        names, dims = (self.metadata.get(f"{_PREFIX}.{key}") for key in ("tensors", "shapes"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FormatError(f"{self.path}: {_PREFIX}.tensors is no list of names")
        if not isinstance(dims, np.ndarray) or dims.dtype.kind not in "iu" or dims.shape != (_DIMS * len(names),):
            raise FormatError(f"{self.path}: {_PREFIX}.shapes are not of {len(names)} tensors")
        if ((dims < 0) | (dims >= _MOST_DIM)).any():
            raise FormatError(f"{self.path}: {_PREFIX}.shapes has impossible numbers")
        shapes = [tuple(each for each in some if each) for some in dims.reshape(-1, _DIMS).tolist()]
        self.tensors = {
            name: TensorInfo(name, shape, GgmlType.F32, 0, self.path, 0)
            for name, shape in zip(names, shapes, strict=True)
        }

    def close(self) -> None:
        """Nothing is this one's own."""


def open_shard(path: Path) -> tuple[GgufFile, ModelSpec]:
    """A shard's file, and its numbers with its tensors, checked like a model's. FormatError, UnsupportedError."""
    gguf = open_gguf(path)
    try:
        metadata = gguf.metadata
        version = metadata.get(f"{_PREFIX}.version")
        if version is None:
            raise FormatError(f"{path}: not a shard of a model")
        if version != _VERSION:
            raise UnsupportedError(f"{path}: a shard of version {version!r}; this edgerun reads version {_VERSION}")
        file = WholeHeader(gguf)
        whole = replace(read_spec(file), tensors=file.tensors)
        spec = spec_of_share(whole, _read_share(metadata, whole, path))
        tensors, _ = check_tensors(gguf, spec)
        return gguf, replace(spec, tensors=tensors)
    except BaseException:
        gguf.close()
        raise


def _header(gguf: GgufFile, spec: ModelSpec, share: Share, cuts: list[Cut]) -> bytes:
    writer = GgufWriter("a shard", spec.architecture)
    for key in gguf.metadata:
        if key.startswith(f"{spec.architecture}."):
            writer.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
    writer.add(f"{_PREFIX}.version", _VERSION)
    writer.add(f"{_PREFIX}.tensors", list(spec.tensors))
    shapes = [(*info.shape, *(0,) * (_DIMS - len(info.shape))) for info in spec.tensors.values()]
    writer.add(f"{_PREFIX}.shapes", np.array(shapes, np.int64).reshape(-1), ValueKind.INT64)
    writer.add(f"{_PREFIX}.text", share.text)
    writer.add(f"{_PREFIX}.vocabulary", _edges([share.vocabulary]), ValueKind.INT32)
    for name in _RANGES:
        each: list[range] = [getattr(layer, name) for layer in share.layers]
        writer.add(f"{_PREFIX}.{name}", _edges(each), ValueKind.INT32)
    if share.units:
        writer.add(f"{_PREFIX}.units", np.array(share.units, np.int32).reshape(-1), ValueKind.INT32)
    for cut in cuts:
        writer.add_tensor(cut.name, lambda: np.empty(0, np.uint8), cut.info.type, cut.shape)
    return writer.header()


def _edges(ranges: list[range]) -> NDArray[np.int32]:
    return np.array([edge for each in ranges for edge in (each.start, each.stop)], np.int32)


def _read_share(metadata: Metadata, whole: ModelSpec, path: Path) -> Share:
    layers = whole.n_layers
    vocabulary = _read_ranges(metadata, "vocabulary", [whole.vocab_size], path)[0]
    most = {
        "heads": [mixer_heads(each) for each in whole.layers],
        "ff": [max(each.d_ff, each.d_ff_expert) for each in whole.layers],
        "experts": [each.n_experts for each in whole.layers],
        "shared": [each.beside_cols for each in whole.layers],
    }
    found = [_read_ranges(metadata, name, most[name], path) for name in _RANGES]
    if not len(vocabulary):
        raise FormatError(f"{path}: a shard without a row of the vocabulary")
    shares = tuple(LayerShare(*(each[layer] for each in found)) for layer in range(layers))
    return Share(shares, vocabulary, metadata.get(f"{_PREFIX}.text") is True, _read_units(metadata, layers, path))


def _read_units(metadata: Metadata, layers: int, path: Path) -> tuple[tuple[int, int], ...]:
    value = metadata.get(f"{_PREFIX}.units")
    if value is None:
        return ()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != 2 * layers:
        raise FormatError(f"{path}: {_PREFIX}.units is not two numbers for each of {layers} layers")
    return tuple((mixer, feed_forward) for mixer, feed_forward in value.reshape(-1, 2).tolist())


def _read_ranges(metadata: Metadata, name: str, most: list[int], path: Path) -> list[range]:
    """Of each layer, within 0 and its `most`."""
    value = metadata.get(f"{_PREFIX}.{name}")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != 2 * len(most):
        raise FormatError(f"{path}: {_PREFIX}.{name} is not two numbers for each of {len(most)}")
    found = []
    for (low, high), end in zip(value.reshape(-1, 2).tolist(), most, strict=True):
        if not 0 <= low <= high <= end:
            raise FormatError(f"{path}: {_PREFIX}.{name} has {low} to {high} of {end}")
        found.append(range(low, high))
    return found


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
