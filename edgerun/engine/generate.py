"""The loop: a prompt goes in, chunks of text come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from edgerun.engine.cancel import CancelSignal
from edgerun.engine.chooser import Choice, Chooser
from edgerun.engine.context import F32, Context
from edgerun.engine.engine import Engine, as_callable
from edgerun.engine.params import SamplingParams
from edgerun.engine.parts import TokenizerLike
from edgerun.engine.results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from edgerun.engine.shortage import told_as_shortage
from edgerun.engine.stops import StopMatcher
from edgerun.errors import Cancelled
from edgerun.events import PromptProcessed, TokenGenerated

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
) -> Iterator[Chunk]:
    """Continue `ids` in `context`, reusing the prefix that stands there already.

    At the context's end the answer ends too, unless `make_room` has a shorter prompt: then that and what was answered
    are computed anew, as far as they do not begin alike, and the answer goes on as it would have after these ids.

    The last chunk has the `finish_reason` and the whole `Completion`. Cancellation ends the stream with what
    there is. Closing the iterator stops the generation; `context` then holds what was computed.
    Raises ContextLengthError for a prompt that is too long, UsageError for an empty one, at once.
    """
    engine.check_length(len(ids))
    return _Run(engine, context, list(ids), engine.with_seed(params), cancel, make_room).chunks()


class _Run:
    """The state of one generation."""

    def __init__(
        self,
        engine: Engine,
        context: Context,
        ids: list[int],
        params: SamplingParams,
        cancel: CancelSignal | None,
        make_room: MakeRoom | None,
    ) -> None:
        self.engine, self.context, self.params = engine, context, params
        self.make_room = make_room
        self.ids, self.n_prompt = ids, len(ids)
        self.n_asked = len(ids)  # tokens of the prompt that the answer began with
        self.tokenizer = engine.tokenizer
        # Rows that pad the output matrix are no tokens.
        self.n_vocab = min(engine.vocab_size, self.tokenizer.vocab_size)
        self.cancelled = as_callable(cancel)
        self.chooser = Chooser(params, self.n_vocab, self.tokenizer.eog_ids)
        self.stops = StopMatcher(params.stop)
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.ticket = 0
        self.reused = self.n_read = 0  # tokens of prompts: in the cache already; processed
        self.steps = 0
        self.prompt_s = self.decode_s = 0.0
        self.n_sent = 0

    def chunks(self) -> Iterator[Chunk]:
        from edgerun.text import StreamDecoder

        decoder = StreamDecoder(self.tokenizer, prompt=self.ids, skip_special=True)
        reason: FinishReason | None = None
        for choice in self._choices():
            if isinstance(choice, str):
                reason = choice
                break
            self.ids.append(choice.token_id)
            if self.params.logprobs is not None:
                self.logprobs.append(_describe(choice, self.tokenizer))
            text = self.stops.push(decoder.push(choice.token_id))
            if self.stops.matched is not None:
                yield self._last(text, "stop")
                return
            if text:
                yield self._chunk(text)
        text = self.stops.push(decoder.flush())
        if self.stops.matched is None:
            text += self.stops.flush()
        elif reason != "cancelled":
            reason = "stop"
        yield self._last(text, reason or "length")

    def _choices(self) -> Iterator[Choice | FinishReason]:
        """Tokens as they are chosen, then why there are no more."""
        events, eog_ids = self.engine.events, self.tokenizer.eog_ids
        most = self.params.max_tokens
        try:
            logits = self._read()
            ready = True  # the logits are those after all of ids
            while most is None or len(self.ids) - self.n_prompt < most:
                if len(self.ids) >= self.context.limit:
                    if not self._shorten():
                        break
                    logits, ready = self._read(), True
                started = perf_counter()
                if not ready:
                    logits = self.context.feed(self.ids[-1:], self.ticket, self.cancelled)
                    self.steps += 1
                elif self.cancelled():
                    raise Cancelled("cancelled")
                with told_as_shortage("choosing a token"):
                    choice = self.chooser.next(logits[0, : self.n_vocab], self.ids)
                seconds = perf_counter() - started  # without what our reader does with the token
                self.decode_s += seconds if self.steps else 0
                if choice.token_id in eog_ids:
                    yield "stop"
                    return
                events(TokenGenerated(choice.token_id, seconds))
                ready = False
                yield choice  # our reader appends it to ids
        except Cancelled:
            yield "cancelled"
            return
        yield "length"

    def _read(self) -> F32:
        """The logits (1, vocab) after `ids`, of which what is in the cache is not computed again."""
        started = perf_counter()
        reused, self.ticket = self.context.begin(self.ids)
        if self.n_read == 0:  # of the prompt that the answer began with
            self.reused = reused
        self.n_read += len(self.ids) - reused
        logits = self.context.feed(self.ids[reused:], self.ticket, self.cancelled)
        seconds = perf_counter() - started
        self.prompt_s += seconds
        self.engine.events(PromptProcessed(len(self.ids) - reused, reused, seconds))
        return logits

    def _shorten(self) -> bool:
        """Go on after a shorter prompt, if there is one: `ids` are that and what was answered."""
        answered = self.ids[self.n_prompt :]
        shorter = None if self.make_room is None else self.make_room(len(answered))
        if shorter is None:
            return False
        self.ids, self.n_prompt = [*shorter, *answered], len(shorter)
        return True

    def _chunk(self, text: str) -> Chunk:
        start, self.n_sent = self.n_sent, len(self.ids) - self.n_prompt
        logprobs = None if self.params.logprobs is None else tuple(self.logprobs[start : self.n_sent])
        self.pieces.append(text)
        return Chunk(text, tuple(self.ids[self.n_prompt + start :]), None, logprobs)

    def _last(self, text: str, reason: FinishReason) -> Chunk:
        chunk = self._chunk(text)
        generated = tuple(self.ids[self.n_prompt :])
        completion = Completion(
            text="".join(self.pieces),
            token_ids=generated,
            finish_reason=reason,
            usage=Usage(self.n_asked, self.reused, len(generated)),
            timings=Timings(self.prompt_s, self.decode_s, self.n_read, self.steps),
            seed=self.chooser.seed,
            logprobs=None if self.params.logprobs is None else tuple(self.logprobs),
        )
        return Chunk(chunk.text, chunk.token_ids, reason, chunk.logprobs, completion)


def _describe(choice: Choice, tokenizer: TokenizerLike) -> TokenLogprob:
    assert choice.logprob is not None
    top = tuple(_token(i, p, tokenizer) for i, p in choice.top)
    return _token(choice.token_id, choice.logprob, tokenizer, top)


def _token(token_id: int, logprob: float, tokenizer: TokenizerLike, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TokenLogprob(token_id, raw.decode("utf-8", "replace"), raw, logprob, top)
