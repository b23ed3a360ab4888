"""A model to talk to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from edgerun.api.drafting import load_with_draft
from edgerun.api.openai import OpenAIMethods
from edgerun.device.forks import call_after_fork
from edgerun.engine import (
    CancelSignal,
    Chunk,
    Completion,
    Engine,
    Message,
    Messages,
    PlainPrompt,
    Prompt,
    SamplingOptions,
    SamplingParams,
    Score,
    Session,
    last_completion,
    merge,
)
from edgerun.engine.arguments import checked_cancel, checked_ids, checked_messages, checked_text
from edgerun.engine.replies import Reply
from edgerun.errors import UsageError
from edgerun.options import Flag, LoadKeywords, load_options, refused

_FLAG = Flag()


class LLM(OpenAIMethods):
    """A loaded model. Thread-safe: what several threads ask goes through the model together.

        with LLM("model.gguf") as llm:
            llm.complete("Once upon a time", max_tokens=50, temperature=0).text
            for chunk in llm.stream([{"role": "user", "content": "Hello"}]):
                print(chunk.text, end="")

    model: path of a GGUF file, or a name that the hub knows, `org/repo:quant`: downloaded if it is not here.
    context: tokens that prompt and answer may have together; None: what the model was trained for, at most
    4096.
        The plan sets this many aside for sessions; they take the memory as they fill.
    memory: what the whole process may take, in bytes or as "2G"; "auto": what is there. A model that is larger
        is streamed from its file as it is needed; the results are the same. prefetch: whether weights are
        fetched before they are surely needed.
    kv: how keys and values of sessions are kept: "f16", or in half ("q8_0") or about a quarter ("q4_0") of the memory;
        "q8_0/q4_0": keys and values apart.
    window: layers see so many of the last tokens at most, and the first `sinks`: texts and chats go on for ever, in
        memory that does not grow. None: they see all, as many as the context holds.
    threads: of the kernels; "auto": the physical cores. kernels: "auto" or the name of one implementation.
    prefill: what computes a prompt's dense products: "kernels", a backend as "ort-cpu:w7a8" or "openvino-npu", or
        "auto", what `edgerun calibrate` found best for this model here (the kernels where it was not asked).
    tpot_s: while others wait for their next token, so much of a prompt is processed in between that they get it after
        this long (a token that takes as long by itself: after twice that). None: a quarter of a second. On a `prefill`
        backend, whose steps are of one length, it needs `edgerun calibrate`.
    seed: makes calls that name no seed of their own reproducible, as a sequence.
    context_shift: a chat that outgrows the context goes on without its oldest turns (the event `TurnsLeft` says so), in
        place of a ContextLengthError. System messages and the turn that is answered stay; texts are not shortened.
    draft: who guesses what comes next, so that one pass over the weights brings several tokens: "lookup" (what followed
        the same words before, in prompt and answer), or a small model with the same vocabulary, as `model` names one.
        The answers are the same; how much is guessed follows from what pays (docs/library.md).
    replies: "auto" takes chats' replies apart as the model's template has them, so that reasoning and calls of
        functions stand apart from the answer; "plain": what the model writes is the answer.
    power_limit: watts to stay within, as `power_meter` counts them ("auto", or a name that `edgerun bench --energy`
        has); battery_saver: compute half of the time while a battery discharges; max_celsius: stay below this
        temperature. The threads rest after each step for as long as it takes.
    events: called with `edgerun.events` while loading and generating.

    Raises NotFoundError, FormatError, UnsupportedError, DoesNotFitError (memory), UsageError (options).
    """

    def __init__(self, model: str | Path, **options: Unpack[LoadKeywords]) -> None:
        engine, path, release = load_with_draft(model, load_options(options))
        self._setup(engine, path.stem, release)

    @classmethod
    def from_engine(cls, engine: Engine, *, name: str = "model", release: Callable[[], None] | None = None) -> Self:
        """An LLM over an engine that was put together elsewhere; `release` is called at `close`."""
        llm = cls.__new__(cls)
        llm._setup(engine, name, release or _nothing)
        return llm

    def _setup(self, engine: Engine, name: str, release: Callable[[], None]) -> None:
        self._engine: Engine | None = engine
        self._release = release
        self.name = name
        self._idle: Session | None = None  # the last call's cache: the next one often begins alike
        self._idle_lock = threading.RLock()
        self._turns = engine.new_turns() if engine.context_shift else None
        call_after_fork(self)

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._idle_lock = threading.RLock()

    @property
    def engine(self) -> Engine:
        """What the sessions share. UsageError after `close`."""
        if self._engine is None:
            raise UsageError("this LLM is closed")
        return self._engine

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.engine.context

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.engine.vocab_size

    def complete(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Continue a text (or token ids). Options are the fields of `SamplingParams` and go before `params`.

        ContextLengthError when the prompt is longer than the context. Cancelled calls return what there is,
        with the finish reason "cancelled"; Cancelled is raised while a long prompt is still made into tokens.
        """
        return last_completion(self.stream(prompt, params, cancel=cancel, **options))

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Answer a chat (or one text, as its user). `tools` and `template_variables` (`enable_thinking`, ...)
        go to the model's chat template. The answer is the completion's `text`, apart from `reasoning` and `tool_calls`.
        Errors as of `complete`, and TemplateError."""
        return last_completion(
            self.stream_chat(
                messages,
                params,
                tools=tools,
                template_variables=template_variables,
                cancel=cancel,
                **options,
            )
        )

    def stream(
        self,
        prompt: Prompt | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `complete`, or as `chat` when given messages, in chunks as they come. The last one has the
        `finish_reason` and the `completion`. Closing the iterator stops the generation."""
        messages = _as_chat(prompt)
        if messages is not None:
            return self.stream_chat(messages, params, cancel=cancel, **options)
        ids = self.engine.encode(prompt, cancel=cancel)  # type: ignore[arg-type]
        return self._stream(PlainPrompt(ids), merge(params, options), cancel)

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `chat`, in chunks."""
        merged = merge(params, options)

        def encode(given: Messages) -> list[int]:
            return self.engine.encode_chat(given, tools, template_variables, cancel)

        if self._turns is None:
            prompt = PlainPrompt(encode(messages))
        else:
            prompt = self._turns.prompt(checked_messages(messages), encode, merged.max_tokens)
        return self._stream(prompt, merged, cancel, self.engine.new_reply(prompt.ids, tools))

    def session(self, messages: Messages = (), *, context_shift: bool | None = None) -> Session:
        """A conversation that keeps its KV cache, beginning with these messages (a system prompt, say).
        context_shift: as of the LLM, unless it is given here."""
        return Session(self.engine, messages=messages, context_shift=context_shift)

    def load_session(self, path: str | Path, *, context_shift: bool | None = None) -> Session:
        """A session that was saved (`Session.save`), by this model or, if it is a chat, by any: what cannot be used is
        computed again. Raises as `Session.load`."""
        return Session.load(self.engine, path, context_shift=context_shift)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Text of any length -> ids. add_special: with BOS where the model wants it; parse_special: `<|end|>` is
        one."""
        checked = checked_text("text", text)
        add, parse = (_FLAG.check("add_special", add_special), _FLAG.check("parse_special", parse_special))
        return self.engine.tokenizer.encode(checked, add_special=add, parse_special=parse)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Ids -> text."""
        checked = checked_ids("ids", ids, self.engine.vocab_size)
        return self.engine.tokenizer.decode(checked, skip_special=_FLAG.check("skip_special", skip_special))

    def logits(self, ids: Sequence[int], *, cancel: CancelSignal | None = None) -> NDArray[np.float32]:
        """Logits (n, vocab) f32: row i is for the token after `ids[: i + 1]`. Raises Cancelled."""
        return self.engine.logits(ids, cancel)

    def embed(self, texts: str | Iterable[str], *, cancel: CancelSignal | None = None) -> NDArray[np.float32]:
        """Texts -> (n, d_model) f32: the mean of the final normed hidden states over all tokens of each (BOS
        too where the model has one), scaled to length 1. Raises Cancelled."""
        given = [texts] if isinstance(texts, str) else texts
        if isinstance(given, bytes | Mapping | np.ndarray) or not isinstance(given, Iterable):
            raise refused("texts", "a text or an iterable of texts", texts)
        vectors = [self.engine.embed(text, cancel) for text in given]
        if not vectors:
            raise UsageError("embed needs at least one text")
        return np.stack(vectors)

    def score(self, text: Prompt, *, cancel: CancelSignal | None = None) -> Score:
        """Log-probability of each token of a text after those before it, their sum, and the perplexity."""
        return self.engine.score(text, cancel)

    def close(self) -> None:
        """Free the memory and stop the threads; generations that still run end with UsageError."""
        if self._engine is not None:
            engine, self._engine, self._idle = self._engine, None, None
            engine.close(self._release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self, prompt: PlainPrompt, params: SamplingParams, cancel: CancelSignal | None, reply: Reply | None = None
    ) -> Iterator[Chunk]:
        self.engine.check_length(len(prompt.ids))
        return self._chunks(prompt, params, checked_cancel(cancel), reply)

    def _chunks(
        self, prompt: PlainPrompt, params: SamplingParams, cancel: CancelSignal | None, reply: Reply | None
    ) -> Iterator[Chunk]:
        with self._idle_lock:
            session, self._idle = self._idle, None
        session = session or Session(self.engine, is_transient=True)
        try:
            yield from session.answer(prompt, params, cancel, reply)
        finally:
            session.park()
            with self._idle_lock:
                if self._engine is not None:
                    self._idle = session


def _as_chat(prompt: Any) -> list[Message] | None:
    """The prompt's messages, if it is some."""
    if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
        return list(prompt)
    return None


def _nothing() -> None:
    """Nothing to release."""
