"""A decoder with its vocabulary: what all sessions of one model share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgerun.device.forks import call_after_fork
from edgerun.engine.arguments import (
    Messages,
    Prompt,
    checked_cancel,
    checked_ids,
    checked_messages,
    checked_text,
    checked_tools,
    checked_variables,
)
from edgerun.engine.cancel import CancelSignal
from edgerun.engine.chooser import Chooser
from edgerun.engine.context import STEP_TOKENS, Context
from edgerun.engine.drafts import MOST_DRAFTED, Drafter
from edgerun.engine.params import SamplingParams
from edgerun.engine.parts import TemplateLike, TokenizerLike
from edgerun.engine.reading import Reading
from edgerun.engine.replies import Reply
from edgerun.engine.results import Score
from edgerun.engine.sampler import F32, check_finite
from edgerun.engine.scheduler import Scheduler
from edgerun.engine.shortage import told_as_shortage
from edgerun.engine.step import StepOptions
from edgerun.engine.turns import Turns
from edgerun.errors import ContextLengthError, UnsupportedError, UsageError
from edgerun.events import EventSink, ignore, never
from edgerun.models import Decoder
from edgerun.models.batch import Want
from edgerun.weights.identity import ModelIdentity

if TYPE_CHECKING:
    from edgerun.text.replies import ReplyFormat

TPOT_S = 0.25  # unless the caller says how long others may wait
MakeDrafter = Callable[[Context, Chooser], Drafter]
"""A guesser for one request, that has this context, and whose tokens are chosen so."""

_TAIL_TOKENS = 64  # of a prompt, that show whether it ends within reasoning
_SCORE_BYTES = 64 << 20  # of logits at a time


class Engine:
    """One model. Thread-safe: what different threads ask goes through the model together (`scheduler`).

    context: positions that a session has.
    seed: of the sequence of seeds for calls that name none; None: random.
    step_tokens: of prompts that go through the model at once, at most. tpot_s: how long a step may take, as far as that
        depends on how many of them do, in which others have their next token.
    reuse_steps: what a session holds is used again in whole steps only (see `Context`).
    context_shift: whether the oldest turns of a chat that outgrows the context leave (`Turns`), unless its session is
        told otherwise; else it is a ContextLengthError.
    identity: which model it is, for sessions that are saved; None: they cannot be.
    draft: guesses what follows, so that a step may bring several tokens; of one request at most `most_drafted`.
    reply_format: how its replies to chats are taken apart; None: they are nothing but answers.
    plan: how its memory is used (`planning.MemoryPlan`), for those who ask.
    tokenizer: None, with the reason in `no_tokenizer`, for models without: `logits` is all they can do.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TokenizerLike | None,
        *,
        context: int,
        template: TemplateLike | None = None,
        no_tokenizer: str = "the model has no vocabulary",
        no_template: str = "the model has no chat template",
        seed: int | None = None,
        step_tokens: int = STEP_TOKENS,
        tpot_s: float | None = None,
        reuse_steps: bool = False,
        context_shift: bool = False,
        draft: MakeDrafter | None = None,
        most_drafted: int = MOST_DRAFTED,
        identity: Callable[[], ModelIdentity] | None = None,
        reply_format: ReplyFormat | None = None,
        plan: Any = None,
        events: EventSink = ignore,
    ) -> None:
        self.decoder = decoder
        self.context = context
        self.vocab_size = int(decoder.spec.vocab_size)
        self.context_shift = context_shift
        self.draft = draft
        self.most_drafted = most_drafted
        self._identity = identity
        self._reply_format = reply_format
        self.events = events
        self.plan = plan
        self._tokenizer = tokenizer
        self._template = template
        self._no_tokenizer = no_tokenizer
        self._no_template = no_template
        options = StepOptions(step_tokens, reuse_steps, TPOT_S if tpot_s is None else tpot_s)
        self.scheduler = Scheduler(decoder, options)
        self._step_tokens = step_tokens
        self._reuse_steps = reuse_steps
        self._seeds = None if seed is None else np.random.default_rng(seed)
        self._seeds_lock = threading.Lock()
        call_after_fork(self)

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._seeds_lock = threading.Lock()

    def close(self, release: Callable[[], None]) -> None:
        """End the step that is computed now, call `release`, and refuse every later one (UsageError)."""
        self.scheduler.close(release)

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

    @told_as_shortage("making room for a new sequence")
    def new_context(self, *, is_transient: bool = False) -> Context:
        """An empty one; memory is taken as it fills. is_transient: others may have it between requests."""
        return Context(
            self.decoder,
            self.scheduler.lock,
            self.context,
            step_tokens=self._step_tokens,
            reuse_steps=self._reuse_steps,
            is_transient=is_transient,
        )

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which model it is. UnsupportedError where nobody knows, UsageError when the model was closed."""
        if self._identity is None:
            raise UnsupportedError("nothing says which model this is: its sessions cannot be saved")
        with self.scheduler.lock.held():  # its file is not closed meanwhile
            return self._identity()

    @property
    def arithmetic(self) -> str:
        """What keys and values depend on beside the model's file and the ids."""
        steps = f" in steps of {self._step_tokens}" if self._reuse_steps else ""
        return self.decoder.arithmetic + steps

    def new_turns(self) -> Turns:
        """For a chat whose oldest turns may leave."""
        return Turns(self.context, self.events)

    def with_seed(self, params: SamplingParams) -> SamplingParams:
        """`params`, with the next of the model's seeds when they have none and the model was given one."""
        if params.seed is not None or self._seeds is None:
            return params
        with self._seeds_lock:
            return params.with_options({"seed": int(self._seeds.integers(1 << 32))})

    @told_as_shortage("tokenizing a text")
    def encode(self, prompt: Prompt, *, add_special: bool = True, cancel: CancelSignal | None = None) -> list[int]:
        """Text (special tokens in it are recognised) or ids -> ids. UsageError for what is neither.

        ContextLengthError as soon as it is certain that a text does not fit in the context; Cancelled."""
        if isinstance(prompt, str):
            return self._tokens(checked_text("prompt", prompt), add_special, cancel)
        return checked_ids("prompt", prompt, self.vocab_size)

    @told_as_shortage("writing a chat as tokens")
    def encode_chat(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
    ) -> list[int]:
        """Messages -> the ids of the model's chat format, up to where the assistant begins to speak.

        Raises TemplateError, ContextLengthError, Cancelled."""
        given, with_tools, more = checked_messages(messages), checked_tools(tools), checked_variables(variables)
        tokenizer = self.tokenizer
        if self._template is None:
            raise UnsupportedError(f"chat needs a template: {self._no_template}; use complete()")
        last = given[-1].get("content")
        if isinstance(last, str):  # what is to be answered, no template leaves out; most take space off its ends
            tokenizer.check_length(last.strip(), self.context)
        text = self._template.render(given, tools=with_tools, variables=more, cancelled=as_callable(cancel))
        # Many templates write the BOS token themselves; the tokenizer must not add a second one.
        bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        has_bos = bool(bos) and tokenizer.add_bos and text.startswith(bos)
        return self._tokens(text, not has_bos, cancel)

    def new_reply(self, ids: Sequence[int], tools: Sequence[Mapping[str, Any]] | None = None) -> Reply | None:
        """For taking apart what is said to the chat `ids`; None: it is nothing but an answer. tools: that the chat was
        given."""
        from edgerun.text.replies import known_tools

        if self._reply_format is None:
            return None
        prompt = self.tokenizer.decode(ids[-_TAIL_TOKENS:])
        return Reply(self._reply_format.reader(prompt, known_tools(checked_tools(tools) or ())), ids)

    @cached_property
    def reply_marks(self) -> frozenset[int]:
        """Tokens that replies to chats must be seen with to be taken apart, though they may be control tokens."""
        if self._reply_format is None:
            return frozenset()
        found = map(self.tokenizer.token_id, self._reply_format.marks)
        return frozenset(token_id for token_id in found if token_id is not None)

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

    @told_as_shortage("computing the logits of a text")
    def logits(self, ids: Sequence[int], cancel: CancelSignal | None = None) -> F32:
        """Logits (n, vocab) f32 of the token after each of `ids` (n,). EdgerunError when they are not finite."""
        given = checked_ids("ids", ids, self.vocab_size)
        parts = list(self._rows(given, "all", cancel))
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        check_finite(logits)
        return logits

    @told_as_shortage("scoring a text")
    def score(self, prompt: Prompt, cancel: CancelSignal | None = None) -> Score:
        """Log-probabilities of a text's tokens, each after those before it."""
        ids = self.encode(prompt, cancel=cancel)
        self.check_length(len(ids))
        logprobs: list[float] = []
        most_rows = max(32, _SCORE_BYTES // (4 * self.vocab_size))
        for logits in self._rows(ids[:-1], "all", cancel, most_rows) if len(ids) > 1 else ():
            targets = np.array(ids[len(logprobs) + 1 : len(logprobs) + 1 + len(logits)])
            check_finite(logits)
            top = logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(targets)), targets].astype(np.float64) - top[:, 0]
            np.subtract(logits, top, out=logits)
            np.exp(logits, out=logits)
            totals = np.array([row.sum(dtype=np.float64) for row in logits])  # all at once would add in another order
            logprobs.extend((chosen - np.log(totals)).tolist())
        return Score(tuple(ids), tuple(logprobs))

    @told_as_shortage("embedding a text")
    def embed(self, prompt: str, cancel: CancelSignal | None = None) -> NDArray[np.float32]:
        """The mean of the final hidden states over all tokens, scaled to length 1: (d,) f32."""
        ids = self.encode(checked_text("texts", prompt), cancel=cancel)
        total = np.zeros(0)
        for states in self._rows(ids, "hidden", cancel):
            for state in states:  # one by one: the sum must not depend on how the text was cut
                total = total + state if len(total) else state.astype(np.float64)
        mean = total / len(ids)
        check_finite(mean)
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / length if length > 0 else mean, dtype=np.float32)

    def _rows(
        self, ids: Sequence[int], want: Want, cancel: CancelSignal | None, most_rows: int | None = None
    ) -> Iterator[F32]:
        """What is wanted of all positions of a text, some at a time. Raises Cancelled, ContextLengthError."""
        self.check_length(len(ids))
        most = self._step_tokens if most_rows is None else most_rows
        reading = Reading(self.new_context(is_transient=True), ids, checked_cancel(cancel), want, most)
        return self.scheduler.run(reading)


def as_callable(cancel: CancelSignal | None) -> Callable[[], bool]:
    """What decoders ask between layers."""
    checked = checked_cancel(cancel)
    return never if checked is None else checked.is_set
