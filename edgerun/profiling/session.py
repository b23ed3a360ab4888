"""Engines that take turns on the same cases, so that a machine that slows down slows them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgerun.events import EventSink, Progress, ignore
from edgerun.models import Decoder
from edgerun.profiling.bench import BenchRun, run_case
from edgerun.profiling.cases import Case
from edgerun.profiling.energy import EnergyMeter
from edgerun.profiling.figures import Ratio, ratio
from edgerun.profiling.noise import Noise, NoiseMeter

_WARM_TOKENS = 32  # of a prompt that only warms up


class BenchEngine(Protocol):
    """Whoever can be measured. name: what the results are called; backend, threads: what computes."""

    name: str
    backend: str
    threads: int

    def run(self, case: Case) -> BenchRun:
        """One repetition. EdgerunError when it cannot."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True)
class Measured:
    """Repetitions of a case by an engine. `noise`: of the session while all engines did theirs."""

    engine: str
    backend: str
    threads: int
    case: Case
    runs: tuple[BenchRun, ...]
    noise: Noise

    @property
    def rates(self) -> list[float]:
        """Tokens/s of the repetitions."""
        return [run.tok_s for run in self.runs]


class DecoderEngine:
    """edgerun in this process, fed with token ids. `ids`: the ids of a text, repeated as needed; None: 0, 1, 2, ..."""

    name = "edgerun"

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
    events: EventSink = ignore,
) -> list[Measured]:
    """Every case by every engine, `repetitions` times in turns, after a short prompt and a token that warm up."""
    found = []
    for number, case in enumerate(cases):
        if warm_up:
            for engine in engines:
                engine.run(Case(min(case.prompt or 1, _WARM_TOKENS), 1))
        noise = NoiseMeter()
        runs: list[list[BenchRun]] = [[] for _ in engines]
        for repetition in range(repetitions):
            events(Progress("bench", number * repetitions + repetition, len(cases) * repetitions, "repetitions"))
            order = range(len(engines)) if repetition % 2 == 0 else reversed(range(len(engines)))
            for index in order:
                runs[index].append(engines[index].run(case))
        for engine, done in zip(engines, runs, strict=True):
            seen = noise.end([run.tok_s for run in done])
            found.append(Measured(engine.name, engine.backend, engine.threads, case, tuple(done), seen))
    events(Progress("bench", len(cases) * repetitions, len(cases) * repetitions, "repetitions"))
    return found


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
