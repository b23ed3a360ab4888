"""An answer is the same text whoever goes in its middle, and with guesses, of models whose layers keep other things
than a head's keys and values: recurrent states, and one vector of a position."""

from __future__ import annotations

import pytest

from edgerun.api.llm import LLM
from tests.cluster.test_group import clustered
from tests.models.instances import INSTANCES, write
from tests.text.vocabularies import sentencepiece

PROMPT = "the cat sat on the mat and the dog"
OPTIONS = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "granitehybrid", "deepseek2", "deepseek2-before-2025-Q8_0"])
def test_devices_that_go_and_come_cost_not_a_token(name, directory, tmp_path):
    path = write(INSTANCES[name], directory / f"{name}-text.gguf", sentencepiece())
    with LLM(path, threads=1) as alone:
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
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assembly.come(2.0)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 3


@pytest.mark.parametrize("name", ["qwen35", "deepseek2"])
def test_guesses_go_through_a_group(name, directory, tmp_path):
    path = write(INSTANCES[name], directory / f"{name}-guesses.gguf", sentencepiece())
    text = "the cat sat. the cat sat. the cat"
    with LLM(path, threads=1) as plain, clustered(path, [1, 1], tmp_path, draft="lookup") as (llm, _):
        assert llm.complete(text, **OPTIONS).text == plain.complete(text, **OPTIONS).text
