"""What is asked of a model, and what it said, in a form that is equal only if every bit is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun import LLM
from edgerun.engine import CancelSignal, Completion

PROMPT = "hello world hello or worldly hello"
TURNS = ("hello", "world", "or hello")
IDS = [1, *range(255, 276)]


@dataclass(frozen=True)
class Given:
    """What a caller hands over besides the question: who can stop it and who changes logits."""

    cancel: CancelSignal | None = None
    processors: tuple[Callable[..., Any], ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """As keyword arguments of a generation."""
        return {"cancel": self.cancel, "processors": self.processors}


Answer = tuple[Any, ...]


def said(completion: Completion) -> Answer:
    """Tokens, text and log-probabilities, and why it ended."""
    logprobs = tuple((each.token_id, each.logprob, each.top) for each in completion.logprobs or ())
    return (completion.token_ids, completion.text, logprobs, completion.finish_reason)


def complete(llm: LLM, given: Given) -> Answer:
    return said(
        llm.complete(PROMPT, max_tokens=6, temperature=0.8, seed=3, logprobs=2, ignore_eos=True, **given.options)
    )


def chat(llm: LLM, given: Given) -> Answer:
    messages = [{"role": "user", "content": TURNS[0]}]
    return said(llm.chat(messages, max_tokens=4, temperature=0.7, seed=5, logprobs=1, ignore_eos=True, **given.options))


def session(llm: LLM, given: Given) -> Answer:
    """Three turns, the second taken back and asked again in a copy."""
    talk = llm.session()
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0.6, "logprobs": 1, "ignore_eos": True, **given.options}
    first = said(talk.chat(TURNS[0], seed=1, **options))
    second = said(talk.chat(TURNS[1], seed=2, **options))
    if "cancelled" in (first[-1], second[-1]):
        return (first, second)  # whose turns were not kept
    talk.undo()
    again = said(talk.fork().chat(TURNS[1], seed=2, **options))
    third = said(talk.chat(TURNS[2], seed=3, **options))
    return (first, second, again, third)


def logits(llm: LLM, given: Given) -> Answer:
    return (llm.logits(IDS, cancel=given.cancel).tobytes(),)


def embed(llm: LLM, given: Given) -> Answer:
    return (np.asarray(llm.embed([PROMPT, "or"], cancel=given.cancel)).tobytes(),)


def score(llm: LLM, given: Given) -> Answer:
    result = llm.score(PROMPT, cancel=given.cancel)
    return (result.token_ids, result.logprobs)


QUESTIONS: dict[str, Callable[[LLM, Given], Answer]] = {
    "complete": complete,
    "chat": chat,
    "session": session,
    "logits": logits,
    "embed": embed,
    "score": score,
}
