"""The process that renders chat templates, seen from the one that asks: how it is started, asked, watched and ended.

`template_worker` is the program that runs there; `template_process` says what it may take and how long it may do so.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from _thread import start_new_thread
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from edgerun.device.interpreter import find_interpreter
from edgerun.errors import TemplateError, UsageError
from edgerun.text.gate import Gate
from edgerun.text.template_worker import REPLY

_WORKER = Path(__file__).with_name("template_worker.py")
_PATIENCE_S = 2.0  # for a killed process to be gone


class TemplateWorker:
    """A started process and the exchange with it that is under way; `done` opens when that is over.

    Reading and writing happen in a thread: pipes that can be waited for with a time limit do not exist everywhere,
    and ending the process always ends both.
    """

    def __init__(self, process: subprocess.Popen[bytes], python: str) -> None:
        self.process = process
        self.python = python
        self.idle = True  # what was sent is answered: another call cannot get this one's reply
        self.greeted = False
        self.limits_memory = False
        self.broken = ""  # what it did that a worker never does
        self.reply: dict[str, Any] | None = None
        self.done = Gate()
        self.done.open()  # nothing is under way

    def send(self, request: tuple[bytes, ...], most_bytes: int) -> None:
        """Begin to write `request` and to read the reply, of at most `most_bytes`."""
        self.idle, self.reply = False, None
        self.done = done = Gate()
        try:
            start_new_thread(self._exchange, (request, most_bytes, done))
        except RuntimeError:
            done.open()
            raise

    def _exchange(self, request: tuple[bytes, ...], most_bytes: int, done: Gate) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            if not self.greeted:
                greeting = self._receive(self.process.stdout, 1 << 16)
                if greeting is None:
                    return
                if not greeting.get("ready"):
                    self.broken = str(greeting.get("failure"))
                    return
                self.limits_memory = bool(greeting.get("limits_memory"))
                self.greeted = True
            for piece in request:
                _write(self.process.stdin, piece)
            self.reply = self._receive(self.process.stdout, most_bytes)
        except OSError:
            return  # it has ended: there is no reply
        except ValueError as error:
            self.broken = f"its process answered what is no JSON: {error}"
        except MemoryError:
            self.broken = "there is no memory for what it wrote"
        finally:
            done.open()

    def _receive(self, stream: IO[bytes], most_bytes: int) -> dict[str, Any] | None:
        header = _read(stream, REPLY.size)
        if len(header) < REPLY.size:
            return None
        (n_bytes,) = REPLY.unpack(header)
        if n_bytes > most_bytes:
            self.broken = f"its process answered {n_bytes} bytes; the most is {most_bytes}"
            return None
        data = _read(stream, n_bytes)
        if len(data) < n_bytes:
            return None
        reply = json.loads(data.decode("utf-8", "surrogatepass"))
        if not isinstance(reply, dict):
            raise ValueError("it is not an object")
        return reply

    def resident_bytes(self) -> int:
        """What the process takes now; 0 when it is gone."""
        import psutil

        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def is_alive(self) -> bool:
        """Whether the process still runs. (`Popen.poll` would lose its lock in an interrupt.)"""
        import psutil

        try:
            return bool(psutil.Process(self.process.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def end(self) -> None:
        """Kill the process, wait until it is gone, and close the pipes; in a thread, for the same reason."""
        self.idle = False  # nobody may use it from now on
        ended = Gate()
        try:
            start_new_thread(self._end, (ended,))
        except RuntimeError:
            self._end(ended)
        ended.wait(3 * _PATIENCE_S)

    def _end(self, ended: Gate) -> None:
        try:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the system: it goes when that lets it
                self.process.wait(_PATIENCE_S)
            if self.done.wait(_PATIENCE_S):  # else a fork holds the other end of a pipe that is read
                self.close_pipes()
        finally:
            ended.open()

    def close_pipes(self) -> None:
        """Close this process's ends."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was still to be written has nobody to read it
                stream.close()


class WorkerHolder:
    """The worker, if there is one, apart from its `TemplateProcess`, so that it can be ended when that is gone."""

    def __init__(self) -> None:
        self.worker: TemplateWorker | None = None
        self.closed = False
        self._changing = threading.Lock()

    def usable(self) -> TemplateWorker | None:
        """The worker, if it lives and waits for a request. UsageError when closed."""
        with self._changing:
            if self.closed:
                raise UsageError("the model was closed")
            worker = self.worker
            return worker if worker is not None and worker.idle and worker.is_alive() else None

    def replace(
        self, old: TemplateWorker | None, label: str, python: str | None, failed: list[Exception], tried: Gate
    ) -> None:
        """Start a worker in the place of `old`, unless that was done meanwhile (another call, after this one was
        interrupted); why there is none goes into `failed`. Then `tried` opens."""
        try:
            with self._changing:
                if self.closed:
                    raise UsageError("the model was closed")
                if self.worker is old:
                    self._end()
                    self.worker = _started(label, python)
        except (TemplateError, UsageError, MemoryError) as error:
            failed.append(error)
        finally:
            tried.open()

    def end(self) -> None:
        """End the worker."""
        with self._changing:
            self._end()

    def close(self) -> None:
        """End it, and start no other."""
        self.closed = True
        self.end()

    def _end(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None  # not before: an interrupt must not lose it

    def forget(self) -> None:
        """Take over in a fork: close what was inherited; the worker stays the other process's."""
        worker, self.worker = self.worker, None
        self._changing = threading.Lock()
        if worker is not None:
            worker.close_pipes()
            worker.process.returncode = 0  # not ours to wait for


def _started(label: str, python: str | None) -> TemplateWorker:
    options: dict[str, Any] = {"start_new_session": True}  # the terminal's Ctrl-C is not for it
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        python = python or _interpreter()
        command = [python, "-I", "-S", "-X", "utf8", str(_WORKER), *_folders()]
        process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options
        )
        return TemplateWorker(process, python)
    except OSError as error:
        raise TemplateError(
            f"{label} cannot be rendered: templates run in a process of their own, which cannot be started: {error}"
        ) from error


def _write(stream: IO[bytes], data: bytes) -> None:
    """All of it. The pipes are not buffered: a buffer's lock would not survive a fork."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _read(stream: IO[bytes], n_bytes: int) -> bytes:
    """So much, or less at the end."""
    data = bytearray()
    while len(data) < n_bytes and (piece := stream.read(min(n_bytes - len(data), 1 << 20))):
        data += piece
    return bytes(data)


def _interpreter() -> str:
    found = find_interpreter()
    if found is None:
        raise FileNotFoundError(
            f"this program is {sys.executable or 'embedded'}, not Python, and has no Python beside it; "
            "complete() works without a template"
        )
    return found


def _folders() -> list[str]:
    """Where jinja2 and markupsafe are, found without importing them: the process looks nowhere else."""
    folders: list[str] = []
    for name in ("jinja2", "markupsafe"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{name} is not installed")
        folder = str(Path(spec.origin).parents[1])
        if folder not in folders:
            folders.append(folder)
    return folders
