"""The pack file: the same bytes as from the GGUF, whole or not there, never another model's."""

from __future__ import annotations

import os
import shutil
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import FormatError
from edgerun.formats.gguf import open_gguf
from edgerun.formats.packfile import PAGE, PackHeader, decode_header, pack_path, read_header
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, packing
from edgerun.weights.packing import write_pack
from tests.models.instances import INSTANCES, tokens_of, write
from tests.weights.test_streamed import run


@pytest.fixture(params=["olmoe-Q8_0", "qwen3moe-small-Q4_0", "llama-Q4_K", "gemma2", "relu", "relu2-Q4_0"])
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
        assert len(written) - before <= 2 * (header.blocks - 1), "the first block was not written again"
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
        out.rename(out.with_name(out.name + ".part"))  # as if it had not been finished: only that block is made anew
        write_pack(gguf, spec, kernels)
        assert out.read_bytes() == good


def test_not_for_another_model_nor_another_layout(tmp_path, kernels):
    name = "olmoe-Q8_0"
    path = write(INSTANCES[name], tmp_path / "model.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        out, _ = write_pack(gguf, spec, kernels)
        info = gguf.tensors["blk.1.ffn_up_exps.weight"]
    pack = out.read_bytes()
    other = tmp_path / "other.gguf"
    shutil.copy(path, other)
    with other.open("r+b") as file:
        file.seek(info.offset + 10)
        file.write(b"\x55\x66")
    pack_path(other).write_bytes(pack)
    with open_gguf(other) as gguf, closing(store_of(name, gguf, load_spec(gguf), kernels)) as store:
        assert not store.packed, "same shape, other weights"
    out.write_bytes(pack.replace(kernels.layout_name.encode() + b'"', b"x" * len(kernels.layout_name) + b'"', 1))
    with open_gguf(path) as gguf, closing(store_of(name, gguf, spec, kernels)) as store:
        assert not store.packed
    for size in (0, 100, PAGE, len(pack) - 1):
        out.write_bytes(pack[:size])
        with open_gguf(path) as gguf, closing(store_of(name, gguf, spec, kernels)) as store:
            assert not store.packed
            assert len(run(Decoder(spec, store, kernels), name)) == len(tokens_of(INSTANCES[name]))


GOOD = PackHeader("d" * 24, "r8", "experts", 8192, 10).encode()


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
