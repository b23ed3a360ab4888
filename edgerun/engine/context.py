"""The tokens that a sequence has behind it, with their keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.cancel import FairLock
from edgerun.engine.drafts import Draft
from edgerun.engine.read_ahead import ReadAhead
from edgerun.engine.shortage import told_as_shortage
from edgerun.errors import UsageError
from edgerun.formats.checked_tensors import Form
from edgerun.kv import KvSequence
from edgerun.kv.prefix_tree import LEAST_SHARED
from edgerun.models import Decoder

F32 = NDArray[np.float32]

STEP_TOKENS = 256  # of a prompt in one step, unless the model is so large that others would wait too long


class Context:
    """Token ids and the sequence of pages that holds their keys and values, always of the same length.

    Every change happens under the decoder's lock, so that an error, a cancellation or Ctrl-C at any moment leaves the
    tokens up to the last whole step. What steps call (`enter` to `drop`) is called with the lock held. Where a model's
    windows have let go of what a shorter beginning would see, cutting to it forgets everything: it is computed again;
    and so is what came after the nearest recurrent states that are held.

    is_transient: nobody misses it between requests (`park`).
    reuse_steps: whether positions come out otherwise in a prompt's steps than one by one (on a prompt backend, whose
    arithmetic is not the kernels'; those give the same bits however a prompt is cut). Then steps begin at multiples
    of `step_tokens`, and of what is held only whole ones of a prompt are used again: the same ids give the same
    logits, whatever was held before.
    """

    def __init__(
        self,
        decoder: Decoder,
        lock: FairLock,
        limit: int,
        *,
        step_tokens: int = STEP_TOKENS,
        reuse_steps: bool = False,
        is_transient: bool = False,
        sequence: KvSequence | None = None,
    ) -> None:
        self._decoder = decoder
        self._lock = lock
        self.limit = limit  # positions
        self.is_transient = is_transient
        self._step_tokens = step_tokens
        self._reuse_steps = reuse_steps
        self._stepped = 0  # tokens in whole steps from the beginning on
        self.sequence = decoder.new_cache(limit) if sequence is None else sequence
        self._tokens: list[int] = []
        self.read_ahead: ReadAhead | None = None  # what a model that guesses has read of it
        self._draft: Draft | None = None  # whose guesses the sequence has after the tokens, right or wrong
        self._user = 0
        self._entered = 0  # the last ticket
        self._closed = False

    @property
    def tokens(self) -> Sequence[int]:
        """The ids whose keys and values are there."""
        return tuple(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    # -- for steps, which hold the lock --------------------------------------------------------------------------

    def enter(self) -> int:
        """A ticket for a new user. Every older one is void, for its tokens may be gone."""
        self._check_open()
        self._user += 1
        self._entered = self._user
        return self._user

    def begin(self, ids: Sequence[int], ticket: int, most: int) -> int:
        """Keep the longest common prefix with `ids` (in whole steps, where they matter), or take over a longer one that
        other sequences had, of `most` tokens at most, and return its length.

        Memory for the others is taken before any of them is computed: DoesNotFitError when there is none.
        """
        self.check(ticket)
        n = common_prefix(self._tokens, ids[:most])
        if self._reuse_steps:
            n = min(n, self._stepped) // self._step_tokens * self._step_tokens
        n = self._recalled(ids[:most], self._cut(n))
        self.sequence.mark(n)  # the end of a turn, or of what the last prompt had in common
        self.sequence.mark(most)  # where the same prompt would go on
        self.sequence.spare = False
        if self.read_ahead is not None:
            self.read_ahead.spare = False
        with told_as_shortage("making room for a prompt"):
            self.sequence.reserve(len(ids) - n, self._step_tokens)
        return n

    def is_valid(self, ticket: int | None) -> bool:
        """Whether nobody else has entered since."""
        return ticket == self._user and not self._closed

    def can_lose_pages(self, ticket: int | None) -> bool:
        """Whether the pages are the ticket's, or were and nobody would miss them: between the end of a request and
        `park`, which waits for the step that asks, they are not spare yet."""
        return self.is_valid(ticket) or (ticket == self._entered and (self.is_transient or self._closed))

    def check(self, ticket: int) -> None:
        """UsageError when the ticket is void."""
        self._check_open()
        if ticket != self._user:
            raise UsageError("this generation was overtaken by a later call on the same session; fork() it first")
        self._settle()

    def extend(self, ids: Sequence[int], ticket: int | None, draft: Draft | None = None) -> None:
        """The sequence has these now, and after them guesses. By the next step it must be known which are right. Where
        whoever asked has left meanwhile, it will be cut again (`_settle`)."""
        if ticket != self._user:
            return
        if len(self._tokens) == self._stepped and len(ids) == self._step_tokens:
            self._stepped += len(ids)
        self._tokens.extend(ids)
        if len(ids) >= LEAST_SHARED:  # of a prompt
            self.sequence.remember(self._tokens[: self._stepped] if self._reuse_steps else self._tokens)
        self._draft = draft

    def drop(self) -> None:
        """Forget all tokens and give the memory back; the ticket stays, and `begin` begins anew."""
        self.sequence.release()
        self._settle()

    # -- for whoever has it --------------------------------------------------------------------------------------

    def leave(self) -> Sequence[int]:
        """From now on no step appends to it: every ticket is void. Returns the tokens. Also after the model's end."""
        self._user += 1
        self._lock.now_or_later(self._leave, though_closed=True)
        return self.tokens

    def park(self) -> None:
        """Nobody waits for what comes next: until then, others may have the memory."""
        self._user += 1
        self._lock.now_or_later(self._set_spare, though_closed=True)

    def release(self) -> None:
        """Forget all tokens and give the memory back."""
        self._user += 1
        self._lock.now_or_later(self.drop)

    def close(self) -> None:
        """As `release`, for good: later calls raise UsageError. May be called twice, and after the model's end."""
        self._closed = True
        self._lock.now_or_later(self._close, though_closed=True)

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens, or all of them where the cache cannot go on from there."""
        self._user += 1
        self._lock.now_or_later(partial(self._truncate, n))

    def _leave(self) -> None:
        self._settle()
        if self.read_ahead is not None:
            self.read_ahead.spare = True

    def _close(self) -> None:
        self.read_ahead = None
        self.sequence.release()

    def _set_spare(self) -> None:
        self._leave()
        self.sequence.spare = True

    def _truncate(self, n: int) -> None:
        self._settle()
        self._cut(n)

    @told_as_shortage("copying a sequence")
    def fork(self) -> Context:
        """An independent copy."""
        with self._lock.held():
            self._check_open()
            self._settle()
            twin = Context(
                self._decoder,
                self._lock,
                self.limit,
                step_tokens=self._step_tokens,
                reuse_steps=self._reuse_steps,
                sequence=self.sequence.copy(len(self._tokens)),
            )
            twin._tokens = list(self._tokens)
            twin._stepped = self._stepped
            return twin

    @property
    def stepped(self) -> int:
        """How many of the first tokens came in whole steps of a prompt."""
        return self._stepped

    def saved(self) -> tuple[Mapping[str, Form], Mapping[str, NDArray[Any]]]:
        """The forms and the arrays that the keys and values of `tokens` are written as, not copied: whatever happens to
        the context meanwhile, they stay."""
        with self._lock.held():
            self._check_open()
            forms = self.sequence.saved_forms()
            return forms, {name: self.sequence.saved(name) for name in forms}

    def restore(
        self, tokens: Sequence[int], stepped: int, forms: Mapping[str, Form], read: Callable[[str], NDArray[Any]]
    ) -> None:
        """Hold `tokens`, whose keys and values are read, in place of what is held.

        The decoder is not kept from others while a disk is read. UnsupportedError where `forms` are not those of so
        many tokens here, DoesNotFitError where there is no memory, UsageError where somebody else used the context
        meanwhile, and what `read` raises; then nothing is held."""
        with told_as_shortage("reading a saved session"):
            with self._lock.held():
                user = self.enter()
                self.drop()
                places = self.sequence.make_ready(len(tokens), forms)
            try:
                for name, place in places.items():
                    place[...] = read(name)
                with self._lock.held():
                    if user != self._user:
                        raise UsageError("the session was used while it was read from a file")
                    self.sequence.restored(len(tokens))
                    self._tokens = list(tokens)
                    self._stepped = stepped
            except BaseException:
                if user == self._user:
                    self._lock.now_or_later(self.drop, though_closed=True)
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this session is closed")

    def _settle(self) -> None:
        """What was guessed right happened. After an interruption: what only one of the two knows did not."""
        if self._draft is not None:
            self._tokens.extend(self._draft.ids[: self._draft.accepted])
            self._draft = None
        n = min(len(self._tokens), self.sequence.length)
        if n != len(self._tokens) or n != self.sequence.length or not self.sequence.is_whole:
            self._cut(n)

    def _recalled(self, ids: Sequence[int], n: int) -> int:
        """How many of `ids` are held, of which the first `n` are: more where another sequence began like them."""
        known = ids[: len(ids) // self._step_tokens * self._step_tokens] if self._reuse_steps else ids
        if n >= len(known) or self.sequence.recall(known) <= n:
            return n
        self._tokens = list(ids[: self.sequence.length])
        if self._reuse_steps:
            n = self._cut(len(self._tokens) // self._step_tokens * self._step_tokens)
            self._stepped = n
        return len(self._tokens)

    def _cut(self, n: int) -> int:
        """Keep the first `n` tokens, or as many as the sequence can go on from; returns how many."""
        if n < self.sequence.length or not self.sequence.is_whole:
            n = self.sequence.held_from(n)
            self.sequence.truncate(n)
        del self._tokens[n:]
        self._stepped = min(self._stepped, n // self._step_tokens * self._step_tokens)
        return n


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common from the beginning."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n
