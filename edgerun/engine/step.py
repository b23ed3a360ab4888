"""One step: which rows of which requests go through the model together, and who gets what comes out.

Those who wait for their next token go first, one row each. What is left of the time that they may take is for prompts,
in turn, so that a long one holds up neither them nor a short one: rows of it in the same pass (Sarathi-Serve), or,
where weights lie in memory, layers of many rows of it between two passes of theirs (`waves.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any

from edgerun.engine.cancel import FairLock
from edgerun.engine.context import F32
from edgerun.engine.drafts import Draft
from edgerun.engine.goodput import Goodput
from edgerun.engine.pace import Pace
from edgerun.engine.part import AnyRequest, Part
from edgerun.engine.shortage import told_as_shortage
from edgerun.engine.waves import Waves
from edgerun.errors import Cancelled, DoesNotFitError, EdgerunError, PagesLostError, UsageError
from edgerun.models import Batch, Decoder


@dataclass(frozen=True)
class StepOptions:
    """step_tokens: of prompts in a step at most. fixed_steps: steps of a prompt begin at multiples of that, and what
    follows a prompt goes one by one (see `Context`). tpot_s: how long a step with others' next tokens in it may take.
    most_at_once: requests that have pages and take part in steps; others wait."""

    step_tokens: int
    fixed_steps: bool = False
    tpot_s: float = 0.25
    most_at_once: int = 16


class Steps:
    """Makes steps, each for the requests that it is given. `clock`: seconds."""

    def __init__(
        self,
        decoder: Decoder,
        lock: FairLock,
        options: StepOptions,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._decoder = decoder
        self._lock = lock
        self._options = options
        self._clock = clock
        self._pace = Pace()
        self._waves = Waves(decoder, options.tpot_s, clock)
        self._goodput = Goodput()
        self._served = 0  # the arrival of the request whose prompt had the last turn
        self.n_ended = 0  # requests so far: there may be room for those whose pages were taken away
        self.is_closing = False  # a step that is being computed shall end

    def make(self, everybody: Callable[[], Sequence[AnyRequest]], only: AnyRequest | None = None) -> bool:
        """One step for those of `everybody` (all that there are, by arrival) that can go on, or for one of them, or
        some layers of one. False when there was nothing to do. What fails, fails in its request: whoever reads it is
        told. Raises UsageError when the model was closed.
        """
        with self._lock.held():
            requests = everybody()  # only now: others may have got pages while this thread waited for the lock
            started = self._clock()
            nexts, prompts = self._asking(requests, requests if only is None else (only,))
            self._waves.keep(prompts)
            riders = self._riders(nexts, prompts, requests)
            parts: Sequence[Part]
            if riders is None:
                parts = self._waves.parts
                rows = self._passed(parts, partial(self._waves.go_on, ends=not nexts))
            else:
                parts = self._chosen(nexts, riders, requests)
                if not parts:
                    return False
                rows = self._computed(parts)
        if rows is not None:
            self._hand_out(parts, rows, started)
        return True

    def left(self, request: AnyRequest) -> None:
        """Nobody reads the request any more: no wave holds its pages from now on, even if no other step is made."""
        if self._waves.has(request):
            self._lock.now_or_later(partial(self._waves.lost, request), though_closed=True)

    # -- who takes part ------------------------------------------------------------------------------------------

    def _asking(
        self, requests: Sequence[AnyRequest], some: Sequence[AnyRequest]
    ) -> tuple[list[AnyRequest], list[AnyRequest]]:
        """Those of `some` that have pages and can go on: who waits for its next token, and who reads a prompt."""
        live = []
        for request in some:
            if not request.can_go_on:
                continue
            if request.is_cancelled():
                _guarded(request, request.stop_or_fail)
            else:
                live.append(request)
        if any([not request.has_begun for request in live]):
            self._begin(live, requests)
        nexts: list[AnyRequest] = []
        prompts: list[AnyRequest] = []
        for request in live:
            if request.has_begun and self._has_ticket(request):
                (nexts if request.n_left == 1 else prompts).append(request)
        return nexts, prompts

    def _chosen(
        self, nexts: Sequence[AnyRequest], prompts: Sequence[AnyRequest], requests: Sequence[AnyRequest]
    ) -> list[Part]:
        """The parts of a step, next tokens first."""
        chosen: dict[AnyRequest, Part] = {}
        for request in nexts:
            if request.has_begun:  # still: pages may have run out
                self._choose(request, 1, chosen, requests)
        if any([request.drafter is not None for request in chosen]):
            self._guess(chosen)
        if prompts:
            budget = self._options.step_tokens
            if chosen:
                budget = self._pace.rows(self._options.tpot_s, sum(part.rows for part in chosen.values()), budget)
            self._choose_prompts(prompts, chosen, requests, budget)
        parts = list(chosen.values())
        if len(parts) > 1:
            parts.sort(key=lambda part: not part.is_next)
        return parts

    def _riders(
        self, nexts: Sequence[AnyRequest], prompts: Sequence[AnyRequest], requests: Sequence[AnyRequest]
    ) -> Sequence[AnyRequest] | None:
        """The prompts that are part of the next step, beside tokens if any; None: some layers of a wave are next."""
        waves = self._waves
        if not (nexts and prompts and self._decoder.can_pause):
            return waves.uncontested(prompts)
        room = self._pace.rows(self._options.tpot_s, len(nexts), self._options.step_tokens)
        riders: Sequence[AnyRequest] | None = waves.riders(prompts, room, self._pace.base_s)
        if riders is None and not waves.parts:
            chosen: dict[AnyRequest, Part] = {}
            self._choose_prompts(prompts, chosen, requests, min(waves.rows, self._options.step_tokens))
            riders = None if waves.start(tuple(chosen.values())) else waves.uncontested(())
        return riders

    def _choose_prompts(
        self,
        prompts: Sequence[AnyRequest],
        chosen: dict[AnyRequest, Part],
        requests: Sequence[AnyRequest],
        budget: int,
    ) -> None:
        """Stretches of prompts of so many rows together, one prompt's or several's."""
        options = self._options
        for request in self._in_turn(prompts):
            if budget <= 0:
                return
            most = self._fixed(request) if options.fixed_steps else budget
            if request.has_begun and self._choose(request, most, chosen, requests):
                self._served = request.arrival
                budget -= budget if options.fixed_steps else len(chosen[request].ids)

    def _guess(self, chosen: dict[AnyRequest, Part]) -> None:
        """Guesses after the next tokens that are chosen, as many as pay. No request loses its pages for them."""
        asked = [(request, request.drafter) for request in chosen if request.drafter is not None]
        outlooks = [
            drafter.outlook(request.ids, request.most_drafted)._replace(
                is_redone=not request.context.sequence.keeps_rows
            )
            for request, drafter in asked
        ]
        if not any([outlook.most for outlook in outlooks]):
            return
        token_s = max(drafter.token_s for _, drafter in asked)
        shares = self._goodput.shares(len(chosen), outlooks, token_s)
        for (request, drafter), outlook, n in zip(asked, outlooks, shares, strict=True):
            if n == 0:
                if outlook.most:
                    drafter.skipped()
                continue
            try:
                guesses = drafter.propose(request.ids, n)
                request.context.sequence.reserve(1 + len(guesses))
            except EdgerunError:  # without guesses it goes on just so
                continue
            except BaseException as error:  # noqa: BLE001 - it belongs to this request, whatever it is
                request.fail(error)
                del chosen[request]
                continue
            if guesses:
                chosen[request] = chosen[request]._replace(draft=Draft(guesses, drafter.kind))

    def _begin(self, live: Sequence[AnyRequest], requests: Sequence[AnyRequest]) -> None:
        """Give those that have no pages yet theirs, in the order of their arrival, as long as there are some."""
        n_begun = sum(request.has_begun and request.can_go_on for request in requests)
        try:
            self._decoder.before_prompt()
        except BaseException as error:  # noqa: BLE001 - those who would begin are told, whatever it is
            for request in live:
                if not request.has_begun:
                    request.fail(error)
            return
        for request in live:
            if request.has_begun:
                continue
            if n_begun >= self._options.most_at_once or not self._may_begin(request, requests):
                return
            try:
                if request.ticket is None:
                    request.ticket = request.context.enter()
                begin = partial(request.context.begin, request.ids, request.ticket, request.most_reused)
                reused = self._with_room(request, requests, begin)
            except _NoRoom:
                request.waits_for = self.n_ended + 1
                return
            except BaseException as error:  # noqa: BLE001 - it belongs to this request, whatever it is
                request.fail(error)
                continue
            request.has_begun = True
            request.begun(reused)
            n_begun += 1

    def _may_begin(self, request: AnyRequest, requests: Sequence[AnyRequest]) -> bool:
        """Not one for which there was no room, before somebody has ended: asking again costs time, and whoever takes
        the last page loses it again. Those that do not go on will not end, but their pages can be had."""
        others = [other for other in requests if other.has_begun and other is not request]
        return self.n_ended >= request.waits_for or not others or not all([other.can_go_on for other in others])

    def _has_ticket(self, request: AnyRequest) -> bool:
        try:
            assert request.ticket is not None
            request.context.check(request.ticket)
        except UsageError as error:
            request.fail(error)
            return False
        return True

    def _in_turn(self, prompts: Sequence[AnyRequest]) -> list[AnyRequest]:
        """Those that arrived after the one that was served last come first."""
        return sorted(prompts, key=lambda request: (request.arrival <= self._served, request.arrival))

    def _fixed(self, request: AnyRequest) -> int:
        """Rows up to where the next step of a prompt begins; one, after the prompt."""
        start, step = len(request.context), self._options.step_tokens
        return 1 if start >= request.n_prompt else min(step - start % step, request.n_prompt - start)

    def _choose(
        self, request: AnyRequest, most: int, chosen: dict[AnyRequest, Part], requests: Sequence[AnyRequest]
    ) -> bool:
        """Make `request` part of the step with at most so many rows, if there are pages for them."""
        start = len(request.context)
        n, want = request.stretch(start, most)
        try:
            self._with_room(request, requests, lambda: request.context.sequence.reserve(n), chosen)
        except _NoRoom:
            return False
        except BaseException as error:  # noqa: BLE001 - it belongs to this request, whatever it is
            request.fail(error)
            return False
        chosen[request] = Part(request, request.ids[start : start + n], want)
        return True

    # -- pages that run out --------------------------------------------------------------------------------------

    def _with_room(
        self,
        request: AnyRequest,
        requests: Sequence[AnyRequest],
        take: Callable[[], Any],
        chosen: dict[AnyRequest, Part] | None = None,
    ) -> Any:
        """`take`, which asks for pages for `request`. Where there are none, others lose theirs: those that do not go on
        first (nobody reads them, they are over, or wait themselves), then the youngest, which may be `request`
        (_NoRoom). One that has not begun waits for those that go on (_NoRoom). DoesNotFitError when no other request
        has any."""
        ledger = self._decoder.pages.ledger
        while True:
            ledger.hurries = True
            try:
                return take()
            except DoesNotFitError:
                ledger.hurries = False
                others = [each for each in requests if each is not request and each.holds_pages]
                idle = [each for each in others if not (each.has_begun and each.can_go_on)]
                if not others:
                    return take()
                if not idle and not request.has_begun:
                    raise _NoRoom from None
                victim = idle[-1] if idle else max(others[-1], request, key=lambda each: each.arrival)
                victim.has_begun = False
                victim.waits_for = self.n_ended + 1
                victim.context.drop()
                if chosen is not None:
                    chosen.pop(victim, None)
                self._waves.lost(victim)
                if victim is request:
                    raise _NoRoom from None
            finally:
                ledger.hurries = False

    # -- the step ------------------------------------------------------------------------------------------------

    def _computed(self, parts: Sequence[Part]) -> list[F32 | None] | None:
        """What each part wanted; None when the step failed, which its requests know."""
        started = self._clock()
        batch = Batch(tuple(part.stretch for part in parts))
        rows = self._passed(parts, lambda cancelled: self._decoder.step(batch, cancelled=cancelled))
        if rows is None:
            return None
        ended = self._clock()
        next_rows = sum(part.rows for part in parts if part.is_next)
        prompt_rows = sum(len(part.ids) for part in parts if not part.is_next)
        self._pace.saw(next_rows, prompt_rows, ended - started)
        if next_rows:
            self._waves.saw_tokens()
        if not prompt_rows:
            self._goodput.saw(next_rows, ended - started)
        return rows

    def _passed(
        self, parts: Sequence[Part], compute: Callable[[Callable[[], bool]], list[F32 | None] | None]
    ) -> list[F32 | None] | None:
        """What `compute`, which is told when to stop, returns; what it computed whole, the contexts have from then on.
        None, too, when it failed, which its requests know."""
        requests = [part.request for part in parts]

        def cancelled() -> bool:
            return self.is_closing or all([request.wants_no_more for request in requests])

        try:
            with told_as_shortage("computing a step"):
                rows = compute(cancelled)
            if rows is None:
                return None
            taker = get_ident()
            for part in parts:
                part.request.context.extend(part.ids, part.request.ticket, part.draft)
                part.request.draft = part.draft
                part.request.taker = taker
        except Cancelled:
            for request in requests:
                if self.is_closing:
                    request.fail(UsageError("the model was closed"))
                else:
                    _guarded(request, request.stop_or_fail)
            return None
        except PagesLostError:
            return None  # contexts find that out, and requests go on from what there is
        except BaseException as error:  # noqa: BLE001 - of a disk, of memory, Ctrl-C: all who were in it are told
            for request in requests:
                request.fail(error)
            return None
        return rows

    def _hand_out(self, parts: Sequence[Part], rows: Sequence[F32 | None], started: float) -> None:
        for part, of_part in zip(parts, rows, strict=True):
            request = part.request
            _guarded(request, partial(request.take, of_part, self._clock() - started))
            request.taker = None


class _NoRoom(Exception):
    """A request has to wait until others have ended."""


def _guarded(request: AnyRequest, act: Callable[[], None]) -> None:
    """What a request does with its results calls the caller's functions: what these raise, its reader gets."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001 - see above
        request.fail(error)
