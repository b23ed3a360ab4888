"""The same call gives the same answer to the last bit, whatever a session holds from before."""

from __future__ import annotations

import random

import pytest

from edgerun import LLM

TEXT = "once upon a time there was little girl named Lily who loved to play in the park with her dog and ball"


@pytest.fixture(scope="module", params=["tales", "tales-draft"])
def llm(request):
    with LLM(request.param, context=512) as opened:
        yield opened


def prompts(count: int) -> list[str]:
    """Texts of 1 to 90 words, so that they end on all sides of blocks and steps."""
    rng = random.Random(count)
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(1, 90))) for _ in range(count)]


def answer(completion):
    """All that must be the same."""
    assert completion.logprobs
    return completion.text, completion.token_ids, completion.logprobs


def test_the_same_call_twice(llm):
    for seed, prompt in enumerate(prompts(20)):
        options = {"max_tokens": 8, "seed": seed, "temperature": 1.0, "logprobs": 2}
        first = llm.complete(prompt, **options)
        second = llm.complete(prompt, **options)
        assert second.usage.reused_tokens == second.usage.prompt_tokens - 1, "it is found in the idle session"
        assert answer(second) == answer(first)


def test_another_call_between(llm):
    options = {"max_tokens": 6, "seed": 3, "temperature": 1.0, "logprobs": 2}
    prompt = prompts(1)[0]
    first = llm.complete(prompt, **options)
    for other in (prompt[:1], prompt[:40] + " ball", prompt[: len(prompt) // 2], prompt + " ball", prompt):
        llm.complete(other, **options)
        assert answer(llm.complete(prompt, **options)) == answer(first)


def test_a_second_turn_equals_a_fresh_session(llm):
    """Its prompt holds an answer that was decoded token by token; the fresh one processes it at once."""
    options = {"max_tokens": 40, "seed": 5, "temperature": 1.0, "logprobs": 2}
    session = llm.session()
    session.chat("Tell me about a cat", **options)
    second = session.chat("And then?", **options)
    assert second.usage.reused_tokens > 20, "the answer is among them"
    prompt = session.ids[: second.usage.prompt_tokens]
    fresh = llm.session().complete(prompt, **options)
    assert fresh.usage.reused_tokens == 0
    assert answer(fresh) == answer(second)
