"""Kernels compiled by several processes: the same code, and whatever happens to a process, the kernel comes, no process
stays and no file is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgerun import paths
from edgerun.device import interpreter
from edgerun.events import Event, Notice
from edgerun.kernels import compile_processes
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.isa import ISAS
from edgerun.kernels.kernel_code import SOURCES, compile_kernel
from edgerun.kernels.object_file import read_symbols

ISA = ISAS["portable"]
NAMES = ("add", "rope", "pool_work", "combine")
JOBS = [Job(name, ISA, f"test_{name}") for name in NAMES]
PRODUCT = Job("matmul_f16", ISA, "test_matmul_f16")  # which looks into the whole instruction set


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "compile_worker" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Processes run this code instead, under the worker's name."""

    def run(code: str) -> None:
        path = tmp_path / "compile_worker.py"
        path.write_text(code)
        monkeypatch.setattr(compile_processes, "_WORKER", path)

    return run


def test_processes_compile_what_this_one_would():
    threads, said = threading.active_count(), []
    done = {job.name: code for job, code in compile_jobs([*JOBS, PRODUCT], 2, said.append)}
    assert not said, "the processes must not leave it to this one"
    assert done.pop("matmul_f16")
    assert set(done) == set(NAMES)
    assert done["add"] == compile_kernel("add", ISA, "test_add")
    for name, code in done.items():
        assert read_symbols(code).defined == {f"test_{name}"}
    assert not children() and threading.active_count() == threads


DEATHS = {
    "at once": "",
    "when asked": "import sys; sys.stdin.readline()",
    "in an answer": "import sys; sys.stdin.readline(); sys.stdout.buffer.write((1000).to_bytes(8, 'little') + b'x')",
    "after nonsense": "import sys; sys.stdin.readline(); print('hello, hello', flush=True); sys.stdin.readline()",
    "after too much": "import sys; sys.stdin.readline(); sys.stdout.buffer.write((1 << 60).to_bytes(8, 'little'))",
    "after less than nothing": "import sys; sys.stdin.readline(); sys.stdout.buffer.write(b'\\xff' * 8)",
    "killed": "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("code", DEATHS.values(), ids=DEATHS)
def test_what_a_dying_process_leaves_is_compiled_here(worker: Callable[[str], None], code: str):
    worker(code)
    events: list[Event] = []
    done = {job.name for job, _ in compile_jobs(JOBS, 2, events.append)}
    assert done == set(NAMES)
    assert [isinstance(event, Notice) and "2 are compiled in this one" in event.text for event in events] == [True]
    assert not children()


def test_one_of_two_may_die(worker: Callable[[str], None], tmp_path: Path):
    """The first process that asks dies with its kernel, the other does the rest."""
    real = Path(compile_processes.__file__).with_name("compile_worker.py")
    worker(
        f"import os, sys\n"
        f"try:\n    os.mkdir({str(tmp_path / 'first')!r})\n"
        f"except FileExistsError:\n    exec(compile(open({str(real)!r}).read(), {str(real)!r}, 'exec'))\n"
        f"else:\n    sys.stdin.readline()\n"
    )
    events: list[Event] = []
    assert {job.name for job, _ in compile_jobs(JOBS, 2, events.append)} == set(NAMES)
    assert len(events) == 1


@pytest.mark.parametrize("where", ["no Python", "no such program", "frozen"])
def test_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch, where: str):
    if where == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        assert interpreter.find_interpreter() is None
    else:
        found = None if where == "no Python" else "/nowhere/python"
        monkeypatch.setattr(compile_processes, "find_interpreter", lambda: found)
    assert {job.name for job, _ in compile_jobs(JOBS[:2], 2)} == {"add", "rope"}


def test_an_interrupt_ends_the_processes(worker: Callable[[str], None]):
    worker("import time; time.sleep(600)")
    threads = threading.active_count()
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(compile_jobs(JOBS, 2))
    timer.join()
    assert not children()
    assert threading.active_count() == threads


def test_processes_end_when_nobody_wants_the_rest():
    ready = compile_jobs(JOBS, 2)
    next(ready)
    assert children()
    ready.close()
    assert not children()


START = """
import sys
from pathlib import Path
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.isa import ISAS
from edgerun.kernels import compile_processes
compile_processes._processes_for = lambda count: 2
def say(event): print(event.done, flush=True)
KernelCache(ISAS["portable"], Path(sys.argv[1]), say).prepare(SOURCES)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_no_process_outlives_its_program_and_no_half_file_stays(tmp_path: Path, how: signal.Signals):
    folder = tmp_path / "kernels"
    program = subprocess.Popen(
        [sys.executable, "-c", START, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert program.stdout is not None
    for line in program.stdout:
        if int(line) >= 2:
            break
    started = psutil.Process(program.pid).children()
    assert len(started) == 2
    program.send_signal(how)
    program.wait(20)
    program.stdout.close()
    deadline = time.monotonic() + 10
    while any(_lives(each) for each in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(each) for each in started)
    assert {path.suffix for path in folder.iterdir()} <= {".kernel"}
    assert len(KernelCache(ISA, folder).missing(SOURCES)) <= len(SOURCES) - 2, "what was done is kept"


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_few_kernels_little_memory_or_one_core_start_no_process(monkeypatch: pytest.MonkeyPatch):
    def of(count: int, *, available_bytes: int = 8 << 30, cores: int = 4) -> int:
        monkeypatch.setattr(compile_processes, "default_threads", lambda: cores)
        limits = compile_processes.memory_limits().__class__(16 << 30, available_bytes, None, None)
        monkeypatch.setattr(compile_processes, "memory_limits", lambda: limits)
        return compile_processes._processes_for(count)

    assert of(17) == 4
    assert of(3) == 0
    assert of(17, cores=1) <= 1
    assert of(17, available_bytes=500 << 20) <= 1
    assert of(100, cores=64) == 8


def test_a_cache_is_filled_by_processes(user_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile_processes, "_processes_for", lambda count: 2)
    folder = paths.cache_dir() / "fresh"
    events: list[Event] = []
    KernelCache(ISA, folder, events.append).prepare(NAMES)
    assert len(list(folder.iterdir())) == len(NAMES)
    assert [getattr(event, "done", None) for event in events] == [0, 1, 2, 3, 4]
