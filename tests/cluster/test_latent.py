"""Groups of models with latent attention: heads are divided, and the one vector of a position is kept by all who have
some, so that whoever goes in an answer's middle costs not a token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerun.api.llm import LLM
from edgerun.cluster.copying import heads_of
from edgerun.cluster.group import Whole, parts_of
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import Ability, divide
from edgerun.cluster.worker import RankOptions
from edgerun.models import Batch, Stretch
from edgerun.models.holdings import common_kv_bytes, kv_bytes, kv_groups
from edgerun.models.share import spec_of_share
from tests.cluster.groups import linked_group
from tests.cluster.in_threads import greedy, one_thread, resident, together
from tests.cluster.test_group import clustered
from tests.models.instances import INSTANCES, open_instance, tokens_of, write
from tests.text.vocabularies import sentencepiece

PROMPT = "the cat sat on the mat and the dog"
OPTIONS = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
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


@pytest.mark.parametrize("name", LATENT)
def test_bits_do_not_depend_on_how_a_sequence_is_cut_or_on_company(name, directory):
    ids = np.random.default_rng(3).integers(0, 96, 300).tolist()
    gguf, spec = open_instance(name, directory)
    with gguf, together(gguf, spec, [2, 1], directory, resident(one_thread), in_units=True) as group:
        decoder = group.decoder
        whole = decoder.forward(ids, decoder.new_cache(400), logits="all")
        cache, other, rows = decoder.new_cache(400), decoder.new_cache(400), []
        low = 0
        for high in (1, 3, 60, 61, 290, 300):
            batch = Batch((Stretch(cache, ids[low:high], "all"), Stretch(other, [high % 96], "none")))
            rows.append(decoder.step(batch)[0])
            low = high
        assert np.array_equal(np.concatenate(rows), whole)
    assert not group.errors


@pytest.mark.parametrize("name", LATENT)
def test_devices_that_go_and_come_cost_not_a_token(name, directory, tmp_path):
    path = write(INSTANCES[name], directory / f"{name}-text.gguf", sentencepiece())
    with clustered(path, [], tmp_path) as (alone, _):
        wanted = alone.complete(PROMPT, **OPTIONS).text
    with clustered(path, [1, 1, 1], tmp_path) as (llm, assembly):
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        text, lost = "", 0
        for tokens, chunk in enumerate(llm.stream(PROMPT, **OPTIONS)):
            text += chunk.text
            if lost < 2 and tokens > 4 + 8 * lost:
                assembly.lose(0, after_calls=3 + 5 * lost)
                lost += 1
        assert lost == 2 and text == wanted and llm.engine.decoder.size == 2
        assembly.come(2.0)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 3


def test_guesses_go_through_a_group(directory, tmp_path):
    path = write(INSTANCES["deepseek2"], directory / "guesses.gguf", sentencepiece())
    text = "the cat sat. the cat sat. the cat"
    with LLM(path, threads=1) as plain, clustered(path, [1, 1], tmp_path, draft="lookup") as (llm, _):
        assert llm.complete(text, **OPTIONS).text == plain.complete(text, **OPTIONS).text
