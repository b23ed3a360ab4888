"""Who computes, and when: requests of any threads share the steps of one decoder.

A request that is alone is computed by the thread that reads it, one result at a time, as it is read: nothing is handed
over, and an interrupt of that thread harms nobody else. As soon as another can go on too, a thread of the scheduler
makes steps for all of them and puts results into their mailboxes. A reader that does not read leaves its mailbox full:
then its request is left out, and costs the others nothing but its pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from itertools import count
from queue import Empty, SimpleQueue
from typing import TypeVar

from edgerun.device.forks import call_after_fork
from edgerun.engine.cancel import FairLock
from edgerun.engine.mailbox import End
from edgerun.engine.part import AnyRequest
from edgerun.engine.request import Request
from edgerun.engine.step import StepOptions, Steps
from edgerun.errors import BusyError, UsageError
from edgerun.models import Decoder

T = TypeVar("T")

MOST_REQUESTS = 80  # at a time, those that wait for a place in the steps among them
_POLL_S = 0.05  # a reader that waits looks around so often
_IDLE_S = 0.005  # between two looks at requests none of which has room
_LINGER_S = 2.0  # the thread ends when it was not needed for so long


class Scheduler:
    """Of one decoder. `lock` is held by whoever uses it or changes a sequence of it."""

    def __init__(self, decoder: Decoder, options: StepOptions, *, most_requests: int = MOST_REQUESTS) -> None:
        self.lock = FairLock()
        self._steps = Steps(decoder, self.lock, options)
        self._most_requests = most_requests
        self._arrivals = count(1)
        self._requests: tuple[AnyRequest, ...] = ()  # by arrival; replaced whole
        # Of the above and the two below; nobody waits while holding it. A collection within it may end a stream.
        self._mutex = threading.RLock()
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()
        call_after_fork(self)

    def after_fork(self) -> None:
        """In the child nobody reads other threads' requests, nor knows how far a step was. See `device.forks`."""
        self._mutex = threading.RLock()
        self._thread, self._wake = None, SimpleQueue()
        for request in self._requests:
            if request.thread != threading.get_ident() or request.taker:
                request.taker = None
                request.fail(UsageError("this generation was computed by another thread when the process was forked"))
        self._requests = tuple(request for request in self._requests if not request.is_over)

    def run(self, request: Request[T]) -> Generator[T, None, None]:
        """The results of `request`, as they come; it begins with the first. Closing the generator ends it.

        Raises BusyError when too many wait already, UsageError when the model is closed meanwhile, and what `request`
        fails with."""
        results = self._results(request)
        request.read_by(results)
        return results

    def close(self, release: Callable[[], None]) -> None:
        """End the step that is computed now, call `release`, and refuse every later one (UsageError)."""
        self._steps.is_closing = True  # the thread ends, too
        try:
            self.lock.close(release)
        finally:
            self._fail_all(UsageError("the model was closed"))
            thread = self._thread
            self._wake.put(None)
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    # -- those who read ------------------------------------------------------------------------------------------

    def _results(self, request: Request[T]) -> Generator[T, None, None]:
        self._join(request)
        try:
            while (value := self._next(request)) is not None:
                yield value
        finally:
            self._leave(request)

    def _next(self, request: Request[T]) -> T | None:
        """The next result; None: there is none."""
        request.thread = threading.get_ident()
        mailbox, wait_s = request.results, 0.0
        while True:
            item = mailbox.get(wait_s) if wait_s or not mailbox.is_empty else None
            if isinstance(item, End):
                error, item = item.error, None
                if error is None:
                    return None
                try:
                    raise error
                finally:
                    del error  # its traceback would hold it
            if item is not None:
                return item
            wait_s = _POLL_S
            if self._is_alone(request):
                if request.taker is None and (self._steps.make(self._all, request) or not mailbox.is_empty):
                    wait_s = 0.0
            elif threading.current_thread() is self._thread:  # a caller's function again
                if self._steps.make(self._all):
                    wait_s = 0.0
            elif not self._call_thread():
                self._steps.make(self._all, request)
                wait_s = 0.0

    def _is_alone(self, request: AnyRequest) -> bool:
        """Whether no other request could be part of its next step. One that is being dealt with by this thread cannot:
        a caller's function, which that calls, asks for more."""
        requests = self._requests
        if len(requests) == 1:
            return True
        others, me = [each for each in requests if each is not request], threading.get_ident()
        return not any([each.can_go_on or each.taker not in (None, me) for each in others])

    def _join(self, request: AnyRequest) -> None:
        with self._mutex:
            self._keep(lambda each: not each.is_abandoned)
            if len(self._requests) >= self._most_requests:
                raise BusyError(
                    f"{len(self._requests)} calls are running or waiting for this model already, and no more may; "
                    "try again when some have ended"
                )
            request.arrival = next(self._arrivals)
            self._requests = (*self._requests, request)

    def _leave(self, request: AnyRequest) -> None:
        request.results.end()
        self._steps.left(request)
        if request.context.is_transient:
            request.context.park()  # before nobody knows any more that it has pages
        with self._mutex:
            self._keep(lambda each: each is not request)

    def _all(self) -> tuple[AnyRequest, ...]:
        return self._requests

    def _keep(self, keeps: Callable[[AnyRequest], bool]) -> None:
        kept = tuple(request for request in self._requests if keeps(request))
        self._steps.n_ended += len(self._requests) - len(kept)
        self._requests = kept

    def _fail_all(self, error: BaseException) -> None:
        for request in self._requests:
            request.fail(error)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _call_thread(self) -> bool:
        """Make sure that a thread makes steps. False when the system gives none."""
        with self._mutex:
            if self._thread is not None and self._thread.is_alive():
                if self._wake.empty():
                    self._wake.put(None)
                return True
            thread = threading.Thread(target=self._work, name="edgerun-steps", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
            return True

    def _work(self) -> None:
        while not self._steps.is_closing:
            while self._has_company():
                self._make_for_all()
            self._nudge_all()
            try:
                self._wake.get(timeout=_LINGER_S)
            except Empty:
                with self._mutex:
                    if self._wake.empty():
                        self._thread = None
                        return

    def _nudge_all(self) -> None:
        """Whoever is alone goes on by itself. A function of its own: a thread that sleeps must hold no request."""
        for request in self._requests:
            if request.can_go_on:
                request.results.nudge()

    def _make_for_all(self) -> None:
        """A step; what is no error of a request (the model was closed), is one of all."""
        try:
            if not self._steps.make(self._all):
                time.sleep(_IDLE_S)
        except BaseException as error:  # noqa: BLE001 - there is nobody else to tell
            self._fail_all(error)

    def _has_company(self) -> bool:
        return sum(request.can_go_on for request in self._requests) > 1
