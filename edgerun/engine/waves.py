"""Prompts that go through the layers in waves of many rows, and stop between two layers whenever tokens are due.

Rows of a prompt that ride along in the step of others' next tokens (`pace.py`) are few where the processor is slow, and
few rows are dear: each takes longer than it would among a hundred. So where weights lie in memory, layers of a wave and
tokens take turns. What that costs the prompt is the time of the tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from edgerun.engine.context import F32
from edgerun.engine.layer_pace import LayerPace
from edgerun.engine.part import AnyRequest, Part
from edgerun.engine.shortage import told_as_shortage
from edgerun.events import never
from edgerun.models import Batch, Decoder, Wave


class Waves:
    """The wave that is under way, and whose turn it is. tpot_s: as of `StepOptions`; clock: seconds."""

    def __init__(self, decoder: Decoder, tpot_s: float, clock: Callable[[], float]) -> None:
        self._decoder = decoder
        self._tpot_s = tpot_s
        self._clock = clock
        self._pace = LayerPace(clock)
        self._turn: Literal["tokens", "tokens and prompts", "layers"] = "tokens"  # whose the last step was
        self._tokens_s = 0.0  # when there were tokens, by the clock
        self._wave: Wave | None = None
        self.parts: tuple[Part, ...] = ()  # of the wave that is under way

    @property
    def rows(self) -> int:
        """Of prompts, that shall go through the layers together."""
        return self._pace.rows()

    # -- whose turn it is ----------------------------------------------------------------------------------------

    def riders(self, prompts: Sequence[AnyRequest], room: int, base_s: float) -> list[AnyRequest] | None:
        """Where some wait for tokens, which take `base_s`: the prompts that are computed with them now; None: layers
        are next. Prompts that can be read whole in the time that there is, `room` rows, take turns with a wave."""
        before, self._turn = self._turn, "tokens"
        if before == "layers":
            if self._pace.is_due:
                return []
        else:
            short = [each for each in prompts if each.n_left <= room and not self.has(each)]
            if short and (before == "tokens" or len(short) == len(prompts)):
                self._turn = "tokens and prompts"
                return short
            self._pace.wait_until(self._tokens_s, self._tpot_s, base_s)
        self._turn = "layers"
        return None

    def uncontested(self, prompts: Sequence[AnyRequest]) -> Sequence[AnyRequest] | None:
        """The same where nobody waits for tokens, or no layers can be computed."""
        self._turn = "layers" if self.parts else "tokens"
        return None if self.parts else prompts

    def saw_tokens(self) -> None:
        """A step had tokens in it, just now."""
        self._tokens_s = self._clock()

    # -- the wave ------------------------------------------------------------------------------------------------

    def keep(self, prompts: Sequence[AnyRequest]) -> None:
        """A wave is of use as long as all whose rows it has go on, and have their pages."""
        if not all([part.request in prompts for part in self.parts]):
            self._forget()

    def lost(self, request: AnyRequest) -> None:
        """The request's pages were taken away."""
        if self.has(request):
            self._forget()

    def start(self, parts: tuple[Part, ...]) -> bool:
        """Whether a wave of these is under way now; if not, those who would be in it know why."""
        if not parts:
            return False
        try:
            with told_as_shortage("beginning a step"):
                self._wave = self._decoder.start(Batch(tuple(part.stretch for part in parts)))
        except BaseException as error:  # noqa: BLE001 - of memory, Ctrl-C: all who would be in it are told
            for part in parts:
                part.request.fail(error)
            return False
        self.parts = parts
        return True

    def go_on(self, cancelled: Callable[[], bool], *, ends: bool) -> list[F32 | None] | None:
        """Layers until tokens are due, or, when it `ends`, all that are left: then what each part wanted; else None. An
        error or an interrupt in the middle of it makes the wave useless."""
        wave, parts = self._wave, self.parts
        assert wave is not None  # `parts` were asked for first
        self._forget()
        rows = self._decoder.go_on(wave, never if ends else self._pace.pause(wave.task.rows), cancelled=cancelled)
        if rows is None and not any([part.request.is_over for part in parts]):
            self._wave, self.parts = wave, parts
        return rows

    def has(self, request: AnyRequest) -> bool:
        """Whether rows of it are in the wave."""
        return any([part.request is request for part in self.parts])

    def _forget(self) -> None:
        self._wave, self.parts = None, ()
