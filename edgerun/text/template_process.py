"""Where chat templates run: a child process that may take so much memory and time, and is ended beyond that.

A template is a program from a stranger. Counting its steps from within does not bound it: one call of a string's
method, one constant folded while it is compiled, can take gigabytes or hours, and no other thread can stop it. So
the operating system holds the limits, and what goes in and comes out is JSON of bounded length. The process serves
one model, is started in the background and kept, and started again when it has ended for whatever reason.

Where the system does not keep a process to its memory (macOS, Windows), its size is looked at every few
milliseconds instead.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from edgerun.device.forks import call_after_fork
from edgerun.device.interpreter import find_interpreter
from edgerun.errors import Cancelled, TemplateError, UsageError
from edgerun.text.template_worker import REPLY, REQUEST
from edgerun.units import format_size

AT_REST_BYTES = 22 << 20  # of the process, what it shares with others included

_WORKER = Path(__file__).with_name("template_worker.py")
_START_S = 30.0  # a machine that is busy may take long to start Python
_POLL_S = 0.01
_PATIENCE_S = 2.0  # for a killed process to be gone


@dataclass(frozen=True)
class Limits:
    """Of one rendering. Memory and text grow with what is given: a template that copies it a few times is honest.

    `cpu_s` is processor time; `wall_s` what may pass meanwhile on a machine that has other things to do.
    """

    cpu_s: float = 5.0
    wall_s: float = 20.0
    request_bytes: int = 32 << 20
    memory_bytes: int = 48 << 20  # above what the process takes at rest
    memory_per_byte: int = 24  # of the request, also above
    text_chars: int = 4 << 20
    text_per_byte: int = 4

    def memory(self, request_bytes: int) -> int:
        """Bytes that rendering such a request may take."""
        return self.memory_bytes + self.memory_per_byte * request_bytes

    def text(self, request_bytes: int) -> int:
        """Characters that it may write."""
        return self.text_chars + self.text_per_byte * request_bytes


class TemplateProcess:
    """Renders the templates of one model. Thread-safe; renderings take turns.

    Nothing is started before `start` or the first `render`. In a fork of this process it starts a process of its
    own. `python`: the interpreter to run; None: this one. `trust_system`: False to watch the process's memory also
    where the system could limit it.
    """

    def __init__(self, limits: Limits | None = None, *, python: str | None = None, trust_system: bool = True) -> None:
        self.limits = limits or Limits()
        self._python = python
        self._trust_system = trust_system
        self._holder = _Holder()
        self._lock = threading.RLock()
        weakref.finalize(self, _Holder.close, self._holder)
        call_after_fork(self)

    def start(self) -> None:
        """Start the process without waiting for it, so that the first rendering need not. When it cannot be
        started, the first rendering tells why."""
        try:
            self._lock.acquire()
            with contextlib.suppress(TemplateError):
                self._worker("the chat template")
        finally:
            _release(self._lock)

    def render(
        self, label: str, source: str, values: Mapping[str, Any], cancelled: Callable[[], bool] | None = None
    ) -> str:
        """The text that the template `source` makes of `values` (JSON).

        Raises TemplateError, beginning with `label`, when the template cannot be compiled or fails, takes more than
        the limits, or the process cannot be started; Cancelled as soon as `cancelled()`; UsageError after `close`.
        """
        request = self._request(label, source, values)
        try:
            self._take_turn(cancelled)
            reply = self._exchange(label, request, cancelled)
        finally:
            _release(self._lock)
        text = reply.get("text")
        if isinstance(text, str):
            return text
        raise TemplateError(f"{label} {self._failure(reply, len(request))}")

    def close(self) -> None:
        """End the process; a rendering that still runs raises UsageError. May be called twice."""
        self._holder.close()

    def after_fork(self) -> None:
        """See `device.forks`. The worker is the other process's."""
        self._lock = threading.RLock()
        self._holder.forget()

    def _request(self, label: str, source: str, values: Mapping[str, Any]) -> bytes:
        given = {"source": source, "values": values}
        try:
            request = json.dumps(given, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(f"{label} can be given what JSON can hold, and this is not: {error}") from error
        if len(request) > self.limits.request_bytes:
            raise TemplateError(
                f"{label} is given {format_size(len(request))} of messages; "
                f"the most is {format_size(self.limits.request_bytes)}"
            )
        return request

    def _take_turn(self, cancelled: Callable[[], bool] | None) -> None:
        while not self._lock.acquire(timeout=_POLL_S):  # each holder is done within its limits
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled while another chat template was rendered")

    def _worker(self, label: str) -> _Worker:
        """One that waits for a request. Another is started in a thread of its own: an interrupt there, where Python
        would lose a process that it has just started, cannot be."""
        worker = self._holder.usable()
        if worker is not None:
            return worker
        failed: list[Exception] = []
        tried = _Gate()
        try:
            start_new_thread(self._holder.replace, (self._holder.worker, label, self._python, failed, tried))
        except RuntimeError as error:
            raise TemplateError(f"{label} cannot be rendered: {error}") from error
        while not tried.wait(_POLL_S):
            pass  # Python is being started, which takes no longer than the system does
        if failed:
            raise failed[0]
        worker = self._holder.usable()
        if worker is None:
            raise TemplateError(f"{label} cannot be rendered: its process ended as soon as it was started")
        return worker

    def _exchange(self, label: str, request: bytes, cancelled: Callable[[], bool] | None) -> dict[str, Any]:
        """Send a request and wait for its reply; whatever ends that early ends the process too."""
        worker = self._worker(label)
        allowed = self.limits.memory(len(request))
        most_chars = self.limits.text(len(request))
        limited_to = allowed if self._trust_system else 0
        header = REQUEST.pack(len(request), most_chars, limited_to, self.limits.cpu_s)
        most_bytes = 6 * most_chars + (1 << 16)  # JSON takes at most six for a character
        try:
            worker.send((header, request), most_bytes)
        except (RuntimeError, MemoryError) as error:  # no thread, no memory
            self._holder.end()
            raise TemplateError(f"{label} cannot be rendered: {error or 'there is no memory for it'}") from error
        try:
            self._wait(label, worker, allowed, cancelled)
            reply = worker.reply
            worker.idle = reply is not None
        except BaseException:
            self._holder.end()
            raise
        if reply is None:
            self._holder.end()
            if self._holder.closed:
                raise UsageError("the model was closed")
            raise TemplateError(f"{label} {self._ended(worker, len(request))}")
        if reply.get("failure") == "memory":
            self._holder.end()
        return reply

    def _wait(self, label: str, worker: _Worker, allowed: int, cancelled: Callable[[], bool] | None) -> None:
        watched = not self._trust_system
        deadline = time.monotonic() + _START_S
        greeted = False
        while not worker.done.wait(_POLL_S):
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled while the chat template was rendered")
            if worker.greeted and not greeted:
                greeted = True
                deadline = time.monotonic() + self.limits.wall_s
                watched = watched or not worker.limits_memory
            if time.monotonic() > deadline:
                if greeted:
                    raise TemplateError(f"{label} {self._too_slow()}")
                raise TemplateError(f"{label} cannot be rendered: its process did not start within {_START_S:g} s")
            if watched and worker.resident_bytes() > AT_REST_BYTES + allowed:
                raise TemplateError(f"{label} needs more than {format_size(allowed)} of memory")

    def _failure(self, reply: Mapping[str, Any], request_bytes: int) -> str:
        reason = _printable(str(reply.get("reason", "")))
        match reply.get("failure"):
            case "compile":
                return f"cannot be compiled: {reason}"
            case "refuse":
                return f"refuses: {reason}"
            case "memory":
                return f"needs more than {format_size(self.limits.memory(request_bytes))} of memory"
            case "size":
                return f"writes {reason} characters; the most is {self.limits.text(request_bytes)}"
            case _:
                return f"failed: {reason}"

    def _ended(self, worker: _Worker, request_bytes: int) -> str:
        """Why there is no reply."""
        if worker.broken:
            return f"cannot be rendered: {worker.broken}"
        status = worker.process.returncode  # it was ended: None where the system keeps it
        if status is None:
            return "cannot be rendered: its process cannot be ended"
        if not worker.greeted:
            return (
                f"cannot be rendered: templates run in a process of their own, and {worker.python} "
                f"could not be started as Python (status {status})"
            )
        if status == -getattr(signal, "SIGXCPU", 0):
            return self._too_slow()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        memory = format_size(self.limits.memory(request_bytes))
        return f"ended its process ({how}): it may nest too deeply, or need more than {memory} of memory"

    def _too_slow(self) -> str:
        return f"does not end within {self.limits.cpu_s:g} s"


class _Worker:
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
        self.done = _Gate()
        self.done.open()  # nothing is under way

    def send(self, request: tuple[bytes, ...], most_bytes: int) -> None:
        """Begin to write `request` and to read the reply, of at most `most_bytes`."""
        self.idle, self.reply = False, None
        self.done = done = _Gate()
        try:
            start_new_thread(self._exchange, (request, most_bytes, done))
        except RuntimeError:
            done.open()
            raise

    def _exchange(self, request: tuple[bytes, ...], most_bytes: int, done: _Gate) -> None:
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
        ended = _Gate()
        try:
            start_new_thread(self._end, (ended,))
        except RuntimeError:
            self._end(ended)
        ended.wait(3 * _PATIENCE_S)

    def _end(self, ended: _Gate) -> None:
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


class _Gate:
    """Opened once, by another thread. Unlike `threading.Event` and `Thread.join` it can be waited for again after an
    interrupt at any moment of a wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._is_open = False

    def open(self) -> None:
        """Let all pass."""
        self._is_open = True
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is open, at the latest after so long."""
        if not self._is_open and self._lock.acquire(timeout=timeout_s):
            self._lock.release()
        return self._is_open


class _Holder:
    """The worker, if there is one, apart from its `TemplateProcess`, so that it can be ended when that is gone."""

    def __init__(self) -> None:
        self.worker: _Worker | None = None
        self.closed = False
        self._changing = threading.Lock()

    def usable(self) -> _Worker | None:
        """The worker, if it lives and waits for a request. UsageError when closed."""
        with self._changing:
            if self.closed:
                raise UsageError("the model was closed")
            worker = self.worker
            return worker if worker is not None and worker.idle and worker.is_alive() else None

    def replace(
        self, old: _Worker | None, label: str, python: str | None, failed: list[Exception], tried: _Gate
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


def _release(lock: threading.RLock) -> None:
    """However often this thread holds it: an interrupt may have come just after it was acquired, or before."""
    with contextlib.suppress(RuntimeError):  # it is another thread's, or nobody's
        while True:
            lock.release()


def _started(label: str, python: str | None) -> _Worker:
    options: dict[str, Any] = {"start_new_session": True}  # the terminal's Ctrl-C is not for it
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        python = python or _interpreter()
        command = [python, "-I", "-S", "-X", "utf8", str(_WORKER), *_folders()]
        process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options
        )
        return _Worker(process, python)
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


def _plain(value: Any) -> Any:
    """Mappings and sequences of other kinds, for JSON."""
    from collections.abc import Sequence

    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"a {type(value).__name__} in it")


def _printable(text: str) -> str:
    """A stranger's words, for a message: nothing in them may steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
