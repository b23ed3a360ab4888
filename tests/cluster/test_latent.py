"""Groups of models with latent attention: heads are divided, and the one vector of a position is kept by all who have
some, so that whoever goes in an answer's middle costs not a token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerun.cluster.copying import heads_of
from edgerun.cluster.group import Whole, parts_of
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import Ability, divide
from edgerun.cluster.worker import RankOptions
from edgerun.models.holdings import common_kv_bytes, kv_bytes, kv_groups
from edgerun.models.share import spec_of_share
from tests.cluster.groups import linked_group
from tests.cluster.in_threads import greedy, one_thread, resident, together
from tests.models.instances import INSTANCES, open_instance, tokens_of

LATENT = ("deepseek2", "deepseek2-before-2025-Q8_0")  # one vector of a position, and each head's keys and values


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def test_whoever_has_a_head_keeps_a_positions_vector_and_nobody_else(directory):
    gguf, spec = open_instance("deepseek2", directory)
    with gguf:
        groups = kv_groups(spec)
        shares = divide(spec, spec.tensors, [3, 0, 1, 0.1])
        heads = [heads_of(spec, share, groups)[0] for share in shares]
        assert heads == [[[0]] * 2, [[]] * 2, [[0]] * 2, [[]] * 2]
        page_bytes = [sum(group.page_bytes for group in kv_groups(spec_of_share(spec, share))) for share in shares]
        assert page_bytes == [groups[0].page_bytes, 0, groups[0].page_bytes, 0]


def test_every_heads_own_keys_and_values_are_divided(directory):
    gguf, spec = open_instance("deepseek2-before-2025-Q8_0", directory)  # of three heads
    with gguf:
        shares, groups = divide(spec, spec.tensors, [1, 0, 2]), kv_groups(spec)
        sizes = [sum(group.page_bytes for group in kv_groups(spec_of_share(spec, share))) for share in shares]
        assert sum(sizes) == groups[0].page_bytes and sizes[1] == 0
        assert sorted(head for share in shares for head in heads_of(spec, share, groups)[0][0]) == [0, 1, 2]


def test_memory_for_what_all_keep_is_left_on_every_device(directory):
    names = ("deepseek2", "deepseek2-before-2025-Q8_0", "llama")
    for name in names:
        gguf, spec = open_instance(name, directory)
        with gguf:
            assert common_kv_bytes(spec, 500) == (kv_bytes(spec, 500) if name == "deepseek2" else 0)
    gguf, spec = open_instance("deepseek2", directory)
    with gguf:
        weights_bytes = sum(info.n_bytes for info in spec.tensors.values())
        own, other = Ability(1, 2 * weights_bytes), Ability(1, weights_bytes)
        model = Whole(gguf, spec, own, ShardStore(directory), resident(one_thread), RankOptions(256))
        assert parts_of(model, [other]) == pytest.approx((0.5, 0.5))
        kept = replace(model, common_kv_bytes=weights_bytes * 3 // 4)
        assert parts_of(kept, [other]) == pytest.approx((0.75, 0.25), rel=1e-3)


@pytest.mark.parametrize("name", [*LATENT, "mistral4-all-Q8_0"])
def test_ranks_without_a_head_have_the_same_bits(name, directory):
    gguf, spec = open_instance(name, directory)
    ids = tokens_of(INSTANCES[name])
    with gguf:
        wanted = None
        for parts, way in (([1], "star"), ([1, 0, 1], "star"), ([0, 1, 1], "mesh"), ([1, 1, 1, 1, 1], "mesh")):
            group = linked_group(len(parts), way, wait_s=60)
            with together(gguf, spec, parts, directory, resident(one_thread), group, in_units=True) as made:
                logits = made.decoder.forward(ids, made.decoder.new_cache(100), logits="all").copy()
                got = logits, greedy(made.decoder, ids, 12)
            assert not made.errors
            wanted = wanted or got
            np.testing.assert_array_equal(got[0], wanted[0])
            assert got[1] == wanted[1]
