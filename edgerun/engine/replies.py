"""A chat's reply as it comes, taken apart: what of each chunk is reasoning, answer, or calls of functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgerun.engine.results import CallDelta, Chunk, TokenLogprob, ToolCall, assistant_message

if TYPE_CHECKING:
    from edgerun.text.replies import Part, ReplyReader

_ID_CHARS = 9  # letters and digits, as many as Mistral's templates want


class Reply:
    """One reply. reader: of the model's format. prompt_ids: what it answers; calls' ids follow from that and
    from what was written, so that the same seed gives the same ids."""

    def __init__(self, reader: ReplyReader, prompt_ids: Sequence[int]) -> None:
        self._reader = reader
        self._written = hashlib.sha256(repr(list(prompt_ids)).encode())
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._arguments: list[str] = []  # of the last call
        self._token_ids: tuple[int, ...] = ()  # of which nothing was said yet
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._is_over = False

    def take(self, chunk: Chunk) -> Chunk | None:
        """The chunk with its text taken apart; None: nothing can be said of it yet. The last one's completion, too."""
        parts = self._reader.push(chunk.text)
        if chunk.completion is not None:
            parts += self._finish()
        text, reasoning, calls = self._told(parts)
        self._token_ids += chunk.token_ids
        self._logprobs += chunk.logprobs or ()
        if not (text or reasoning or calls or chunk.completion is not None):
            return None
        completion = chunk.completion
        if completion is not None:
            completion = replace(
                completion,
                text="".join(self._texts),
                reasoning="".join(self._thoughts),
                tool_calls=self._all_calls(),
            )
        token_ids, self._token_ids = self._token_ids, ()
        logprobs, self._logprobs = self._logprobs, ()
        return replace(
            chunk,
            text=text,
            token_ids=token_ids,
            logprobs=None if chunk.logprobs is None else logprobs,
            completion=completion,
            reasoning=reasoning,
            tool_calls=tuple(calls),
        )

    def message(self) -> dict[str, Any]:
        """The reply as far as it came, as the assistant's message. Nothing more may come."""
        self._told(self._finish())
        return assistant_message("".join(self._texts), "".join(self._thoughts), self._all_calls())

    def _finish(self) -> list[Part]:
        if self._is_over:
            return []
        self._is_over = True
        return self._reader.finish()

    def _told(self, parts: Sequence[Part]) -> tuple[str, str, list[CallDelta]]:
        """What parts say: text, reasoning, calls."""
        texts, thoughts, calls = [], [], []
        for part in parts:
            self._written.update(part.raw.encode("utf-8", "surrogatepass"))
            match part.kind:
                case "text":
                    texts.append(part.text)
                case "reasoning":
                    thoughts.append(part.text)
                case "call":
                    self._end_call()
                    call = ToolCall(part.call_id or self._new_id(), part.text, "")
                    calls.append(CallDelta(len(self._calls), call.id, call.name, ""))
                    self._calls.append(call)
                case "arguments":
                    self._arguments.append(part.text)
                    calls.append(CallDelta(len(self._calls) - 1, "", "", part.text))
        self._texts += texts
        self._thoughts += thoughts
        return "".join(texts), "".join(thoughts), calls

    def _end_call(self) -> None:
        if self._calls:
            self._calls[-1] = replace(self._calls[-1], arguments="".join(self._arguments))
        self._arguments = []

    def _all_calls(self) -> tuple[ToolCall, ...]:
        if not self._calls:
            return ()
        last = replace(self._calls[-1], arguments="".join(self._arguments))
        return (*self._calls[:-1], last)

    def _new_id(self) -> str:
        self._written.update(len(self._calls).to_bytes(4, "little"))
        return self._written.hexdigest()[:_ID_CHARS]
