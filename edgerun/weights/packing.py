"""Writing a pack file: resumable, verified, and not there until it is whole.

Packing a gigabyte takes a core some four seconds, most of them for digests of what is read, written and read back. So
layers are packed side by side, each by one thread, which feeds the digests of its own tensors in their order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import numpy as np

from edgerun.errors import FormatError, NotFoundError, UntrustedError
from edgerun.events import EventSink, Notice, Progress, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.formats.packfile import (
    PAGE,
    SUM_BYTES,
    PackHeader,
    checksum,
    decode_header,
    pack_path,
    part_path,
    read_header,
)
from edgerun.kernels.interface import U8, Kernels
from edgerun.new_files import resumed_file
from edgerun.trust import check_beside
from edgerun.weights.blocks import BlockLayout, layer_blocks, slot_blocks, stored_block_bytes
from edgerun.weights.catalog import Catalog, make_catalog
from edgerun.weights.flash import FlashReader
from edgerun.weights.identity import ContentDigest, file_stamp
from edgerun.weights.resident import HasLayers
from edgerun.weights.tensor_reader import TensorReader


def pack_header(gguf: GgufFile, catalog: Catalog, kernels: Kernels) -> PackHeader:
    """What the pack file of this model, for these kernels, says of itself but for the content's digest."""
    kind, layouts = block_layouts(catalog, kernels)
    blocks = catalog.n_all_experts or len(layouts)
    return PackHeader("", file_stamp(gguf), kernels.layout_name, kind, stored_block_bytes(layouts), blocks)


def block_layouts(catalog: Catalog, kernels: Kernels) -> tuple[str, list[BlockLayout]]:
    """What a block is, and how one of each layer is filled."""
    if catalog.n_experts:
        return "experts", slot_blocks(catalog, kernels)
    return "layers", layer_blocks(catalog, kernels)


def find_pack(gguf: GgufFile, catalog: Catalog, kernels: Kernels, *, events: EventSink = ignore) -> PackHeader | None:
    """The header of the pack file beside a model when it is whole, of this layout, and was made from the model's files
    as they are: same sizes, times and inodes. A Notice when only these differ, and when others
    can have written it."""
    path = pack_path(gguf.path)
    try:
        check_beside(path, gguf.path)
    except UntrustedError as error:
        events(Notice(f"a pack file is not used: {error}"))
        return None
    except OSError:  # there is none
        return None
    header = _header_of(path)
    if header is None or not _alike(header, wanted := pack_header(gguf, catalog, kernels)):
        return None
    if header.stamp != wanted.stamp:
        events(
            Notice(
                f"{path} is not used: {gguf.path.name} was copied or changed since it was made; "
                "`edgerun pack` compares them and makes it good"
            )
        )
        return None
    return header


def has_pack(gguf: GgufFile, layout_name: str) -> bool:
    """Whether a pack file of this layout is there, made from the model's files as they are: from headers alone, for
    those who only plan. `find_pack` compares more."""
    header = _header_of(pack_path(gguf.path))
    return header is not None and (header.layout, header.stamp) == (layout_name, file_stamp(gguf))


def open_reader(
    gguf: GgufFile, catalog: Catalog, kernels: Kernels, *, threads: int, direct: bool, events: EventSink = ignore
) -> TensorReader:
    """Of the model and of the pack file beside it, where there is one that fits; `close` its `flash`."""
    pack = find_pack(gguf, catalog, kernels, events=events)
    files = [*gguf.paths, pack_path(gguf.path)] if pack else gguf.paths
    return TensorReader(gguf, kernels, FlashReader(files, threads=threads, direct=direct), pack)


def write_pack(
    gguf: GgufFile, spec: HasLayers, kernels: Kernels, *, events: EventSink = ignore
) -> tuple[Path, PackHeader]:
    """Write the pack file beside a model, going on where an interrupted run stopped. A whole one is compared with the
    model; it is made anew only when it is another state's of the model's files and differs.

    Raises OSError (no room, no permission), EdgerunError when another process is writing it, ReadError when the model
    is changed meanwhile, and FormatError when what is read back is not what was written.
    """
    catalog = make_catalog(spec.tensors, spec.n_layers)
    kernels.prepare(catalog.types())
    wanted, path = pack_header(gguf, catalog, kernels), pack_path(gguf.path)
    threads = kernels.threads
    old = _header_of(path)
    if old is not None and _alike(old, wanted):
        try:
            return path, verify_pack(gguf, spec, kernels, events=events)
        except FormatError:
            if old.stamp == wanted.stamp:
                raise  # damaged: whoever has it should know
    digest = ContentDigest(gguf)
    with resumed_file(part_path(path)) as file:
        fd = file.fileno()
        sums = _begun(fd, wanted, part_path(path))
        missing = [not any(each) for each in sums]

        def put(block: int, image: U8) -> None:
            sums[block] = checksum(image.data)
            _write_all(fd, image.data, wanted.offset(block))
            _write_all(fd, sums[block], PAGE + block * SUM_BYTES)  # after the block: then it is there

        layers = _layers(gguf, catalog, kernels, wanted, missing.__getitem__, digest, put)
        done, total = sum(map(any, sums)), wanted.blocks * wanted.block_bytes
        for _ in _side_by_side(layers, threads):
            done += 1
            events(Progress("pack", done * wanted.block_bytes, total, "bytes"))
        step = -(-wanted.blocks // threads)
        parts = [range(low, min(wanted.blocks, low + step)) for low in range(0, wanted.blocks, step)]
        checks = [_check_sums(fd, wanted, part_path(path), part) for part in parts]
        for read, _ in enumerate(_side_by_side(checks, threads), 1):
            events(Progress("verify", read * wanted.block_bytes, total, "bytes"))
        header = replace(wanted, digest=digest.finish(events))
        _write_all(fd, header.encode(), 0)
        os.fsync(fd)
        part_path(path).replace(path)
    return path, header


def verify_pack(gguf: GgufFile, spec: HasLayers, kernels: Kernels, *, events: EventSink = ignore) -> PackHeader:
    """Read all of a model and of the pack file beside it, and compare: each block with what packing gives now, its
    checksum, and the digest of the whole model. One that was made from a copy of the model is stamped for this one.

    NotFoundError: there is none. FormatError, which says what differs. ReadError.
    """
    catalog = make_catalog(spec.tensors, spec.n_layers)
    kernels.prepare(catalog.types())
    wanted, path = pack_header(gguf, catalog, kernels), pack_path(gguf.path)
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file; `edgerun pack` makes it")
    header, digest = read_header(path), ContentDigest(gguf)
    if not _alike(header, wanted):
        raise FormatError(
            f"{path}: {header.blocks} {header.kind} in layout {header.layout}; this model has {wanted.blocks} "
            f"{wanted.kind}, and the kernels here want {wanted.layout}: delete the file and pack again"
        )
    with path.open("rb") as file:
        fd = file.fileno()
        table = os.pread(fd, header.blocks * SUM_BYTES, PAGE)

        def compare(block: int, image: U8) -> None:
            stored = os.pread(fd, header.block_bytes, header.offset(block))
            if checksum(stored) != table[block * SUM_BYTES :][:SUM_BYTES]:
                raise FormatError(f"{path}: block {block} is damaged; delete the file and pack again")
            if not np.array_equal(np.frombuffer(stored, np.uint8), image):
                raise FormatError(f"{path}: block {block} is not this model's; delete the file and pack again")

        layers = _layers(gguf, catalog, kernels, header, lambda block: True, digest, compare)
        for done, _ in enumerate(_side_by_side(layers, kernels.threads), 1):
            events(Progress("verify", done * header.block_bytes, header.blocks * header.block_bytes, "bytes"))
    if digest.finish(events) != header.digest:
        raise FormatError(f"{path}: made from a model with other weights or metadata; delete the file and pack again")
    if header.stamp != wanted.stamp:
        header = replace(header, stamp=wanted.stamp)
        with path.open("r+b") as stamped:
            _write_all(stamped.fileno(), header.encode(), 0)
            os.fsync(stamped.fileno())
    return header


def _header_of(path: Path) -> PackHeader | None:
    """Of a whole pack file; None where there is none, since the model itself does as well."""
    try:
        return read_header(path) if path.is_file() else None
    except (OSError, FormatError):
        return None


def _alike(header: PackHeader, wanted: PackHeader) -> bool:
    """Whether they are of one shape and layout."""
    return replace(header, digest="", stamp="") == replace(wanted, digest="", stamp="")


def _begun(fd: int, header: PackHeader, path: Path) -> list[bytes]:
    """Checksums of the blocks that are there already and right; the file is begun anew when it is another's, or of
    another state of the model's files."""
    try:
        same = replace(decode_header(os.pread(fd, PAGE, 0), path), digest="") == header
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


def _layers(
    gguf: GgufFile,
    catalog: Catalog,
    kernels: Kernels,
    header: PackHeader,
    is_wanted: Callable[[int], bool],
    digest: ContentDigest,
    visit: Callable[[int, U8], None],
) -> list[Iterator[int]]:
    """For each layer, what gives `visit` each of its blocks that are wanted, as a number and as bytes that are valid
    until it returns, and yields the number. The digest gets all that is packed, of the others too."""
    _, layouts = block_layouts(catalog, kernels)
    counts = [1 if not catalog.n_experts else catalog.n_experts if layout.parts else 0 for layout in layouts]
    pack = partial(_layer, gguf, kernels, header, is_wanted, digest, visit)
    return [pack(layout, count) for layout, count in zip(layouts, counts, strict=True)]


def _layer(
    gguf: GgufFile,
    kernels: Kernels,
    header: PackHeader,
    is_wanted: Callable[[int], bool],
    digest: ContentDigest,
    visit: Callable[[int, U8], None],
    layout: BlockLayout,
    count: int,
) -> Iterator[int]:
    """See `_layers`."""
    image = np.zeros(header.block_bytes, np.uint8)
    for i in range(count):
        block = layout.block + i
        for part in layout.parts:
            memory = image[part.offset : part.offset + part.n_bytes]
            matrix = kernels.matrix_in(memory, part.info.type, part.rows, part.cols)
            first = part.first_row(i)
            raw = gguf.rows(part.info.name, first, first + part.rows)
            digest.feed(part.info, raw)
            if is_wanted(block):
                kernels.pack_rows(raw, matrix, 0)
        if layout.neurons:
            rows = [gguf.raw(info.name) for info in layout.neurons]
            for info, raw in zip(layout.neurons, rows, strict=True):
                digest.feed(info, raw)
            image[layout.neurons_offset : layout.stored_bytes] = np.hstack(rows).reshape(-1)
        if is_wanted(block):
            visit(block, image)
            yield block


def _side_by_side(tasks: Sequence[Iterator[int]], threads: int) -> Iterator[int]:
    """What tasks yield, as it comes; each is run by one of some threads. What one raises ends all and is raised."""
    waiting, taking = deque(tasks), Lock()
    news, over = SimpleQueue[int | None](), Event()

    def work() -> None:
        try:
            while not over.is_set():
                with taking:
                    task = waiting.popleft() if waiting else None
                if task is None:
                    return
                for each in task:
                    news.put(each)
                    if over.is_set():
                        return
        except BaseException:
            over.set()
            raise
        finally:
            news.put(None)

    with ThreadPoolExecutor(threads) as executor:
        running = [executor.submit(work) for _ in range(threads)]
        try:
            for _ in running:  # each ends with None
                while (each := news.get()) is not None:
                    yield each
        finally:
            over.set()
    for future in running:
        future.result()


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _check_sums(fd: int, header: PackHeader, path: Path, blocks: range) -> Iterator[int]:
    """Read some blocks back; yields their numbers."""
    table = os.pread(fd, header.blocks * SUM_BYTES, PAGE)
    for block in blocks:
        if checksum(os.pread(fd, header.block_bytes, header.offset(block))) != table[block * SUM_BYTES :][:SUM_BYTES]:
            raise FormatError(f"{path}: block {block} is damaged; delete the file and pack again")
        yield block
