"""What tells one model file from another."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.kernels.interface import U8
from edgerun.paths import read_kept, write_kept

_PIECE_BYTES = 8 << 20
_DIGEST = re.compile(r"[0-9a-f]{32}")


def header_digest(gguf: GgufFile) -> str:
    """Of names, shapes, types and places of all tensors, and the files' size: alike for models of one shape. For what
    can only cost time when it is another model's."""
    digest = hashlib.sha256(f"{gguf.architecture} {gguf.file_bytes}".encode())
    for info in gguf.tensors.values():
        digest.update(f"{info.name} {info.shape} {info.type.name} {info.part} {info.offset}\n".encode())
    return digest.hexdigest()[:24]


def file_stamp(gguf: GgufFile) -> str:
    """Of the header and of each file's size, time of change and inode, as it was opened: found without reading the
    weights, and alike only for files that nobody wrote to."""
    said = f"{header_digest(gguf)} {gguf.stamps}"
    return hashlib.sha256(said.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it is, found without reading the weights.

    file: alike only for a file that nobody wrote to. header: alike for files with one vocabulary and one set of
    tensors, in which ids mean the same.
    """

    file: str
    header: str


def identify(gguf: GgufFile) -> ModelIdentity:
    """Of an open file. ReadError when it was cut or changed meanwhile."""
    whole = hashlib.blake2b(digest_size=16)
    for piece in gguf.headers():
        whole.update(piece)
    return ModelIdentity(file_stamp(gguf), whole.hexdigest())


class ContentDigest:
    """The digest of all of a model, its metadata and every byte of every tensor, made from what somebody reads anyway.

    A tensor's bytes are given from its first to its last, tensors in any order; what nobody gave, `finish` reads.
    """

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._begun: dict[str, tuple[int, hashlib.blake2b]] = {}  # name -> bytes so far, their digest
        self._whole: dict[str, bytes] = {}

    def feed(self, info: TensorInfo, data: U8) -> None:
        """The next bytes of a tensor, contiguous."""
        if info.name not in self._begun:
            self._begun[info.name] = 0, hashlib.blake2b(digest_size=16)
        done, digest = self._begun[info.name]
        digest.update(data.data)
        self._begun[info.name] = done + data.nbytes, digest
        if done + data.nbytes == info.n_bytes:
            self._whole[info.name] = digest.digest()

    def finish(self, events: EventSink = ignore) -> str:
        """Read what is missing; 32 hex digits. ReadError when a file was cut or changed meanwhile."""
        whole = hashlib.blake2b(digest_size=16)
        for piece in self._gguf.headers():
            whole.update(piece)
        done, total = 0, self._gguf.n_bytes
        for info in self._gguf.tensors.values():
            if info.name not in self._whole:
                self._begun.pop(info.name, None)
                self._read(info, events, done, total)
            done += info.n_bytes
            whole.update(info.name.encode("utf-8", "surrogateescape") + b"\0" + self._whole[info.name])
        return whole.hexdigest()

    def _read(self, info: TensorInfo, events: EventSink, done: int, total: int) -> None:
        rows, step = info.n_bytes // info.row_bytes, max(1, _PIECE_BYTES // info.row_bytes)
        for first in range(0, rows, step):
            self.feed(info, self._gguf.rows(info.name, first, min(rows, first + step)))
            events(Progress("read model", done + min(rows, first + step) * info.row_bytes, total, "bytes"))


def known_digest(gguf: GgufFile, root: Path) -> str | None:
    """The content's digest where `content_digest` has found it out for this file as it is now; nothing is read."""
    try:
        said = read_kept(_kept(gguf, root)).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return said if _DIGEST.fullmatch(said) else None


def content_digest(gguf: GgufFile, root: Path, events: EventSink = ignore) -> str:
    """Of all of a model; found out once for a file as it is, by reading it whole, and kept under `root`; what cannot be
    kept is found out again. ReadError."""
    known = known_digest(gguf, root)
    if known is None:
        known = ContentDigest(gguf).finish(events)
        with contextlib.suppress(OSError):
            write_kept(_kept(gguf, root), [known.encode()])
    return known


def _kept(gguf: GgufFile, root: Path) -> Path:
    return root / "digests" / file_stamp(gguf)
