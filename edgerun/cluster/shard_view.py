"""A share's tensors, cut out of the model's own file when they are read: a shard without a file of its own.

For what is read once and stays in memory. What is streamed is read by ranges of a file, of which a shard's columns have
none; and each of an expert's units would cost as much reading as all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.cuts import cuts_of
from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import GgufFile
from edgerun.models.share import Share, spec_of_share
from edgerun.models.spec import ModelSpec

U8 = NDArray[np.uint8]


class NotResidentError(UnsupportedError):
    """What is cut while it is read cannot be streamed: it needs a file of its own."""


class ShardView(GgufFile):
    """The tensors of a share of the model `gguf`, which must stay open. Its infos say where a tensor begins in the
    model's file, not how it lies there. For one thread; closing it changes nothing."""

    def __init__(self, gguf: GgufFile, spec: ModelSpec, share: Share) -> None:
        self._rows = _LastRows(gguf)
        self._gguf = gguf
        self._cuts = {cut.name: cut for cut in cuts_of(spec, share)}
        self._parts = []
        self.path, self.paths, self.version, self.metadata = gguf.path, gguf.paths, gguf.version, gguf.metadata
        self.tensors = {
            name: replace(cut.info, name=name, shape=cut.shape, n_bytes=cut.n_bytes) for name, cut in self._cuts.items()
        }
        self.n_bytes = sum(info.n_bytes for info in self.tensors.values())
        self.file_bytes = gguf.file_bytes
        self.spec = replace(spec_of_share(spec, share), tensors=self.tensors)

    def raw(self, name: str) -> U8:
        info = self._info(name)
        return self.rows(name, 0, info.n_bytes // info.row_bytes).reshape(info.raw_shape)

    def rows(self, name: str, first: int, last: int, out: U8 | None = None) -> U8:
        row_bytes = self._info(name).row_bytes
        target = np.empty((last - first) * row_bytes, np.uint8) if out is None else out[: (last - first) * row_bytes]
        filled = 0
        for piece in self._cuts[name].pieces(self._rows, first * row_bytes):
            some = piece[: target.size - filled]
            target[filled : filled + some.size] = some
            filled += some.size
            if filled == target.size:
                break
        return target.reshape(last - first, row_bytes)

    def gather(self, name: str, ids: NDArray[np.integer[Any]]) -> U8:
        """Of a tensor that is not cut, as the embedding is none."""
        cut = self._cuts[name]
        if cut.shape != cut.info.shape:
            raise UnsupportedError(f"{name}: single rows of what is cut are not read")
        return self._gguf.gather(cut.info.name, ids)

    def close(self) -> None:
        """Nothing is this one's own: the model's file stays open."""


class _LastRows:
    """Reads a file's rows, and has those that were read last: of an expert each unit wants the same, one by one."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._held: tuple[str, int, int] = ("", 0, 0)
        self._last = np.empty((0, 0), np.uint8)

    def rows(self, name: str, first: int, last: int) -> U8:
        wanted = name, first, last
        if wanted != self._held:
            self._held, self._last = wanted, self._gguf.rows(name, first, last)
        return self._last
