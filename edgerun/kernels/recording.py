"""What is recorded, beside launches that are done: a token's experts, which are others each time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edgerun.kernels.interface import F32, I32, NO_VECTORS, Activation, Expert, ExpertVectors
from edgerun.kernels.launch_trace import LaunchTrace
from edgerun.kernels.pages import LayerLayout
from edgerun.kernels.program import I64, Program, Recorder

ON_ITS_WAY, NOWHERE = -1, -2  # in place of an expert's place
ALL, NOT_ALL_WANTED, NOT_ALL = 0, 1, 2  # what was found of a token's experts


@dataclass(frozen=True, eq=False)
class ExpertPlaces:
    """Where a layer's experts lie. places (experts,) int64: the place of each, ON_ITS_WAY or NOWHERE, which may change
    while nothing runs, and from ON_ITS_WAY to a place always. first: the expert at place 0; strides: bytes from place
    to place of its matrices (gate, if it has one, up, down). wanted (1,) int64: of how many guesses of what later
    layers choose it is a reason to stop that they name somebody who is nowhere; -1: stop in any case."""

    places: I64
    first: Expert
    strides: tuple[int, ...]
    wanted: I64


@dataclass(frozen=True, eq=False)
class Guess:
    """Who a later layer will choose: ids (used,) and where that layer's experts lie."""

    ids: I32
    places: I64


@dataclass(frozen=True, eq=False)
class TokenExperts:
    """The experts `ids` (used,) of the row x (1, d): their results into out (used, d), in this order.

    found (1 + used * (1 + guesses),) i32: what was found (ALL, ..), and copies of the ids and of those of the guesses,
    which are of the next layer, the one after, .."""

    where: ExpertPlaces
    ids: I32
    found: I32
    x: F32
    out: F32
    activation: Activation
    guesses: tuple[Guess, ...]
    vectors: ExpertVectors = NO_VECTORS


class Recording(Protocol):
    """Of kernels whose launches can be recorded."""

    def record(self) -> AbstractContextManager[Recorder]:
        """Launches within are done and also noted. One thread at a time, no other users meanwhile."""
        ...

    def run_program(self, program: Program, start: int = 0, end: int | None = None) -> int:
        """Launches start .. end - 1 of what was recorded; returns the end, or after which launch one of them stopped
        it (`abi.FindExperts`)."""
        ...

    def lay_out_experts(self, task: TokenExperts) -> bool:
        """Record it without doing it: a launch that finds the experts, and stops the program where it cannot, then
        those of the products. False, and nothing, where experts like these cannot be recorded."""
        ...

    def lay_out_sum(self, steps: I64, state: I64, numbers: int) -> None:
        """Record a sum over ranks without making it: a launch of these steps, for the rank with this `state`
        (`sum_abi`), of so many numbers. It stops the program where Python must go on."""
        ...

    def trace(self) -> AbstractContextManager[LaunchTrace]:
        """Within, it is noted when each thread worked on each launch. UsageError within another trace,
        UnsupportedError where there is no clock."""
        ...

    def decode_attention_scratch(self, layout: LayerLayout, heads: int, pages: int) -> tuple[int, int]:
        """Of attention for single rows, which have so many pages together: addresses of the threads' slots, of the
        parts of results; until more are asked for."""
        ...
