"""What reading is like while a model streams: from which file, in pieces of what size, how many at once.

The probe that predicts a run reads as the run will, of the file that it will read. A pack file has an expert's matrices
side by side, and they are read as one; from a GGUF each is read by itself, by the same thread one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgerun.formats.gguf import GgufFile
from edgerun.formats.packfile import pack_path, read_header
from edgerun.planning.memory import reader_threads
from edgerun.weights.catalog import Catalog
from edgerun.weights.flash import PIECE_BYTES


@dataclass(frozen=True)
class MissingReads:
    """path: what is read of; piece_bytes: of one read; threads: reads in flight."""

    path: Path
    piece_bytes: int
    threads: int

    @property
    def probe_bytes(self) -> int:
        """Of one read of a probe: a quarter of a small file, so that places differ."""
        return min(self.piece_bytes, self.path.stat().st_size // 4)


def missing_reads(gguf: GgufFile, catalog: Catalog, *, packed: bool) -> MissingReads:
    """Of what is missing in memory. packed: it comes from the pack file beside the model, which is whole. OSError,
    FormatError where it is not."""
    threads = reader_threads(catalog)
    if packed:
        pack = pack_path(gguf.path)
        return MissingReads(pack, min(PIECE_BYTES, read_header(pack).block_bytes), threads)
    experts = [info.n_bytes // info.shape[0] for each in catalog.layers for info in each.experts.values()]
    typical = sum(experts) // len(experts) if experts else PIECE_BYTES
    return MissingReads(gguf.path, min(PIECE_BYTES, typical), threads)
