"""The answer to a prompt: logits come in, chunks of text go out."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from time import perf_counter

from edgerun.engine.arguments import checked_cancel
from edgerun.engine.cancel import CancelSignal
from edgerun.engine.chooser import Choice, Chooser
from edgerun.engine.context import F32, Context
from edgerun.engine.drafts import Draft
from edgerun.engine.engine import Engine
from edgerun.engine.params import SamplingParams
from edgerun.engine.parts import TokenizerLike
from edgerun.engine.request import Request
from edgerun.engine.results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from edgerun.engine.shortage import told_as_shortage
from edgerun.engine.stops import StopMatcher
from edgerun.events import PromptProcessed, TokenGenerated, TokensDrafted
from edgerun.models.batch import Want

MakeRoom = Callable[[int], list[int] | None]
"""Tokens answered so far -> a shorter prompt to go on from when the context is full; None: there is none."""


@told_as_shortage("beginning a generation")
def generate(
    engine: Engine,
    context: Context,
    ids: Sequence[int],
    params: SamplingParams,
    cancel: CancelSignal | None = None,
    make_room: MakeRoom | None = None,
    shown: Container[int] = (),
) -> Generator[Chunk, None, None]:
    """Continue `ids` in `context`, reusing the prefix that stands there already.

    At the context's end the answer ends too, unless `make_room` has a shorter prompt: then that and what was answered
    are computed anew, as far as they do not begin alike, and the answer goes on as it would have after these ids.

    shown: control tokens that are part of the text nevertheless.

    The last chunk has the `finish_reason` and the whole `Completion`. Cancellation ends the stream with what
    there is. Closing the iterator stops the generation; `context` then holds what was computed.
    Raises ContextLengthError for a prompt that is too long, UsageError for an empty one, at once.
    """
    engine.check_length(len(ids))
    return engine.scheduler.run(
        Generation(engine, context, ids, engine.with_seed(params), checked_cancel(cancel), make_room, shown)
    )


class Generation(Request[Chunk]):
    """One answer as it grows: every step's logits choose a token, and tokens become chunks."""

    def __init__(
        self,
        engine: Engine,
        context: Context,
        ids: Sequence[int],
        params: SamplingParams,
        cancel: CancelSignal | None,
        make_room: MakeRoom | None,
        shown: Container[int] = (),
    ) -> None:
        from edgerun.text import StreamDecoder

        super().__init__(context, ids, cancel)
        self._engine, self._params = engine, params
        self._make_room = make_room
        self._n_asked = len(ids)  # tokens of the prompt that the answer began with
        self._tokenizer = engine.tokenizer
        # Rows that pad the output matrix are no tokens.
        self._n_vocab = min(engine.vocab_size, self._tokenizer.vocab_size)
        self._chooser = Chooser(params, self._n_vocab, self._tokenizer.eog_ids, self._tokenizer.suppressed_ids)
        self._stops = StopMatcher(params.stop)
        self._text = StreamDecoder(self._tokenizer, prompt=self.ids, skip_special=True, shown=shown)
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._is_reading = True  # of a prompt the logits are yet to come
        self._reused_now = 0  # tokens of that prompt that were in the cache already
        self._began = 0.0
        self._reused = self._n_read = 0  # tokens of prompts: in the cache already; processed
        self._steps = self._n_drafted = self._n_accepted = 0
        if engine.draft is not None:
            self.drafter = engine.draft(context, self._chooser)
        self._prompt_s = self._decode_s = 0.0
        self._n_sent = 0

    # -- what steps call -----------------------------------------------------------------------------------------

    def begun(self, reused: int) -> None:
        """See `Request`."""
        self._is_reading, self._reused_now, self._began = True, reused, perf_counter()
        if self._n_read == 0:  # of the prompt that the answer began with
            self._reused = reused
        self._n_read += len(self.ids) - reused

    def stretch(self, start: int, most: int) -> tuple[int, Want]:
        """See `Request`."""
        n = min(most, len(self.ids) - start)
        return n, "last" if start + n == len(self.ids) else "none"

    @property
    def most_drafted(self) -> int:
        """See `Request`: as many as may follow, with the token that is chosen after them."""
        most = min(self._engine.most_drafted, self.context.limit - len(self.ids))
        max_tokens = self._params.max_tokens
        return most if max_tokens is None else min(most, max_tokens - self._n_answered - 1)

    def take(self, rows: F32 | None, seconds: float) -> None:
        """See `Request`. Choices are made row by row as long as they are what was guessed."""
        draft, self.draft = self.draft or Draft(()), None
        if rows is None:  # the prompt goes on
            return
        if self._is_reading:
            self._account_prompt()
            seconds = 0.0
        else:
            self._steps += 1
        if not self._may_go_on():
            return
        self._n_drafted += len(draft.ids)
        while self._take_row(rows[draft.accepted], draft, seconds):
            seconds = 0.0
        if draft.ids and self.drafter is not None:
            self.drafter.learn(draft)
            self._engine.events(TokensDrafted(len(draft.ids), draft.accepted))

    def _take_row(self, row: F32, draft: Draft, seconds: float) -> bool:
        """Choose a token by logits (vocab,); whether it was guessed, and another may follow. seconds: that the logits
        took, as far as no other token has them."""
        started = perf_counter()
        with told_as_shortage("choosing a token"):
            choice = self._chooser.next(row[: self._n_vocab], self.ids)
        seconds += perf_counter() - started
        self._decode_s += seconds if self._steps else 0
        if choice.token_id in self._tokenizer.eog_ids:
            self._finish("stop")
            return False
        is_guessed = draft.accepted < len(draft.ids) and draft.ids[draft.accepted] == choice.token_id
        if is_guessed:  # said before anybody can read the token
            draft.accepted += 1
            self._n_accepted += 1
        self._engine.events(TokenGenerated(choice.token_id, seconds))
        self._append(choice)
        return not self.results.is_ended and self._may_go_on() and is_guessed

    def stop(self) -> None:
        """See `Request`."""
        self._finish("cancelled")

    # -- tokens and text -----------------------------------------------------------------------------------------

    @property
    def _n_answered(self) -> int:
        return len(self.ids) - self.n_prompt

    def _account_prompt(self) -> None:
        self._is_reading = False
        seconds = perf_counter() - self._began
        self._prompt_s += seconds
        reused = self._reused_now
        self._engine.events(PromptProcessed(len(self.ids) - reused, reused, seconds))

    def _append(self, choice: Choice) -> None:
        """A token was chosen: say what it says."""
        self.ids.append(choice.token_id)
        if self._params.logprobs is not None:
            self._logprobs.append(_describe(choice, self._tokenizer))
        text = self._stops.push(self._text.push(choice.token_id))
        if self._stops.matched is not None:
            self._end(text, "stop")
            return
        if text:
            self.results.put(self._chunk(text))

    def _may_go_on(self) -> bool:
        """Whether a token may follow `ids` now. If not, none will, or a shorter prompt has to be read first."""
        most = self._params.max_tokens
        if most is not None and self._n_answered >= most:
            self._finish("length")
            return False
        if len(self.ids) >= self.context.limit:
            if not self._shorten():
                self._finish("length")
            return False
        return True

    def _finish(self, reason: FinishReason) -> None:
        """No token follows; what was held back of the text does."""
        text = self._stops.push(self._text.flush())
        if self._stops.matched is None:
            text += self._stops.flush()
        elif reason != "cancelled":
            reason = "stop"
        self._end(text, reason)

    def _shorten(self) -> bool:
        """Go on after a shorter prompt, if there is one: `ids` are that and what was answered."""
        answered = self.ids[self.n_prompt :]
        shorter = None if self._make_room is None else self._make_room(len(answered))
        if shorter is None:
            return False
        self.ids, self.n_prompt = [*shorter, *answered], len(shorter)
        self.has_begun = False
        return True

    def _chunk(self, text: str) -> Chunk:
        start, self._n_sent = self._n_sent, len(self.ids) - self.n_prompt
        logprobs = None if self._params.logprobs is None else tuple(self._logprobs[start : self._n_sent])
        self._pieces.append(text)
        return Chunk(text, tuple(self.ids[self.n_prompt + start :]), None, logprobs)

    def _timings(self) -> Timings:
        drafted, accepted = self._n_drafted, self._n_accepted
        return Timings(self._prompt_s, self._decode_s, self._n_read, self._steps, drafted, accepted)

    def _end(self, text: str, reason: FinishReason) -> None:
        chunk = self._chunk(text)
        generated = tuple(self.ids[self.n_prompt :])
        completion = Completion(
            text="".join(self._pieces),
            token_ids=generated,
            finish_reason=reason,
            usage=Usage(self._n_asked, self._reused, len(generated)),
            timings=self._timings(),
            seed=self._chooser.seed,
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs),
        )
        self.results.put(Chunk(chunk.text, chunk.token_ids, reason, chunk.logprobs, completion))
        self.results.end()


def _describe(choice: Choice, tokenizer: TokenizerLike) -> TokenLogprob:
    assert choice.logprob is not None
    top = tuple(_token(i, p, tokenizer) for i, p in choice.top)
    return _token(choice.token_id, choice.logprob, tokenizer, top)


def _token(token_id: int, logprob: float, tokenizer: TokenizerLike, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TokenLogprob(token_id, raw.decode("utf-8", "replace"), raw, logprob, top)
