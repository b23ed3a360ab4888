"""The pack file: a model's streamed weights as they lie in memory, so that a read needs no work after it.

    bytes 0 .. 8        "EDGEPACK"
    8 .. 12             length of the header, u32 little-endian, at most 4 KiB - 12
    12 ..               header, JSON: {"version", "digest", "stamp", "layout", "kind", "block_bytes", "blocks"}
    4096 ..             a checksum of each block: 16 bytes of BLAKE2b; zero: not written yet
    next multiple of 4096 ..  the blocks, each `block_bytes` (a multiple of 4096)

`digest` is that of all of the model (`weights.identity.ContentDigest`), `stamp` that of the model's header and of its
files' sizes, times and inodes when it was read (`weights.identity.file_stamp`), `layout` the kernels' layout, `kind`
what a block is: an expert ("experts", in the order of layers and ids) or a layer ("layers"). A file is written as
`.NAME.edgerun-part`, block after block with its checksum after it and an empty digest, which is filled in and the file
renamed when all blocks are there and have been read back: what has its name is whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from edgerun.errors import FormatError

MAGIC = b"EDGEPACK"
VERSION = 2
PAGE = 4096
SUM_BYTES = 16
_MOST_BLOCKS = 1 << 20
_MOST_BLOCK_BYTES = 1 << 36


@dataclass(frozen=True)
class PackHeader:
    """What a pack file holds."""

    digest: str  # "": not known yet
    stamp: str
    layout: str
    kind: str
    block_bytes: int
    blocks: int
    version: int = VERSION

    @property
    def data_offset(self) -> int:
        """Of the first block."""
        return PAGE + -(-self.blocks * SUM_BYTES // PAGE) * PAGE

    @property
    def file_bytes(self) -> int:
        """Of the whole file."""
        return self.data_offset + self.blocks * self.block_bytes

    def offset(self, block: int) -> int:
        """Of a block."""
        return self.data_offset + block * self.block_bytes

    def encode(self) -> bytes:
        """The first page."""
        text = json.dumps(asdict(self)).encode()
        return (MAGIC + len(text).to_bytes(4, "little") + text).ljust(PAGE, b"\0")


def pack_path(model: Path) -> Path:
    """Where a model's pack file is looked for: beside it."""
    return model.with_name(model.name + ".edgepack")


def part_path(pack: Path) -> Path:
    """Where a pack file is written until it is whole."""
    return pack.with_name(f".{pack.name}.edgerun-part")


def checksum(block: bytes | memoryview) -> bytes:
    """Never all zeros."""
    return blake2b(block, digest_size=SUM_BYTES).digest() or b"\1" * SUM_BYTES


def decode_header(page: bytes, path: Path) -> PackHeader:
    """FormatError for anything but a header of this version with sizes that make sense."""
    if len(page) < 12 or page[:8] != MAGIC:
        raise FormatError(f"{path}: not a pack file")
    length = int.from_bytes(page[8:12], "little")
    if length > PAGE - 12 or len(page) < 12 + length:
        raise FormatError(f"{path}: its header is cut off")
    try:
        said = json.loads(page[12 : 12 + length])
        header = PackHeader(**said)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: malformed header: {error}") from error
    texts = all(isinstance(each, str) for each in (header.digest, header.stamp, header.layout, header.kind))
    numbers = all(type(each) is int for each in (header.version, header.block_bytes, header.blocks))
    if not (texts and numbers) or header.version != VERSION:
        raise FormatError(f"{path}: a pack file of another version; make it again with `edgerun pack`")
    if not (0 < header.blocks <= _MOST_BLOCKS and 0 < header.block_bytes <= _MOST_BLOCK_BYTES) or (
        header.block_bytes % PAGE
    ):
        raise FormatError(f"{path}: impossible sizes: {header.blocks} blocks of {header.block_bytes} bytes")
    return header


def read_header(path: Path) -> PackHeader:
    """Of a finished file, whose size must be right. FormatError, OSError."""
    with path.open("rb") as file:
        header = decode_header(file.read(PAGE), path)
        size = os.fstat(file.fileno()).st_size
    if not header.digest:
        raise FormatError(f"{path}: was not finished; make it again")
    if size != header.file_bytes:
        raise FormatError(f"{path}: {size} bytes, but its header says {header.file_bytes}; make it again")
    return header
