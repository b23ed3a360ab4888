"""Cases in processes of their own with limits, so that one that crashes, hangs or swallows memory is only counted."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from tools.fuzzing.case import Bench, Outcome

MEMORY_BYTES = 2 << 30  # of address space
TIME_S = 25.0
_CASES_OF_A_PROCESS = 100


@dataclass
class _Worker:
    """A forked process that does cases and writes what came of each to a pipe."""

    pid: int
    pipe: int
    todo: list[int]
    began: float
    text: bytes = b""


def run_cases(
    bench: Bench, seeds: Sequence[int], kinds: Sequence[str], *, jobs: int, time_s: float = TIME_S
) -> Iterator[tuple[int, Outcome]]:
    """(seed, outcome) of every case, as they are done. The process must have no threads: it is forked.

    One that hangs or goes over its memory is tried again alone, so that only those count that do it by themselves.
    """
    again: list[int] = []
    for seed, outcome in _run(bench, seeds, kinds, jobs, time_s, _CASES_OF_A_PROCESS):
        if outcome.word in ("hang", "over memory"):
            again.append(seed)
        else:
            yield seed, outcome
    yield from _run(bench, again, kinds, 1, time_s, 1)


def _run(
    bench: Bench, seeds: Sequence[int], kinds: Sequence[str], jobs: int, time_s: float, batch: int
) -> Iterator[tuple[int, Outcome]]:
    batches = [list(seeds[i : i + batch]) for i in range(0, len(seeds), batch)][::-1]
    workers: list[_Worker] = []
    while batches or workers:
        while batches and len(workers) < jobs:
            workers.append(_start(batches.pop(), lambda seed: bench.run(seed, kinds)))
        ready, _, _ = select.select([worker.pipe for worker in workers], [], [], 0.2)
        for worker in list(workers):
            data = os.read(worker.pipe, 1 << 16) if worker.pipe in ready else b""
            worker.text += data
            while b"\n" in worker.text:
                line, _, worker.text = worker.text.partition(b"\n")
                seed, outcome = json.loads(line)
                worker.todo.remove(seed)
                worker.began = time.monotonic()
                yield seed, Outcome(**outcome)
            ended = worker.pipe in ready and not data
            late = not ended and time.monotonic() - worker.began > time_s
            if not (ended or late):
                continue
            workers.remove(worker)
            status = _end(worker)
            if worker.todo:  # the first of these did not come to its end
                seed = worker.todo.pop(0)
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
                yield seed, Outcome("?", "hang") if late else Outcome("?", "crash", how)
                if worker.todo:
                    batches.append(worker.todo)


def _start(seeds: list[int], run: Callable[[int], Outcome]) -> _Worker:
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return _Worker(pid, reader, seeds, time.monotonic())
    try:
        os.close(reader)
        faulthandler.disable()  # what a crash has to say is its signal
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for seed in seeds:
            line = json.dumps([seed, asdict(run(seed))]) + "\n"
            os.write(writer, line.encode()[: 1 << 15])
    finally:
        os._exit(0)
    raise AssertionError("not reached")


def _end(worker: _Worker) -> int:
    os.kill(worker.pid, signal.SIGKILL)
    os.close(worker.pipe)
    return os.waitpid(worker.pid, 0)[1]
