"""Engines that take turns on the same cases, so that a machine that slows down slows them all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgerun.events import EventSink, Progress, ignore
from edgerun.models import Decoder
from edgerun.planning.rates import MOST_OTHERS
from edgerun.profiling.bench import BenchRun, run_case
from edgerun.profiling.cases import Case
from edgerun.profiling.energy import EnergyMeter
from edgerun.profiling.figures import Ratio, ratio
from edgerun.profiling.noise import MOST_VARIATION, Noise, NoiseMeter, noise_of, variation

_WARM_TOKENS = 32  # of a prompt that only warms up
_MOST_TIMES = 2  # as many repetitions as wanted, where some are noisy


class BenchEngine(Protocol):
    """Whoever can be measured. name: what the results are called; backend, threads: what computes; is_elsewhere: in a
    process that this one did not start, whose work cannot be told from that of others."""

    name: str
    backend: str
    threads: int
    is_elsewhere: bool

    def run(self, case: Case) -> BenchRun:
        """One repetition. EdgerunError when it cannot."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True)
class Measured:
    """Repetitions of a case by an engine. `noise`: of the session while all engines did theirs; rounds: which of the
    session's these are, as others disturbed the rest."""

    engine: str
    backend: str
    threads: int
    case: Case
    runs: tuple[BenchRun, ...]
    noise: Noise
    rounds: tuple[int, ...] = ()

    @property
    def rates(self) -> list[float]:
        """Tokens/s of the repetitions."""
        return [run.tok_s for run in self.runs]


class DecoderEngine:
    """edgerun in this process, fed with token ids. `ids`: the ids of a text, repeated as needed; None: 0, 1, 2, ..."""

    name = "edgerun"
    is_elsewhere = False

    def __init__(
        self,
        decoder: Decoder,
        vocab: int,
        *,
        limit_s: float = 300.0,
        meter: EnergyMeter | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = decoder.kernels.name
        self.threads = decoder.kernels.threads
        self._decoder = decoder
        self._vocab = vocab
        self._limit_s = limit_s
        self._meter = meter
        self.close = close

    def run(self, case: Case) -> BenchRun:
        ids = [i % self._vocab for i in range(case.tokens)]
        return run_case(self._decoder, case, ids, limit_s=self._limit_s, meter=self._meter)


def run_session(
    engines: Sequence[BenchEngine],
    cases: Sequence[Case],
    *,
    repetitions: int,
    warm_up: bool = True,
    between: Callable[[], None] = lambda: None,
    events: EventSink = ignore,
) -> list[Measured]:
    """Every case by every engine, `repetitions` times in turns, after a short prompt and a token that warm up. Where
    others work meanwhile, or repetitions differ much, there are up to as many again, and those count that nobody
    disturbed. between: called before the first turn of a case and after each."""
    found = []
    for number, case in enumerate(cases):
        if warm_up:
            for engine in engines:
                engine.run(Case(min(case.prompt or 1, _WARM_TOKENS), 1))
        between()
        rounds: list[_Round] = []
        while not _are_enough(rounds, repetitions):
            done = number * repetitions + min(len(rounds), repetitions - 1)
            events(Progress("bench", done, len(cases) * repetitions, "repetitions"))
            rounds.append(_round(engines, case, backwards=len(rounds) % 2 == 1))
            between()
        kept = _kept(rounds, repetitions)
        others = statistics.fmean(rounds[each].others_share for each in kept)
        for index, engine in enumerate(engines):
            own = tuple(rounds[each].runs[index] for each in kept)
            seen = noise_of(others, [run.tok_s for run in own])
            found.append(Measured(engine.name, engine.backend, engine.threads, case, own, seen, kept))
    events(Progress("bench", len(cases) * repetitions, len(cases) * repetitions, "repetitions"))
    return found


@dataclass(frozen=True)
class _Round:
    """A run of every engine, and what others took of the processors meanwhile."""

    runs: tuple[BenchRun, ...]
    others_share: float


def _round(engines: Sequence[BenchEngine], case: Case, *, backwards: bool) -> _Round:
    runs: dict[int, BenchRun] = {}
    others = [0.0]
    for index in sorted(range(len(engines)), reverse=backwards):
        noise = NoiseMeter()
        runs[index] = engines[index].run(case)
        if not engines[index].is_elsewhere:
            others.append(noise.others_share)
    return _Round(tuple(runs[index] for index in range(len(engines))), max(others))


def _kept(rounds: Sequence[_Round], wanted: int) -> tuple[int, ...]:
    """Which rounds count: those that nobody disturbed, where there are enough of them."""
    quiet = tuple(index for index, each in enumerate(rounds) if each.others_share <= MOST_OTHERS)
    return quiet if len(quiet) >= wanted else tuple(range(len(rounds)))


def _are_enough(rounds: Sequence[_Round], wanted: int) -> bool:
    if len(rounds) < wanted:
        return False
    kept = _kept(rounds, wanted)
    by_engine = zip(*(rounds[each].runs for each in kept), strict=True)
    varied = max(variation([run.tok_s for run in runs]) or 0.0 for runs in by_engine)
    others = statistics.fmean(rounds[each].others_share for each in kept)
    return len(rounds) >= _MOST_TIMES * wanted or (others <= MOST_OTHERS and varied <= MOST_VARIATION)


def ratios(measured: Sequence[Measured]) -> list[tuple[Case, str, str, Ratio]]:
    """(case, engine, other, rate of the first by the second's): the first engine against every other."""
    found = []
    for case in dict.fromkeys(each.case for each in measured):
        of_case = [each for each in measured if each.case == case]
        for other in of_case[1:]:
            value = ratio(of_case[0].rates, other.rates)
            if value is not None:
                found.append((case, of_case[0].engine, other.engine, value))
    return found
