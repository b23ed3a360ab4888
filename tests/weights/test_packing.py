"""The pack file: the same bytes as from the GGUF, whole or not there, never another model's."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun import new_files
from edgerun.errors import EdgerunError, FormatError, NotFoundError
from edgerun.events import Notice
from edgerun.formats.gguf import open_gguf
from edgerun.formats.packfile import PAGE, PackHeader, decode_header, pack_path, part_path, read_header
from edgerun.models import Decoder, load_spec
from edgerun.planning.missing_reads import missing_reads
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, packing
from edgerun.weights.catalog import make_catalog
from edgerun.weights.identity import ContentDigest, file_stamp
from edgerun.weights.packing import find_pack, verify_pack, write_pack
from tests.models.instances import INSTANCES, tokens_of, write
from tests.weights.streaming import run


@pytest.fixture(params=["olmoe-Q8_0", "qwen3moe-small-Q4_0", "llama-Q4_K", "gemma2", "relu", "relu2-Q4_0", "relu-Q4_K"])
def model(request, tmp_path):
    return request.param, write(INSTANCES[request.param], tmp_path / "model.gguf")


def store_of(name, gguf, spec, kernels):
    if INSTANCES[name].experts:
        return StreamedExpertStore(gguf, spec, kernels, slots=7, wave_tokens=256)
    return StreamedLayerStore(gguf, spec, kernels, pinned=[1], wave_tokens=256, neuron_slots=30 * spec.sparse)


def test_streamed_from_a_pack_is_the_same(model, kernels):
    name, path = model
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        expected = run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), name)
        out, header = write_pack(gguf, spec, kernels)
        assert out == pack_path(path)
        assert read_header(out) == header
        assert out.stat().st_size == header.file_bytes
        with closing(store_of(name, gguf, spec, kernels)) as store:
            assert store.packed
            assert np.array_equal(run(Decoder(spec, store, kernels), name), expected)


def test_the_probe_reads_as_the_run_will(kernels, tmp_path):
    """Of an expert its mean matrix from the model's file, all of its matrices at once from the pack file."""
    with open_gguf(write(INSTANCES["olmoe-Q8_0"], tmp_path / "model.gguf")) as gguf:
        spec = load_spec(gguf)
        catalog = make_catalog(spec.tensors, spec.n_layers)
        plain = missing_reads(gguf, catalog, packed=False)
        out, header = write_pack(gguf, spec, kernels)
        packed = missing_reads(gguf, catalog, packed=True)
    assert (plain.path, packed.path) == (gguf.path, out)
    assert packed.piece_bytes == header.block_bytes >= 3 * plain.piece_bytes > 0


class Killed(BaseException):
    """As sudden as kill -9."""


def test_a_killed_run_goes_on_where_it_stopped(model, kernels, monkeypatch):
    name, path = model
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        whole, _ = write_pack(gguf, spec, kernels)
        good = whole.read_bytes()
        whole.unlink()
        real, left, written = packing._write_all, 0, []

        def dying(fd, data, offset):
            nonlocal left
            left -= 1
            if left < 0:
                real(fd, data[: len(data) // 2], offset)
                raise Killed
            written.append(offset)
            real(fd, data, offset)

        for lives in (3, 2, 1000):
            left = lives
            monkeypatch.setattr(packing, "_write_all", dying)
            before = len(written)
            if lives < 1000:
                with pytest.raises(Killed):
                    write_pack(gguf, spec, kernels)
                assert not whole.exists()
                with closing(store_of(name, gguf, spec, kernels)) as store:
                    assert not store.packed, "half a pack is none"
            else:
                write_pack(gguf, spec, kernels)
        header = read_header(whole)
        again = [offset for offset in written[before:] if offset >= header.data_offset]
        assert len(again) < header.blocks, "a block that was there was not written again"
        assert whole.read_bytes() == good
        assert sorted(each.name for each in path.parent.iterdir() if each.is_file()) == [path.name, whole.name]


def test_damage_is_found(model, kernels):
    _, path = model
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, header = write_pack(gguf, spec, kernels)
        good = out.read_bytes()
        bad = bytearray(good)
        bad[header.offset(1) + 5] ^= 1
        out.write_bytes(bad)
        with pytest.raises(FormatError, match="block 1 is damaged"):
            write_pack(gguf, spec, kernels)
        out.rename(part_path(out))  # as if it had not been finished: only that block is made anew
        write_pack(gguf, spec, kernels)
        assert out.read_bytes() == good


def flip(path, offset, *, keep_time=False):
    """One bit of a file in place."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    moved = 0 if keep_time else 10**9  # a clock's tick may be longer than this test
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + moved))


def packed_of(name, path, kernels):
    """Whether a store of the model uses the file beside it, and what it says."""
    said = []
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        if INSTANCES[name].experts:
            store = StreamedExpertStore(gguf, spec, kernels, slots=7, wave_tokens=256, events=said.append)
        else:
            store = StreamedLayerStore(gguf, spec, kernels, pinned=[1], wave_tokens=256, events=said.append)
        with closing(store):
            return store.packed, [event.text for event in said if isinstance(event, Notice)]


def places(gguf):
    """Offsets of bytes of every kind: in the metadata, and at the beginning, middle and end of every tensor."""
    inside = [info.offset + at for info in gguf.tensors.values() for at in (0, info.n_bytes // 2, info.n_bytes - 1)]
    return [200, *inside]


def test_a_pack_of_other_weights_is_never_used(tmp_path, kernels):
    """Whichever byte of the model differs: seen by its time at once, and by its content when it is compared."""
    name = "olmoe-Q8_0"
    path = write(INSTANCES[name], tmp_path / "model.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, header = write_pack(gguf, spec, kernels)
        assert len(header.digest) == 32 and ContentDigest(gguf).finish() == header.digest
        every = places(gguf)
        key = gguf.metadata["general.name"].encode()
    every[0] = path.read_bytes().index(key)
    good = out.read_bytes()
    assert packed_of(name, path, kernels) == (True, [])
    for place in every[:: max(1, len(every) // 40)]:
        flip(path, place)
        packed, said = packed_of(name, path, kernels)
        assert not packed, place
        assert len(said) == 1 and "copied or changed" in said[0]
        with open_gguf(path) as gguf, pytest.raises(FormatError, match="not this model's|other weights or metadata"):
            verify_pack(gguf, spec, kernels)
        assert out.read_bytes() == good, "only looked at"
        flip(path, place)
    for place in (every[0], every[-2]):  # nothing tells but the content
        flip(path, place, keep_time=True)
        os.utime(path, ns=(0, 0))
        with open_gguf(path) as gguf:
            out.write_bytes(replace(header, stamp=file_stamp(gguf)).encode() + good[PAGE:])
            with pytest.raises(FormatError, match="not this model's|other weights or metadata"):
                verify_pack(gguf, spec, kernels)
            with pytest.raises(FormatError, match="not this model's|other weights or metadata"):
                write_pack(gguf, spec, kernels)
        flip(path, place, keep_time=True)


def test_a_copied_model_keeps_its_pack_and_another_gets_a_new_one(model, kernels, tmp_path):
    name, path = model
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, header = write_pack(gguf, spec, kernels)
    (tmp_path / "there").mkdir()
    other = tmp_path / "there" / "copy.gguf"
    shutil.copy(path, other)
    shutil.copy(out, pack_path(other))
    with open_gguf(other) as gguf:
        assert find_pack(gguf, make_catalog(spec.tensors, spec.n_layers), kernels) is None
        _, again = write_pack(gguf, spec, kernels)
        assert again == replace(header, stamp=file_stamp(gguf))
        assert pack_path(other).read_bytes()[PAGE:] == out.read_bytes()[PAGE:]
        assert find_pack(gguf, make_catalog(spec.tensors, spec.n_layers), kernels) == again
        place = gguf.tensors["blk.1.attn_norm.weight"].offset
    flip(other, place)
    with open_gguf(other) as gguf:
        _, third = write_pack(gguf, spec, kernels)
        assert third.digest != header.digest
        assert verify_pack(gguf, spec, kernels) == third


def test_a_pack_that_others_may_write_is_not_used(tmp_path, kernels):
    path = write(INSTANCES["olmoe"], tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        spec, events = load_spec(gguf), []
        catalog = make_catalog(spec.tensors, spec.n_layers)
        write_pack(gguf, spec, kernels)
        assert find_pack(gguf, catalog, kernels, events=events.append) is not None
        pack_path(path).chmod(0o666)
        assert find_pack(gguf, catalog, kernels, events=events.append) is None
    assert [isinstance(event, Notice) and "others may write" in event.text for event in events] == [True]


def test_another_layout_and_cut_files_are_passed_over(tmp_path, kernels):
    name = "olmoe-Q8_0"
    path = write(INSTANCES[name], tmp_path / "model.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, header = write_pack(gguf, spec, kernels)
    pack = out.read_bytes()
    out.write_bytes(replace(header, layout="x").encode() + pack[PAGE:])
    assert packed_of(name, path, kernels) == (False, [])
    with open_gguf(path) as gguf, pytest.raises(FormatError, match="in layout x"):
        verify_pack(gguf, spec, kernels)
    for size in (0, 100, PAGE, len(pack) - 1):
        out.write_bytes(pack[:size])
        with open_gguf(path) as gguf, closing(store_of(name, gguf, spec, kernels)) as store:
            assert not store.packed
            assert len(run(Decoder(spec, store, kernels), name)) == len(tokens_of(INSTANCES[name]))
    out.unlink()
    with open_gguf(path) as gguf, pytest.raises(NotFoundError, match="edgerun pack"):
        verify_pack(gguf, spec, kernels)


def test_two_at_once(tmp_path, kernels, monkeypatch):
    """The second is refused, or where nothing can be locked finishes; whatever the first, which was stopped in the
    middle, does when it goes on, the file stays whole."""
    name = "olmoe-Q8_0"
    path = write(INSTANCES[name], tmp_path / "model.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, _ = write_pack(gguf, spec, kernels)
        good = out.read_bytes()
    real, started, go_on = packing._write_all, threading.Event(), threading.Event()
    of_first = set()  # descriptors

    def stopping(fd, data, offset):
        if offset > PAGE and (fd in of_first or not started.is_set()):
            of_first.add(fd)
            started.set()
            assert go_on.wait(20)
        real(fd, data, offset)

    def first(errors):
        try:
            with open_gguf(path) as gguf:
                write_pack(gguf, spec, kernels)
        except OSError as error:
            errors.append(error)

    monkeypatch.setattr(packing, "_write_all", stopping)
    for locks in (True, False):
        out.unlink()
        of_first.clear()
        started.clear()
        go_on.clear()
        errors = []
        if not locks:
            monkeypatch.setattr(new_files, "_lock", lambda fd: None)

        thread = threading.Thread(target=first, args=(errors,))
        thread.start()
        assert started.wait(20)
        with open_gguf(path) as gguf:
            if locks:
                with pytest.raises(EdgerunError, match="another edgerun is writing it"):
                    write_pack(gguf, spec, kernels)
            else:
                write_pack(gguf, spec, kernels)
                assert out.read_bytes() == good
        go_on.set()
        thread.join(20)
        assert out.read_bytes() == good
        assert [type(error) for error in errors] == ([] if locks else [FileNotFoundError])


GOOD = PackHeader("d" * 32, "e" * 32, "rows8", "experts", 8192, 10).encode()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_hostile_headers(tmp_path_factory, junk, at):
    page = GOOD[:at] + junk + GOOD[at + len(junk) :]
    try:
        header = decode_header(page, tmp_path_factory.getbasetemp() / "x")
    except FormatError as error:
        assert str(error)
    else:
        assert 0 < header.file_bytes < 1 << 57
        assert header.block_bytes % PAGE == 0


def test_no_room(tmp_path, kernels, monkeypatch):
    path = write(INSTANCES["olmoe-Q8_0"], tmp_path / "model.gguf")

    def full(fd, data, offset):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(packing.os, "pwrite", full)
    with open_gguf(path) as gguf, pytest.raises(OSError, match="No space left"):
        write_pack(gguf, load_spec(gguf), kernels)
    assert not pack_path(path).exists()
