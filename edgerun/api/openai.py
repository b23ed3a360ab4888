"""The calls that OpenAI's and llama-cpp-python's users know, with their arguments, defaults and shapes.

What has no effect here (grammar, mirostat, functions, ...) is no argument: Python's TypeError names it.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.engine import (
    CancelSignal,
    Chunk,
    Completion,
    LogitsProcessor,
    Message,
    SamplingParams,
    TokenLogprob,
)

Json = dict[str, Any]
Processors = LogitsProcessor | Sequence[LogitsProcessor]


class OpenAIMethods(ABC):
    """`create_completion`, `create_chat_completion`, `create_embedding` on top of what an LLM has."""

    name: str

    @abstractmethod
    def stream(
        self, prompt: Any, params: SamplingParams | None = None, *, cancel: CancelSignal | None = None
    ) -> Iterator[Chunk]: ...

    @abstractmethod
    def stream_chat(
        self,
        messages: Any,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Chunk]: ...

    @abstractmethod
    def tokenize(self, text: str) -> list[int]: ...

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str: ...

    @abstractmethod
    def embed(self, texts: str | Iterable[str]) -> NDArray[np.float32]: ...

    def create_completion(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        logits_processor: Processors | None = None,
        logit_bias: Mapping[int, float] | None = None,
        *,
        cancel: CancelSignal | None = None,
    ) -> Json | Iterator[Json]:
        """An OpenAI `text_completion`; with `stream`, an iterator of its chunks.

        max_tokens None or below 1: until the context is full. `model` is the name that stands in the answer.
        Errors as of `LLM.complete`.
        """
        params = SamplingParams(
            max_tokens=_max_tokens(max_tokens),
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            top_k=_top_k(top_k),
            logprobs=logprobs,
            stop=stop or (),
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            seed=_seed(seed),
            processors=_processors(logits_processor),
            logit_bias=logit_bias or {},
        )
        head = _head("cmpl", "text_completion", model or self.name)
        echoed = ""
        if echo:
            echoed = prompt if isinstance(prompt, str) else self.detokenize(prompt)
        chunks = self.stream(prompt, params, cancel=cancel)
        if stream:
            return _completion_chunks(head, chunks, echoed)
        done = _finish(chunks)
        choice = {
            "text": echoed + done.text,
            "index": 0,
            "logprobs": _completion_logprobs(done.logprobs, len(echoed)),
            "finish_reason": _reason(done.finish_reason),
        }
        return {**head, "choices": [choice], "usage": _usage(done)}

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        model: str | None = None,
        logits_processor: Processors | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        *,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
    ) -> Json | Iterator[Json]:
        """An OpenAI `chat.completion`; with `stream`, an iterator of its chunks. `tools` go to the template;
        calls that the model writes stand in the content as it wrote them. Errors as of `LLM.chat`."""
        params = SamplingParams(
            max_tokens=_max_tokens(max_tokens),
            temperature=temperature,
            top_p=top_p,
            top_k=_top_k(top_k),
            min_p=min_p,
            typical_p=typical_p,
            stop=stop or (),
            seed=_seed(seed),
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repeat_penalty=repeat_penalty,
            processors=_processors(logits_processor),
            logit_bias=logit_bias or {},
            logprobs=(top_logprobs or 0) if logprobs else None,
        )
        chunks = self.stream_chat(messages, params, tools=tools, template_variables=template_variables, cancel=cancel)
        if stream:
            return _chat_chunks(_head("chatcmpl", "chat.completion.chunk", model or self.name), chunks)
        head = _head("chatcmpl", "chat.completion", model or self.name)
        done = _finish(chunks)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": done.text},
            "logprobs": _chat_logprobs(done.logprobs),
            "finish_reason": _reason(done.finish_reason),
        }
        return {**head, "choices": [choice], "usage": _usage(done)}

    __call__ = create_completion

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Json:
        """An OpenAI `list` of embeddings, see `LLM.embed`."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors = self.embed(texts)
        n_tokens = sum(len(self.tokenize(text)) for text in texts)
        data = [{"object": "embedding", "embedding": vector.tolist(), "index": i} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return {"object": "list", "data": data, "model": model or self.name, "usage": usage}


def _head(prefix: str, kind: str, model: str) -> Json:
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _completion_chunks(head: Json, chunks: Iterator[Chunk], echoed: str) -> Iterator[Json]:
    offset = len(echoed)
    if echoed:
        yield {**head, "choices": [_completion_choice(echoed, None, None)]}
    for chunk in chunks:
        logprobs = _completion_logprobs(chunk.logprobs, offset)
        offset += sum(len(token.text) for token in chunk.logprobs or ())
        yield {**head, "choices": [_completion_choice(chunk.text, logprobs, _reason(chunk.finish_reason))]}


def _completion_choice(text: str, logprobs: Json | None, reason: str | None) -> Json:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def _chat_chunks(head: Json, chunks: Iterator[Chunk]) -> Iterator[Json]:
    def piece(delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    yield piece({"role": "assistant"})
    for chunk in chunks:
        if chunk.text or chunk.logprobs:
            yield piece({"content": chunk.text}, _chat_logprobs(chunk.logprobs))
        if chunk.finish_reason is not None:
            yield piece({}, None, _reason(chunk.finish_reason))


def _finish(chunks: Iterator[Chunk]) -> Completion:
    from edgerun.engine import last_completion

    return last_completion(chunks)


def _usage(done: Completion) -> Json:
    usage = done.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }


def _reason(reason: str | None) -> str | None:
    return "stop" if reason == "cancelled" else reason  # OpenAI has no word for it


def _completion_logprobs(tokens: Sequence[TokenLogprob] | None, offset: int) -> Json | None:
    if tokens is None:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "text_offset": offsets,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
    }


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> Json | None:
    if tokens is None:
        return None
    content = [{**_one(token), "top_logprobs": [_one(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _one(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def _max_tokens(value: int | None) -> int | None:
    return None if value is None or value <= 0 else value


def _top_k(value: int) -> int:
    return max(0, value)  # both 0 and below mean "all" there


def _seed(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _processors(given: Processors | None) -> tuple[LogitsProcessor, ...]:
    if given is None:
        return ()
    # llama-cpp-python's LogitsProcessorList is a list that can also be called: its items do.
    if isinstance(given, Callable) and not isinstance(given, Sequence):  # type: ignore[arg-type]
        return (given,)
    return tuple(given)  # type: ignore[arg-type]
