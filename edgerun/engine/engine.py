"""A decoder with its vocabulary: what all sessions of one model share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.cancel import CancelSignal, FairLock, never
from edgerun.engine.context import STEP_TOKENS, Context
from edgerun.engine.params import SamplingParams
from edgerun.engine.parts import DecoderLike, Message, TemplateLike, TokenizerLike
from edgerun.engine.results import Score
from edgerun.engine.sampler import F32
from edgerun.errors import ContextLengthError, UnsupportedError, UsageError
from edgerun.events import EventSink, ignore
from edgerun.models.chunks import chunks

_SCORE_BYTES = 64 << 20  # of logits at a time

Prompt = str | Sequence[int]
Messages = str | Message | Sequence[Message]


class Engine:
    """One model. Thread-safe: steps of different sessions take turns in the order of asking.

    context: positions that a session has.
    seed: of the sequence of seeds for calls that name none; None: random.
    step_tokens: of a prompt that go through the model at once; then another session has its turn.
    plan: how its memory is used (`planning.MemoryPlan`), for those who ask.
    tokenizer: None, with the reason in `no_tokenizer`, for models without: `logits` is all they can do.
    """

    def __init__(
        self,
        decoder: DecoderLike,
        tokenizer: TokenizerLike | None,
        *,
        context: int,
        template: TemplateLike | None = None,
        no_tokenizer: str = "the model has no vocabulary",
        no_template: str = "the model has no chat template",
        seed: int | None = None,
        step_tokens: int = STEP_TOKENS,
        plan: Any = None,
        events: EventSink = ignore,
    ) -> None:
        self.decoder = decoder
        self.context = context
        self.vocab_size = int(decoder.spec.vocab_size)
        self.events = events
        self.plan = plan
        self._tokenizer = tokenizer
        self._template = template
        self._no_tokenizer = no_tokenizer
        self._no_template = no_template
        self._lock = FairLock()
        self._step_tokens = step_tokens
        self._seeds = None if seed is None else np.random.default_rng(seed)
        self._seeds_lock = threading.Lock()

    def close(self, release: Callable[[], None]) -> None:
        """Wait for the step that is computed now, call `release`, and refuse every later one (UsageError)."""
        self._lock.close(release)

    @property
    def tokenizer(self) -> TokenizerLike:
        """UnsupportedError when the model has none that edgerun knows."""
        if self._tokenizer is None:
            raise UnsupportedError(f"text needs a tokenizer: {self._no_tokenizer}; only logits(ids) works")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given to it."""
        return self._tokenizer is not None

    def new_context(self) -> Context:
        """An empty one; memory is taken as it fills."""
        return Context(self.decoder, self._lock, self.context, step_tokens=self._step_tokens)

    def with_seed(self, params: SamplingParams) -> SamplingParams:
        """`params`, with the next of the model's seeds when they have none and the model was given one."""
        if params.seed is not None or self._seeds is None:
            return params
        with self._seeds_lock:
            return params.with_options({"seed": int(self._seeds.integers(1 << 32))})

    def encode(self, prompt: Prompt, *, add_special: bool = True, cancel: CancelSignal | None = None) -> list[int]:
        """Text (special tokens in it are recognised) or ids -> ids. UsageError for what is neither.

        ContextLengthError as soon as it is certain that a text does not fit in the context; Cancelled."""
        if isinstance(prompt, str):
            return self._tokens(prompt, add_special, cancel)
        try:
            ids = [int(i) for i in prompt]
        except (TypeError, ValueError):
            raise UsageError("a prompt is text or a sequence of token ids") from None
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UsageError(f"token id {i} is not in the vocabulary of {self.vocab_size}")
        return ids

    def encode_chat(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
    ) -> list[int]:
        """Messages -> the ids of the model's chat format, up to where the assistant begins to speak.

        Raises TemplateError, ContextLengthError, Cancelled."""
        tokenizer = self.tokenizer
        if self._template is None:
            raise UnsupportedError(f"chat needs a template: {self._no_template}; use complete()")
        given = as_messages(messages)
        last = given[-1].get("content")
        if isinstance(last, str):  # what is to be answered, no template leaves out; most take space off its ends
            tokenizer.check_length(last.strip(), self.context)
        text = self._template.render(given, tools=tools, variables=variables, cancelled=as_callable(cancel))
        # Many templates write the BOS token themselves; the tokenizer must not add a second one.
        bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        has_bos = bool(bos) and tokenizer.add_bos and text.startswith(bos)
        return self._tokens(text, not has_bos, cancel)

    def _tokens(self, text: str, add_special: bool, cancel: CancelSignal | None) -> list[int]:
        return self.tokenizer.encode(text, add_special=add_special, limit=self.context, cancelled=as_callable(cancel))

    def check_length(self, n_tokens: int) -> None:
        """ContextLengthError when that many do not fit, UsageError when there are none."""
        if n_tokens < 1:
            raise UsageError("the prompt is empty: it needs at least one token")
        if n_tokens > self.context:
            raise ContextLengthError(
                f"the prompt has {n_tokens} tokens, the context {self.context}; "
                "shorten the prompt or load the model with a larger context"
            )

    def logits(self, ids: Sequence[int], cancel: CancelSignal | None = None) -> F32:
        """Logits (n, vocab) f32 of the token after each of `ids` (n,)."""
        ids = self.encode(ids)
        self.check_length(len(ids))
        context = self.new_context()
        _, ticket = context.begin(ids)
        return context.feed(ids, ticket, as_callable(cancel), logits="all")

    def score(self, prompt: Prompt, cancel: CancelSignal | None = None) -> Score:
        """Log-probabilities of a text's tokens, each after those before it."""
        ids = self.encode(prompt, cancel=cancel)
        self.check_length(len(ids))
        context = self.new_context()
        _, ticket = context.begin(ids)
        size = min(self._step_tokens, max(32, _SCORE_BYTES // (4 * self.vocab_size)))
        logprobs: list[float] = []
        for part in chunks(len(ids) - 1, size) if len(ids) > 1 else ():
            targets = np.array(ids[part.start + 1 : part.stop + 1])
            fed = ids[part]
            logits = context.feed(fed, ticket, as_callable(cancel), logits="all")
            top = logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(targets)), targets].astype(np.float64) - top[:, 0]
            np.subtract(logits, top, out=logits)
            totals = np.exp(logits, out=logits).sum(axis=1, dtype=np.float64)
            logprobs.extend((chosen - np.log(totals)).tolist())
        return Score(tuple(ids), tuple(logprobs))

    def embed(self, prompt: Prompt, cancel: CancelSignal | None = None) -> NDArray[np.float32]:
        """The mean of the final hidden states over all tokens, scaled to length 1: (d,) f32."""
        ids = self.encode(prompt, cancel=cancel)
        self.check_length(len(ids))
        parts = self.new_context().hidden(ids, as_callable(cancel))
        mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / len(ids)
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / length if length > 0 else mean, dtype=np.float32)


def as_callable(cancel: CancelSignal | None) -> Callable[[], bool]:
    """What decoders ask between layers."""
    return never if cancel is None else cancel.is_set


def as_messages(messages: Messages) -> list[Message]:
    """A text is the user's one message; each message must have a role. UsageError otherwise."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    given = [messages] if isinstance(messages, Mapping) else list(messages)
    for message in given:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"a chat message is a mapping with a role and content, got {message!r}")
    if not given:
        raise UsageError("a chat needs at least one message")
    return given
