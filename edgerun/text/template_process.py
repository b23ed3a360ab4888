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
import threading
import time
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgerun.device.forks import call_after_fork
from edgerun.errors import Cancelled, TemplateError, UsageError
from edgerun.text.gate import Gate
from edgerun.text.template_child import TemplateWorker, WorkerHolder
from edgerun.text.template_worker import REQUEST
from edgerun.units import format_size

AT_REST_BYTES = 22 << 20  # of the process, what it shares with others included

_START_S = 30.0  # a machine that is busy may take long to start Python
_POLL_S = 0.01


class TemplateRefusal(TemplateError):
    """The template ran, and cannot write this conversation or says that it will not: perhaps it can in another way."""


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
        self._holder = WorkerHolder()
        self._lock = threading.RLock()
        weakref.finalize(self, WorkerHolder.close, self._holder)
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
        refuses = reply.get("failure") in ("refuse", "render")
        raise (TemplateRefusal if refuses else TemplateError)(f"{label} {self._failure(reply, len(request))}")

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

    def _worker(self, label: str) -> TemplateWorker:
        """One that waits for a request. Another is started in a thread of its own: an interrupt there, where Python
        would lose a process that it has just started, cannot be."""
        worker = self._holder.usable()
        if worker is not None:
            return worker
        failed: list[Exception] = []
        tried = Gate()
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

    def _wait(self, label: str, worker: TemplateWorker, allowed: int, cancelled: Callable[[], bool] | None) -> None:
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

    def _ended(self, worker: TemplateWorker, request_bytes: int) -> str:
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


def _release(lock: threading.RLock) -> None:
    """However often this thread holds it: an interrupt may have come just after it was acquired, or before."""
    with contextlib.suppress(RuntimeError):  # it is another thread's, or nobody's
        while True:
            lock.release()


def _plain(value: Any) -> Any:
    """Mappings and sequences of other kinds, for JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"a {type(value).__name__} in it")


def _printable(text: str) -> str:
    """A stranger's words, for a message: nothing in them may steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
