"""Kernels compiled side by side: in processes, since Numba holds a lock of its own and Python's while it works.

What passes between is a line of JSON one way and object code the other; nothing is unpickled. A process is started only
where there is a core and memory for it and enough to do: it needs half a second before its first kernel. Whatever a
process does not deliver, because it cannot be started or has died, is compiled here. Processes end with the generator,
whatever ends that, and by themselves when this process is gone.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.device import default_threads, memory_limits
from edgerun.device.interpreter import find_interpreter
from edgerun.events import EventSink, Notice, ignore
from edgerun.kernels.compile_worker import SIZE
from edgerun.kernels.isa import Isa
from edgerun.kernels.kernel_code import compile_kernel

if TYPE_CHECKING:
    from edgerun.kernels.numba_target import Machine

_WORKER = Path(__file__).with_name("compile_worker.py")
_WORTH = 4  # kernels: with fewer, starting processes takes as long as it saves
_MOST_PROCESSES = 8
_PROCESS_BYTES = 320 << 20  # of memory, each with room: 200 MB were seen
_MOST_CODE_BYTES = 4 << 20
_SLOWEST = ("attention_", "matmul_")  # begun first, so that no process is left with one at the end
_LOOK_S = 0.2
_PATIENCE_S = 2.0  # for a killed process to be gone


@dataclass(frozen=True)
class Job:
    """A kernel to compile: under which symbol, for which machine (None: this one)."""

    name: str
    isa: Isa
    symbol: str
    machine: Machine | None = None

    def line(self) -> bytes:
        """As a process reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"


def compile_all(jobs: Sequence[Job], events: EventSink = ignore) -> Generator[tuple[str, bytes], None, None]:
    """(name, object code) of each kernel, in the order in which they are ready, by as many processes as pay."""
    with contextlib.closing(compile_jobs(jobs, _processes_for(len(jobs)), events)) as objects:
        for job, code in objects:
            yield job.name, code


def compile_jobs(
    jobs: Sequence[Job], processes: int, events: EventSink = ignore
) -> Generator[tuple[Job, bytes], None, None]:
    """Each job's object code, by so many processes; with less than two, or none that starts, by this one."""
    ordered = sorted(jobs, key=lambda job: not job.name.startswith(_SLOWEST))
    left, done = deque(ordered), queue.SimpleQueue[tuple[Job | None, bytes | None]]()
    workers: list[_Worker] = []
    try:
        for _ in range(min(processes, len(jobs)) if processes > 1 else 0):
            with contextlib.suppress(OSError):  # no such program, no process to be had
                workers.append(_Worker(left, done))
                workers[-1].start()
        failed: list[Job] = []
        running = sum(worker.thread.ident is not None for worker in workers)
        while running:
            try:
                job, code = done.get(timeout=_LOOK_S)
            except queue.Empty:  # so that an interrupt is seen, wherever the system delivered it
                continue
            if job is None:
                running -= 1
            elif code is None:
                failed.append(job)
            else:
                yield job, code
        if failed:
            events(Notice(f"a process that compiled kernels has failed; {len(failed)} are compiled in this one"))
        for job in (*failed, *left):
            yield job, compile_kernel(job.name, job.isa, job.symbol, job.machine)
    finally:
        left.clear()
        for worker in workers:
            worker.end()


def _processes_for(count: int) -> int:
    """How many are worth starting for so many kernels."""
    if count < _WORTH:
        return 0
    room = memory_limits().available_bytes // _PROCESS_BYTES
    return min(count // 2, default_threads(), room, _MOST_PROCESSES)


class _Worker:
    """A process, and the thread that gives it one job after another."""

    def __init__(self, left: deque[Job], done: queue.SimpleQueue[tuple[Job | None, bytes | None]]) -> None:
        python = find_interpreter()
        if python is None:
            raise FileNotFoundError("this program has no Python beside it")
        options: dict[str, Any] = {"start_new_session": True}  # the terminal's Ctrl-C is not for it
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        self._process = subprocess.Popen(
            [python, "-P", str(_WORKER), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **options,
        )
        self.thread = threading.Thread(target=self._serve, args=(left, done), daemon=True)

    def start(self) -> None:
        """Begin to work. OSError where the system gives no thread."""
        try:
            self.thread.start()
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the system: it goes when that lets it
            self._process.wait(_PATIENCE_S)
        if self.thread.ident is not None:
            self.thread.join(_PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written has nobody to read it
                    stream.close()

    def _serve(self, left: deque[Job], done: queue.SimpleQueue[tuple[Job | None, bytes | None]]) -> None:
        try:
            while True:
                try:
                    job = left.popleft()
                except IndexError:
                    return
                code = self._compile(job)
                done.put((job, code))
                if code is None:
                    return
        finally:
            done.put((None, None))

    def _compile(self, job: Job) -> bytes | None:
        """None when the process has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(job.line())
            stdin.flush()
            header = stdout.read(SIZE.size)
            n_bytes = SIZE.unpack(header)[0] if len(header) == SIZE.size else -1
            if not 0 <= n_bytes <= _MOST_CODE_BYTES:
                return None
            code = stdout.read(n_bytes)
        except (OSError, ValueError):  # the pipe is broken, or was closed here
            return None
        return code if len(code) == n_bytes else None
