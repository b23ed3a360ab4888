"""Groups of models with recurrent states: what the head's sequences hold, the others hold too, whatever became of them;
and an answer is the same text whoever goes in its middle."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.api.llm import LLM
from edgerun.models import Batch, Decoder, Stretch
from edgerun.weights import ResidentStore
from tests.cluster.in_threads import CONTEXT, greedy, one_thread, resident, together
from tests.cluster.test_group import clustered
from tests.models.instances import INSTANCES, open_instance, write
from tests.text.vocabularies import sentencepiece

PROMPT = "the cat sat on the mat and the dog"
OPTIONS = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
RECURRENT = ("qwen35", "lfm2", "granitehybrid")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", RECURRENT)
def test_states_follow_the_head(name, directory, kernels):
    """Sequences are cut, copied, begun like others and forgotten at random, and go on in one batch."""
    rng = np.random.default_rng(5)
    gguf, spec = open_instance(name, directory)
    with gguf, together(gguf, spec, [1, 1, 1], directory, resident(one_thread)) as group:
        alone = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=CONTEXT)
        both = (alone, group.decoder)
        pairs = [tuple(decoder.new_cache(CONTEXT) for decoder in both) for _ in range(3)]
        known: list[list[int]] = [[] for _ in pairs]
        for turn in range(60):
            at = int(rng.integers(len(pairs)))
            pair, ids = pairs[at], known[at]
            what = ["go on", "go on", "cut", "copy", "recall", "forget"][int(rng.integers(6))]
            if what == "cut" and ids:
                n = {each.held_from(int(rng.integers(len(ids) // 2, len(ids) + 1))) for each in pair[1:]}.pop()
                n = pair[0].held_from(n)
                assert pair[1].held_from(n) == n
                for each in pair:
                    each.truncate(n)
                del ids[n:]
            elif what == "copy" and len(ids) > 1:
                to = int(rng.integers(len(pairs)))
                n = pair[0].held_from(len(ids))
                pairs[to], known[to] = tuple(each.copy(n) for each in pair), ids[:n]
            elif what == "recall":
                for each in pair:
                    each.remember(ids)
                    each.release()
                ids[:] = ids[: {each.recall(ids) for each in pair}.pop()]
            elif what == "forget" and turn % 3 == 0:
                for each in pair:
                    each.release()
                ids.clear()
            more = rng.integers(0, 96, int(rng.choice([1, 2, 7, 70, 300]))).tolist()
            if len(ids) + len(more) > CONTEXT:
                continue
            pair, ids = pairs[at], known[at]
            want, got = (
                decoder.step(Batch((Stretch(each, more, "last"),)))[0] for decoder, each in zip(both, pair, strict=True)
            )
            ids += more
            assert np.abs(got - want).max() < 2e-3 * np.abs(want).max(), f"turn {turn}: {what}"
    assert not group.errors


@pytest.mark.parametrize("name", RECURRENT)
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
        assert greedy(decoder, ids[:40], 6) == greedy(decoder, ids[:40], 6)
    assert not group.errors


@pytest.mark.parametrize("name", RECURRENT)
def test_devices_that_go_and_come_cost_not_a_token(name, directory, tmp_path):
    path = write(INSTANCES[name], directory / f"{name}-text.gguf", sentencepiece())
    with LLM(path, threads=1) as alone:
        plain = alone.complete(PROMPT, **OPTIONS).text
    with clustered(path, [1, 1, 1], tmp_path) as (llm, assembly):
        wanted, lost = llm.complete(PROMPT, **OPTIONS).text, 0
        assert wanted == plain
        for tokens, _ in enumerate(llm.stream(PROMPT, **OPTIONS)):
            if lost < 2 and tokens > 4 + 8 * lost:
                assembly.lose(0, after_calls=3 + 5 * lost)
                lost += 1
        assert lost == 2 and llm.engine.decoder.size == 2
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assembly.come(2.0)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 3


def test_guesses_go_through_a_group_with_states(directory, tmp_path):
    path = write(INSTANCES["qwen35"], directory / "qwen35-guesses.gguf", sentencepiece())
    text = "the cat sat. the cat sat. the cat"
    with LLM(path, threads=1) as plain, clustered(path, [1, 1], tmp_path, draft="lookup") as (llm, _):
        assert llm.complete(text, **OPTIONS).text == plain.complete(text, **OPTIONS).text
