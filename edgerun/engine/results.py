"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""stop: the model ended or a stop string came; length: max_tokens or the context's end; cancelled."""


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token with its log-probability (natural) and the likeliest alternatives, best first."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts. `reused_tokens` of the prompt were cached already; an end token does not count."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds: for the new part of the prompt, and from the first generated token to the last."""

    prompt_s: float
    decode_s: float
    prompt_tokens: int  # processed, that is without the reused ones
    decode_steps: int  # forward passes after the prompt
    drafted_tokens: int = 0  # guesses that went through the model
    accepted_tokens: int = 0  # of these, the right ones: tokens without a forward pass of their own

    @property
    def prompt_tokens_per_s(self) -> float:
        """0 when nothing was processed."""
        return self.prompt_tokens / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """0 when at most one token was generated."""
        return (self.decode_steps + self.accepted_tokens) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants to be called. `arguments`: JSON as it wrote them, or nearly."""

    id: str
    name: str
    arguments: str

    def as_openai(self) -> dict[str, Any]:
        """As it stands in a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class CallDelta:
    """A piece of the call `index` of a reply: it begins, with `id` and `name`, or its `arguments` go on."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """The whole result. `text` is cut at a stop string, `token_ids` are all but an end token.

    Of a chat, `text` is the answer alone: what the model thought beforehand is its `reasoning`, and the functions that
    it calls are `tool_calls`, where edgerun knows how the model writes them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int  # the one in use: give it again for the same text
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, to be appended to a chat; with `reasoning_content` and `tool_calls` where there is
        something of the kind."""
        return assistant_message(self.text, self.reasoning, self.tool_calls)


def assistant_message(text: str, reasoning: str, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
    """A message as templates and OpenAI have it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [call.as_openai() for call in calls]
    return message


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream: new text and tokens; the last one tells why it ended and has the whole result.

    Of a chat, `text` is the answer's, `reasoning` what the model thinks beforehand, `tool_calls` pieces of calls.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    completion: Completion | None = None
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True)
class Score:
    """How likely a text is: `logprobs[i]` (natural) is that of `token_ids[i + 1]` after those before it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The sum of the log-probabilities."""
        return float(sum(self.logprobs))

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise; 1 for a text without a token to predict."""
        from math import exp

        return exp(-self.total / len(self.logprobs)) if self.logprobs else 1.0
