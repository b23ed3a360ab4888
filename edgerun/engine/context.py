"""The tokens that a sequence has behind it, with their keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.cancel import FairLock
from edgerun.engine.parts import Cache, DecoderLike
from edgerun.engine.shortage import told_as_shortage
from edgerun.errors import UsageError
from edgerun.events import never
from edgerun.formats.checked_tensors import Form
from edgerun.models.chunks import chunks

F32 = NDArray[np.float32]

STEP_TOKENS = 256  # of a prompt in one step, unless the model is so large that others would wait too long


class Context:
    """Token ids and the cache that holds their keys and values, always of the same length.

    Every change happens under the decoder's lock, so that an error, a cancellation or Ctrl-C at any moment
    leaves the tokens up to the last whole step. Where a model's windows have let go of what a shorter beginning would
    see, cutting to it forgets everything: it is computed again.

    reuse_steps: whether positions come out otherwise in a prompt's steps than one by one (on a prompt backend, whose
    arithmetic is not the kernels'; those give the same bits however a prompt is cut). Then steps begin at multiples
    of `step_tokens`, and of what is held only whole ones of a prompt are used again: the same ids give the same
    logits, whatever was held before.
    """

    def __init__(
        self,
        decoder: DecoderLike,
        lock: FairLock,
        limit: int,
        *,
        step_tokens: int = STEP_TOKENS,
        reuse_steps: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self._decoder = decoder
        self._lock = lock
        self.limit = limit  # positions
        self._step_tokens = step_tokens
        self._reuse_steps = reuse_steps
        self._stepped = 0  # tokens in whole steps from the beginning on
        self._cache: Cache = decoder.new_cache(limit) if cache is None else cache
        self._tokens: list[int] = []
        self._user = 0
        self._closed = False

    @property
    def tokens(self) -> Sequence[int]:
        """The ids whose keys and values are there."""
        return tuple(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def begin(self, ids: Sequence[int]) -> tuple[int, int]:
        """Keep the longest common prefix with `ids` (in whole steps, where they matter), or take over a longer one that
        other sequences had, all but its last token at most (its logits are needed).

        Returns its length and a ticket for `feed`: an older ticket is void, for its tokens may be gone. Memory for
        the others is taken before any of them is computed: DoesNotFitError when there is none.
        """
        with self._lock.held():
            self._check_open()
            self._settle()
            self._user += 1
            n = common_prefix(self._tokens, ids[: len(ids) - 1])
            if self._reuse_steps:
                n = min(n, self._stepped) // self._step_tokens * self._step_tokens
            n = self._recalled(ids[: len(ids) - 1], self._cut(n))
            self._cache.spare = False
            with told_as_shortage("making room for a prompt"):
                self._cache.reserve(len(ids) - n, self._step_tokens)
            return n, self._user

    def park(self) -> None:
        """Nobody waits for what comes next: until then, others may have the memory."""
        self._cache.spare = True

    def release(self) -> None:
        """Forget all tokens and give the memory back."""
        with self._lock.held():
            self._user += 1
            self._cache.release()
            self._settle()

    def close(self) -> None:
        """As `release`, for good: later calls raise UsageError. May be called twice, and after the model's end."""
        with self._lock.held(though_closed=True):
            self._closed = True
            self._cache.release()

    def feed(
        self,
        ids: Sequence[int],
        ticket: int,
        cancelled: Callable[[], bool] = never,
        *,
        logits: Literal["last", "all"] = "last",
    ) -> F32:
        """Append `ids` (at least one) -> logits (1 or n, vocab) f32, the caller's own. Raises Cancelled."""
        parts: list[F32] = []
        for part in chunks(len(ids), self._step_tokens):
            chunk, last = ids[part], part.stop == len(ids)
            with self._lock.held(cancelled):
                self._check(ticket)
                out = self._step(chunk, cancelled, logits if last or logits == "all" else "none")
                if last and len(ids) > 1:
                    self._cache.remember(self._tokens[: self._stepped] if self._reuse_steps else self._tokens)
            if out is not None:
                parts.append(out)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def hidden(self, ids: Sequence[int], cancelled: Callable[[], bool] = never) -> list[F32]:
        """Append `ids` -> final hidden states, (T, d) f32 for each step."""
        parts = []
        for part in chunks(len(ids), self._step_tokens):
            chunk = ids[part]
            with self._lock.held(cancelled):
                self._settle()
                parts.append(self._decoder.hidden(chunk, self._cache, cancelled=cancelled))
                self._tokens.extend(chunk)
        return parts

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens, or all of them where the cache cannot go on from there."""
        with self._lock.held():
            self._settle()
            self._user += 1
            self._cut(n)

    @told_as_shortage("copying a sequence")
    def fork(self) -> Context:
        """An independent copy."""
        with self._lock.held():
            self._check_open()
            self._settle()
            cache = self._cache.copy(len(self._tokens))
            twin = Context(
                self._decoder,
                self._lock,
                self.limit,
                step_tokens=self._step_tokens,
                reuse_steps=self._reuse_steps,
                cache=cache,
            )
            twin._tokens = list(self._tokens)
            twin._stepped = self._stepped
            return twin

    @property
    def stepped(self) -> int:
        """How many of the first tokens came in whole steps of a prompt."""
        return self._stepped

    def saved_forms(self) -> Mapping[str, Form]:
        """The arrays that the keys and values of `tokens` are written as."""
        return self._cache.saved_forms()

    def saved(self, name: str) -> NDArray[Any]:
        """One of them, in its form."""
        return self._cache.saved(name)

    def restore(
        self, tokens: Sequence[int], stepped: int, forms: Mapping[str, Form], read: Callable[[str], NDArray[Any]]
    ) -> None:
        """Hold `tokens`, whose keys and values are read, in place of what is held.

        UnsupportedError where `forms` are not those of so many tokens here, DoesNotFitError where there is no memory,
        and what `read` raises; then nothing is held."""
        with self._lock.held():
            self._check_open()
            self._user += 1
            self._cache.release()
            self._settle()
            with told_as_shortage("reading a saved session"):
                self._cache.restore(len(tokens), forms, read)
            self._tokens = list(tokens)
            self._stepped = stepped

    def _step(
        self, chunk: Sequence[int], cancelled: Callable[[], bool], logits: Literal["last", "all", "none"]
    ) -> F32 | None:
        self._settle()
        with told_as_shortage(f"computing what comes after {len(self._tokens)} tokens"):
            out = self._decoder.forward(chunk, self._cache, logits=logits, cancelled=cancelled)
        if len(self._tokens) == self._stepped and len(chunk) == self._step_tokens:
            self._stepped += len(chunk)
        self._tokens.extend(chunk)
        return out

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this session is closed")

    def _check(self, ticket: int) -> None:
        self._check_open()
        if ticket != self._user:
            raise UsageError("this generation was overtaken by a later call on the same session; fork() it first")

    def _settle(self) -> None:
        """After an interruption: what only one of the two knows did not happen."""
        n = min(len(self._tokens), self._cache.length)
        if n != len(self._tokens) or n != self._cache.length:
            self._cut(n)

    def _recalled(self, ids: Sequence[int], n: int) -> int:
        """How many of `ids` are held, of which the first `n` are: more where another sequence began like them."""
        known = ids[: len(ids) // self._step_tokens * self._step_tokens] if self._reuse_steps else ids
        if n >= len(known) or self._cache.recall(known) <= n:
            return n
        self._tokens = list(ids[: self._cache.length])
        if self._reuse_steps:
            n = self._cut(len(self._tokens) // self._step_tokens * self._step_tokens)
            self._stepped = n
        return len(self._tokens)

    def _cut(self, n: int) -> int:
        """Keep the first `n` tokens, or as many as the cache can go on from; returns how many."""
        if n < self._cache.length:
            n = self._cache.held_from(n)
            self._cache.truncate(n)
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
