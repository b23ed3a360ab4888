"""The calls that OpenAI's and llama-cpp-python's users know, with their arguments, defaults and shapes.

All of them are accepted; what has no meaning here (grammar, mirostat, ...) only where it asks for nothing.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.api.openai_arguments import (
    Processors,
    answer_name,
    chat_logprobs,
    check_format,
    check_user,
    chosen_limit,
    chosen_tools,
    chosen_variables,
    refuse_others,
    sampling_params,
    wants_usage,
)
from edgerun.engine import (
    CallDelta,
    CancelSignal,
    Chunk,
    Completion,
    Message,
    SamplingParams,
    TokenLogprob,
    last_completion,
)
from edgerun.options import Flag, items_of, refused

Json = dict[str, Any]


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
        suffix: None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float | None = 1.0,
        mirostat_mode: int | None = 0,
        mirostat_tau: float | None = 5.0,
        mirostat_eta: float | None = 0.1,
        model: str | None = None,
        stopping_criteria: None = None,
        logits_processor: Processors | None = None,
        grammar: None = None,
        logit_bias: Mapping[Any, float] | None = None,
        *,
        n: int | None = 1,
        best_of: int | None = 1,
        user: str | None = None,
        stream_options: Mapping[str, bool] | None = None,
        cancel: CancelSignal | None = None,
    ) -> Json | Iterator[Json]:
        """An OpenAI `text_completion`; with `stream`, an iterator of its chunks.

        The arguments are llama-cpp-python's, in its order, then OpenAI's. max_tokens None or below 1: until the context
        is full. `model` is the name that stands in the answer. What edgerun has no meaning for (suffix, tfs_z,
        mirostat_*, stopping_criteria, grammar, n, best_of) may stand at its default and is a UsageError else.
        Other errors as of `LLM.complete`.
        """
        refuse_others(
            {
                "suffix": suffix,
                "tfs_z": tfs_z,
                "mirostat_mode": mirostat_mode,
                "mirostat_tau": mirostat_tau,
                "mirostat_eta": mirostat_eta,
                "stopping_criteria": stopping_criteria,
                "grammar": grammar,
                "n": n,
                "best_of": best_of,
            }
        )
        check_user(user)
        streamed = Flag().check("stream", stream)
        with_usage = wants_usage(streamed, stream_options)
        params = sampling_params(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            top_k=top_k,
            logprobs=logprobs,
            stop=stop,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            seed=seed,
            logits_processor=logits_processor,
            logit_bias=logit_bias,
        )
        head = _head("cmpl", "text_completion", answer_name(model, self.name))
        echoed = ""
        if Flag().check("echo", echo):
            echoed = prompt if isinstance(prompt, str) else self.detokenize(prompt)
        chunks = self.stream(prompt, params, cancel=cancel)
        if streamed:
            return _completion_chunks(head, chunks, echoed, with_usage)
        done = last_completion(chunks)
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
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float | None = 1.0,
        mirostat_mode: int | None = 0,
        mirostat_tau: float | None = 5.0,
        mirostat_eta: float | None = 0.1,
        model: str | None = None,
        logits_processor: Processors | None = None,
        grammar: None = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        *,
        max_completion_tokens: int | None = None,
        n: int | None = 1,
        user: str | None = None,
        stream_options: Mapping[str, bool] | None = None,
        reasoning_effort: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
    ) -> Json | Iterator[Json]:
        """An OpenAI `chat.completion`; with `stream`, an iterator of its chunks.

        The arguments are llama-cpp-python's, in its order, then OpenAI's, then our own. `tools` (or `functions`) go to
        the template; calls that the model writes are `tool_calls`, what it thinks beforehand is `reasoning_content`
        (where edgerun knows how it writes them; see `LLM`: replies). What edgerun has no meaning for
        (tfs_z, mirostat_*, grammar, n; a response_format other than text; a tool_choice that obliges the model) may
        stand at its default and is a UsageError else. Other errors as of `LLM.chat`.
        """
        refuse_others(
            {
                "tfs_z": tfs_z,
                "mirostat_mode": mirostat_mode,
                "mirostat_tau": mirostat_tau,
                "mirostat_eta": mirostat_eta,
                "grammar": grammar,
                "n": n,
            }
        )
        check_format(response_format)
        check_user(user)
        streamed = Flag().check("stream", stream)
        with_usage = wants_usage(streamed, stream_options)
        params = sampling_params(
            max_tokens=chosen_limit(max_tokens, max_completion_tokens),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            typical_p=typical_p,
            stop=stop,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repeat_penalty=repeat_penalty,
            logits_processor=logits_processor,
            logit_bias=logit_bias,
            logprobs=chat_logprobs(logprobs, top_logprobs),
        )
        name = answer_name(model, self.name)
        chunks = self.stream_chat(
            messages,
            params,
            tools=chosen_tools(tools, tool_choice, functions, function_call),
            template_variables=chosen_variables(template_variables, reasoning_effort),
            cancel=cancel,
        )
        if streamed:
            return _chat_chunks(_head("chatcmpl", "chat.completion.chunk", name), chunks, with_usage)
        head = _head("chatcmpl", "chat.completion", name)
        done = last_completion(chunks)
        choice = {
            "index": 0,
            "message": _chat_message(done),
            "logprobs": _chat_logprobs(done.logprobs),
            "finish_reason": _chat_reason(done),
        }
        return {**head, "choices": [choice], "usage": _usage(done)}

    __call__ = create_completion

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Json:
        """An OpenAI `list` of embeddings, see `LLM.embed`."""
        texts = [input] if isinstance(input, str) else items_of(input)
        if texts is None:
            raise refused("input", "a text or a list of texts", input)
        name = answer_name(model, self.name)
        vectors = self.embed(texts)
        n_tokens = sum(len(self.tokenize(text)) for text in texts)
        data = [{"object": "embedding", "embedding": vector.tolist(), "index": i} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return {"object": "list", "data": data, "model": name, "usage": usage}


def _head(prefix: str, kind: str, model: str) -> Json:
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _completion_chunks(head: Json, chunks: Iterator[Chunk], echoed: str, with_usage: bool) -> Iterator[Json]:
    offset = len(echoed)
    if echoed:
        yield {**head, "choices": [_completion_choice(echoed, None, None)]}
    for chunk in chunks:
        logprobs = _completion_logprobs(chunk.logprobs, offset)
        offset += sum(len(token.text) for token in chunk.logprobs or ())
        yield {**head, "choices": [_completion_choice(chunk.text, logprobs, _reason(chunk.finish_reason))]}
        if with_usage and chunk.completion is not None:
            yield {**head, "choices": [], "usage": _usage(chunk.completion)}


def _completion_choice(text: str, logprobs: Json | None, reason: str | None) -> Json:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def _chat_chunks(head: Json, chunks: Iterator[Chunk], with_usage: bool) -> Iterator[Json]:
    def piece(delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    yield piece({"role": "assistant"})
    for chunk in chunks:
        logprobs = _chat_logprobs(chunk.logprobs)
        if chunk.reasoning:
            yield piece({"reasoning_content": chunk.reasoning}, None if chunk.text else logprobs)
        if chunk.text or (chunk.logprobs and not chunk.reasoning):
            yield piece({"content": chunk.text}, logprobs)
        if chunk.tool_calls:
            yield piece({"tool_calls": [_call_delta(delta) for delta in chunk.tool_calls]})
        if chunk.completion is not None:
            yield piece({}, None, _chat_reason(chunk.completion))
        if with_usage and chunk.completion is not None:
            yield {**head, "choices": [], "usage": _usage(chunk.completion)}


def _call_delta(delta: CallDelta) -> Json:
    """A piece of a call: the first one has its name."""
    if delta.name:
        function = {"name": delta.name, "arguments": delta.arguments}
        return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
    return {"index": delta.index, "function": {"arguments": delta.arguments}}


def _chat_message(done: Completion) -> Json:
    message = done.message
    return {**message, "content": None} if done.tool_calls and not done.text else message


def _chat_reason(done: Completion) -> str | None:
    reason = _reason(done.finish_reason)
    return "tool_calls" if done.tool_calls and reason == "stop" else reason


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
