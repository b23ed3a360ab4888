"""Who gets how much, and shards as files."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edgerun.cluster.control import Device
from edgerun.cluster.group import Whole, parts_of
from edgerun.cluster.household import ability_of
from edgerun.cluster.shard_file import ShardSource, open_shard
from edgerun.cluster.shard_view import ShardView
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import FOR_MODEL, UNMEASURED_DISK, Ability, divide, ranges, solve
from edgerun.cluster.worker import RankOptions
from edgerun.errors import FormatError, UnsupportedError, UsageError
from edgerun.formats.gguf import GgufWriter
from edgerun.formats.quants import dequantize
from tests.cluster.in_threads import one_thread, resident
from tests.models.instances import INSTANCES, open_instance


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("shares")


@pytest.mark.parametrize("size", [1, 7, 96, 100, 32000])
@pytest.mark.parametrize("parts", [[1], [1, 1, 1], [4, 2, 1], [1, 0, 1], [0.2, 0.3, 0.1, 0.25, 0.15]])
@pytest.mark.parametrize("grain", [1, 16, 32])
def test_ranges_cover_everything_near_what_is_due(size, parts, grain):
    found = ranges(size, grain, parts)
    assert [i for each in found for i in each] == list(range(size))
    for each, part in zip(found, parts, strict=True):
        assert abs(len(each) - size * part / sum(parts)) < 2 * grain
        assert each.start % grain == 0 or not each
        assert part or not each


def test_keys_and_values_take_memory_where_the_weights_are(directory):
    gguf, spec = open_instance("llama", directory)
    weights_bytes = sum(info.n_bytes for info in spec.tensors.values())
    own, other = Ability(1, weights_bytes), Ability(1, weights_bytes // 2)
    model = Whole(gguf, spec, own, ShardStore(directory), resident(one_thread), RankOptions(256))
    assert parts_of(model, [other]) == pytest.approx((0.5, 0.5), rel=1e-3)
    # of twice as much the second has room for a quarter, and half of what fits nowhere
    assert parts_of(replace(model, kv_bytes=weights_bytes), [other]) == pytest.approx((0.625, 0.375), rel=1e-3)


def test_what_fits_nowhere_goes_by_the_disks_that_devices_tell_of(directory):
    gguf, spec = open_instance("llama", directory)
    with gguf:
        weights_bytes = sum(info.n_bytes for info in spec.tensors.values())
        told = Device("attic", 2, int(weights_bytes / FOR_MODEL / 4), "auto", "", 3.0, 0.0, 3e8)
        quick, unmeasured = ability_of(told), ability_of(msgspec.structs.replace(told, disk_bytes_per_s=0.0))
        assert quick.disk_rate == 3e8 and unmeasured.disk_rate == UNMEASURED_DISK == 1e8
        model = Whole(gguf, spec, quick, ShardStore(directory), resident(one_thread), RankOptions(256))
    # a quarter fits each; of the half that is read from disks the first has three quarters
    assert parts_of(model, [unmeasured]) == pytest.approx((0.625, 0.375), rel=1e-3)


def test_the_slowest_ends_as_early_as_it_can():
    assert solve([Ability(1, 10**9), Ability(1, 10**9)], 10**9) == (0.5, 0.5)
    assert solve([Ability(4, 10**9), Ability(2, 10**9), Ability(1, 10**9)], 7) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    # who has little memory gets what fits, the others the rest by their rates
    assert solve([Ability(1, 10), Ability(2, 100), Ability(1, 100)], 100) == pytest.approx((0.1, 0.6, 0.3))
    # too little for all: the rest is read from disks
    assert solve([Ability(1, 20, 3), Ability(1, 20, 1)], 100) == pytest.approx((0.65, 0.35))
    assert solve([Ability(0, 100), Ability(1, 100)], 50) == (0.0, 1.0)
    for devices in ([], [Ability(-1, 1)], [Ability(0, 0)]):
        with pytest.raises(UsageError):
            solve(devices, 10)


def test_more_ranks_than_kv_heads_hold_them_several_times_or_not_at_all(directory):
    gguf, spec = open_instance("llama", directory)  # 4 queries of 2 KV heads
    with gguf:
        heads = [[len(share.layers[0].heads) for share in divide(spec, spec.tensors, [1] * n)] for n in (2, 3, 4, 5)]
    assert heads == [[2, 2], [2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1, 0]]
    gguf, spec = open_instance("llama-Q4_K", directory)  # a block is all heads wide
    with gguf:
        assert [len(share.layers[0].heads) for share in divide(spec, spec.tensors, [1, 1, 1])] == [4, 0, 0]
        with pytest.raises(UsageError):
            divide(spec, spec.tensors, [0, 0])


def _numbers(layers):
    """But how queries, keys and values lie, which a shard without any cannot tell and need not."""
    return [replace(layer, packed_qkv=False) for layer in layers]


@pytest.mark.parametrize("name", ["phi3-Q6_K", "qwen2moe", "olmoe-Q8_0", "relu-Q8_0", "gemma3-Q8_0"])
def test_shards_together_are_the_model(name, directory):
    gguf, spec = open_instance(name, directory)
    with gguf:
        ffn = "ffn_down_exps" if spec.n_experts else "ffn_down_t" if spec.sparse else "ffn_down"
        found = []
        for share in divide(spec, spec.tensors, [2, 1, 1]):
            source = ShardSource(gguf, spec, share)
            path = directory / f"{name}-{source.digest[:8]}.gguf"
            source.write(path)
            content = path.read_bytes()
            assert len(content) == source.n_bytes
            for first in (0, 1, 5000, len(content) // 2, len(content) - 1, len(content)):  # gone on with after a break
                assert b"".join(piece.tobytes() for piece in source.pieces(first)) == content[first:]
            shard, mine = open_shard(path)
            view = ShardView(gguf, spec, share)
            assert {each.name: each.shape for each in view.tensors.values()} == {
                each.name: each.shape for each in shard.tensors.values()
            }
            with shard:
                for info in shard.tensors.values():  # what has no file is what the file has
                    assert np.array_equal(view.raw(info.name), shard.raw(info.name))
                    rows = info.n_bytes // info.row_bytes
                    some = rows // 3, rows - rows // 4
                    assert np.array_equal(view.rows(info.name, *some), shard.rows(info.name, *some))
                assert ("token_embd.weight" in shard.tensors) == share.text
                assert not [key for key in shard.metadata if key.startswith("tokenizer")]
                info = shard.tensors.get(f"blk.1.{ffn}.weight")
                if info is not None:
                    found.append(dequantize(shard.raw(info.name), info.type))
                assert _numbers(mine.whole) == _numbers(spec.layers) and mine.vocab_size == spec.vocab_size
        info = gguf.tensors[f"blk.1.{ffn}.weight"]
        axis = 0 if spec.sparse or len({part.shape[-1] for part in found} | {info.shape[-1]}) == 1 else -1
        assert np.array_equal(np.concatenate(found, axis=axis), dequantize(gguf.raw(info.name), info.type))


def test_rows_are_read_once_for_all_units_of_a_shard(directory, tmp_path, monkeypatch):
    gguf, spec = open_instance("olmoe", directory)
    share = divide(spec, spec.tensors, [1, 1], in_units=True)[1]  # of whose experts each unit is one of its own
    ShardSource(gguf, spec, share).write(tmp_path / "shard.gguf")
    asked = []
    monkeypatch.setattr(gguf, "rows", lambda *what, rows=gguf.rows: asked.append(what) or rows(*what))
    with gguf:
        for _ in ShardSource(gguf, spec, share).pieces():
            pass
        assert len(asked) == len(set(asked))
        asked.clear()
        view, (shard, _) = ShardView(gguf, spec, share), open_shard(tmp_path / "shard.gguf")
        with shard:
            for name, info in shard.tensors.items():
                matrices, height = (info.shape[0], info.shape[1]) if len(info.shape) == 3 else (1, info.raw_shape[0])
                for first in range(0, matrices * height, height) if len(info.shape) > 1 else ():  # expert by expert
                    mine = view.rows(name, first, first + height)
                    assert np.array_equal(mine, shard.rows(name, first, first + height))
        assert len(asked) == len(set(asked))


def test_what_is_no_shard_is_refused(directory, tmp_path):
    gguf, spec = open_instance("llama", directory)
    with gguf:
        with pytest.raises(FormatError, match="not a shard"):
            open_shard(gguf.path)
        share = divide(spec, spec.tensors, [1, 1])[1]
        path = tmp_path / "shard.gguf"
        ShardSource(gguf, spec, share).write(path)
        shard, _ = open_shard(path)
        with shard:
            for key, value in {
                "version": 2,
                "tensors": ["token_embd.weight"],
                "shapes": np.full_like(shard.metadata["edgerun.shard.shapes"], -1),
                "vocabulary": np.array([0, 1 << 20], np.int32),
                "heads": np.array([3, 1] * 3, np.int32),
                "ff": np.array([0, 1], np.int32),
                "experts": "many",
            }.items():
                with GgufWriter(tmp_path / "bad.gguf", "llama") as w:
                    for known in shard.metadata:
                        if known not in ("general.architecture", f"edgerun.shard.{key}"):
                            w.add(known, shard.metadata[known], shard.metadata.kind(known)[0])
                    w.add(f"edgerun.shard.{key}", value)
                    for info in shard.tensors.values():
                        w.add_tensor(info.name, shard.raw(info.name), info.type)
                with pytest.raises((FormatError, UnsupportedError)):
                    open_shard(tmp_path / "bad.gguf")
    assert INSTANCES["llama"].heads == 4
