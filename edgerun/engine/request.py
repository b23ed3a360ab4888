"""What a caller wants of the model: token ids that shall go through it, and what is done with what comes out."""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from threading import get_ident
from typing import Generic, TypeVar

from edgerun.engine.cancel import CancelSignal
from edgerun.engine.context import F32, Context
from edgerun.engine.drafts import Draft, Drafter
from edgerun.engine.mailbox import Mailbox
from edgerun.models.batch import Want

T = TypeVar("T")


class Request(ABC, Generic[T]):
    """`ids` shall stand in `context`, from its beginning on; those that do not yet are what is left to compute.

    So nothing is lost when a step fails, and a request whose pages were taken away needs no memory of what it had: its
    ids are computed again. Only the thread that makes steps changes it, and only one does at a time.
    """

    def __init__(self, context: Context, ids: Sequence[int], cancel: CancelSignal | None) -> None:
        self.context = context
        self.ids = list(ids)
        self.n_prompt = len(ids)  # of ids; those that follow were chosen
        self.results: Mailbox[T] = Mailbox()
        self.arrival = 0  # its number: the youngest has the largest
        self.ticket: int | None = None  # see `Context.begin`
        self.has_begun = False  # it has a place in its context, and pages
        self.taker: int | None = None  # the thread that is at what a step computed, outside of the lock
        self.waits_for = 0  # requests that must have ended before it begins again, because its pages were taken away
        self.drafter: Drafter | None = None  # guesses what follows its last id
        self.draft: Draft | None = None  # whose guesses were in the step that is taken now
        self.thread = get_ident()  # that reads
        self._cancel = cancel
        self._stream: weakref.ref[Generator[T, None, None]] | None = None
        self._cancel_error: BaseException | None = None

    # -- what kinds of requests differ in ------------------------------------------------------------------------

    @abstractmethod
    def begun(self, reused: int) -> None:
        """`reused` of its ids are in the context already; the others come next."""

    @abstractmethod
    def stretch(self, start: int, most: int) -> tuple[int, Want]:
        """How many ids from `start` on, at most `most`, go into the next step, and what is wanted of them."""

    @abstractmethod
    def take(self, rows: F32 | None, seconds: float) -> None:
        """What a step of so many seconds computed of its last stretch, and of `draft`. Puts results, and their end when
        it is there."""

    @abstractmethod
    def stop(self) -> None:
        """The caller wants no more: put what is left to say and the end, which may be `Cancelled`."""

    @property
    def most_drafted(self) -> int:
        """Guesses of which all could be of use, if they were right."""
        return 0

    # -- what they have in common --------------------------------------------------------------------------------

    @property
    def most_reused(self) -> int:
        """How many ids need not be computed, if others had them: all but the last, whose logits are needed."""
        return len(self.ids) - 1

    @property
    def n_left(self) -> int:
        """How many ids are yet to be computed."""
        return len(self.ids) - (len(self.context) if self.has_begun else 0)

    @property
    def is_over(self) -> bool:
        """Whether no step has to think of it any more."""
        return self.results.is_ended or self.is_abandoned

    @property
    def wants_no_more(self) -> bool:
        """Whether its reader has left, or the caller cancelled it."""
        return self.results.is_ended or self.is_cancelled()

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody can read it any more, even if an interrupt kept its reader from saying so."""
        stream = None if self._stream is None else self._stream()
        if stream is None:
            return self._stream is not None
        return inspect.getgeneratorstate(stream) == inspect.GEN_CLOSED

    @property
    def can_go_on(self) -> bool:
        """Whether it may be part of a step now: its reader has room for results."""
        return not (self.taker or self.results.is_full or self.is_over)

    @property
    def holds_pages(self) -> bool:
        """Whether its context's pages are its own, and could be taken away; those of one that is over, too, until its
        reader has left."""
        return (self.has_begun or len(self.context) > 0) and not self.taker and self.context.can_lose_pages(self.ticket)

    def read_by(self, stream: Generator[T, None, None]) -> None:
        """Whoever has `stream` gets the results."""
        self._stream = weakref.ref(stream)

    def is_cancelled(self) -> bool:
        """Whether the caller wants no more, or cannot even be asked (`stop_or_fail`)."""
        if self._cancel is None:
            return False
        try:
            return self._cancel.is_set()
        except BaseException as error:  # noqa: BLE001 - whatever a caller's own function raises, that caller gets
            self._cancel_error = error
            return True

    def stop_or_fail(self) -> None:
        """After `is_cancelled`."""
        if self._cancel_error is not None:
            self.fail(self._cancel_error)
            return
        self.stop()

    def fail(self, error: BaseException) -> None:
        """The reader gets `error`."""
        self.results.end(error)
