"""Writing a pack file: resumable, verified, and not there until it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgerun.errors import FormatError
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.formats.packfile import PAGE, SUM_BYTES, PackHeader, checksum, decode_header, pack_path, read_header
from edgerun.kernels.interface import U8, Kernels
from edgerun.weights.blocks import BlockLayout, layer_blocks, slot_blocks, stored_block_bytes
from edgerun.weights.catalog import Catalog, make_catalog
from edgerun.weights.flash import FlashReader
from edgerun.weights.identity import content_digest
from edgerun.weights.tensor_reader import TensorReader


def pack_header(gguf: GgufFile, catalog: Catalog, kernels: Kernels) -> PackHeader:
    """What the pack file of this model, for these kernels, says of itself."""
    kind, layouts = block_layouts(catalog, kernels)
    blocks = len(layouts) * (catalog.n_experts or 1)
    return PackHeader(content_digest(gguf), kernels.layout_name, kind, stored_block_bytes(layouts), blocks)


def block_layouts(catalog: Catalog, kernels: Kernels) -> tuple[str, list[BlockLayout]]:
    """What a block is, and how one of each layer is filled."""
    if catalog.n_experts:
        return "experts", slot_blocks(catalog, kernels)
    return "layers", layer_blocks(catalog, kernels)


def find_pack(gguf: GgufFile, catalog: Catalog, kernels: Kernels) -> PackHeader | None:
    """The header of the pack file beside a model when it is whole and of this model and layout."""
    path = pack_path(gguf.path)
    if not path.is_file():
        return None
    try:
        header = read_header(path)
    except (OSError, FormatError):
        return None  # the model itself does as well
    return header if header == pack_header(gguf, catalog, kernels) else None


def open_reader(gguf: GgufFile, catalog: Catalog, kernels: Kernels, *, threads: int, direct: bool) -> TensorReader:
    """Of the model and of the pack file beside it, where there is one that fits; `close` its `flash`."""
    pack = find_pack(gguf, catalog, kernels)
    files = [*gguf.paths, pack_path(gguf.path)] if pack else gguf.paths
    return TensorReader(gguf, kernels, FlashReader(files, threads=threads, direct=direct), pack)


def write_pack(
    gguf: GgufFile, n_layers: int, kernels: Kernels, *, events: EventSink = ignore
) -> tuple[Path, PackHeader]:
    """Write the pack file beside a model, going on where an interrupted run stopped. A whole one is only verified.

    Raises OSError (no room, no permission) and FormatError when what is read back is not what was written.
    """
    catalog = make_catalog(gguf.tensors, n_layers)
    kernels.prepare(catalog.types())
    header = pack_header(gguf, catalog, kernels)
    path = pack_path(gguf.path)
    if find_pack(gguf, catalog, kernels) is not None:
        with path.open("rb") as file:
            _verify(file.fileno(), header, path, events)
        return path, header
    part = path.with_name(path.name + ".part")
    with part.open("r+b" if part.exists() else "w+b") as file:
        sums = _begun(file.fileno(), header, part)
        _fill(file.fileno(), header, sums, _images(gguf, catalog, kernels, header, sums), events)
        _verify(file.fileno(), header, part, events)
        os.fsync(file.fileno())
    part.replace(path)
    return path, header


def _begun(fd: int, header: PackHeader, path: Path) -> list[bytes]:
    """Checksums of the blocks that are there already and right; the file is begun anew when it is another's."""
    try:
        same = decode_header(os.pread(fd, PAGE, 0), path) == header
    except FormatError:
        same = False
    none = bytes(SUM_BYTES)
    if not same:
        os.ftruncate(fd, 0)
        os.pwrite(fd, header.encode(), 0)
        os.ftruncate(fd, header.data_offset)
        return [none] * header.blocks
    table = os.pread(fd, header.blocks * SUM_BYTES, PAGE).ljust(header.blocks * SUM_BYTES, b"\0")
    sums = [table[i * SUM_BYTES : (i + 1) * SUM_BYTES] for i in range(header.blocks)]
    for block, said in enumerate(sums):
        if said != none and checksum(os.pread(fd, header.block_bytes, header.offset(block))) != said:
            sums[block] = none
    return sums


def _images(
    gguf: GgufFile, catalog: Catalog, kernels: Kernels, header: PackHeader, sums: list[bytes]
) -> Iterator[tuple[int, U8]]:
    """(number, bytes) of the blocks that are missing; the bytes are valid until the next."""
    _, layouts = block_layouts(catalog, kernels)
    image = np.zeros(header.block_bytes, np.uint8)
    per_layer = catalog.n_experts or 1
    for layer, layout in enumerate(layouts):
        for i in range(per_layer):
            if any(sums[layer * per_layer + i]):
                continue
            image[:] = 0
            for info, offset, size in layout.parts:
                matrix = kernels.matrix_in(image[offset : offset + size], info.type, *info.shape[-2:])
                kernels.pack_rows(gguf.rows(info.name, i * matrix.rows, (i + 1) * matrix.rows), matrix, 0)
            if layout.neurons:
                rows = [gguf.raw(info.name) for info in layout.neurons]
                image[layout.neurons_offset : layout.stored_bytes] = np.hstack(rows).reshape(-1)
            yield layer * per_layer + i, image


def _fill(fd: int, header: PackHeader, sums: list[bytes], images: Iterator[tuple[int, U8]], events: EventSink) -> None:
    done = sum(any(each) for each in sums)
    for block, image in images:
        data = image.tobytes()
        _write_all(fd, data, header.offset(block))
        sums[block] = checksum(data)
        _write_all(fd, sums[block], PAGE + block * SUM_BYTES)
        done += 1
        events(Progress("pack", done * header.block_bytes, header.blocks * header.block_bytes, "bytes"))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _verify(fd: int, header: PackHeader, path: Path, events: EventSink) -> None:
    """Read everything back."""
    table = os.pread(fd, header.blocks * SUM_BYTES, PAGE)
    for block in range(header.blocks):
        if checksum(os.pread(fd, header.block_bytes, header.offset(block))) != table[block * SUM_BYTES :][:SUM_BYTES]:
            raise FormatError(f"{path}: block {block} is damaged; delete the file and pack again")
        events(Progress("verify", (block + 1) * header.block_bytes, header.blocks * header.block_bytes, "bytes"))
