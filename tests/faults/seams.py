"""Where faults come in: every seam counts what passes it and fails at the n-th.

A seam is a context manager over a `Shot`. What it raises is what the world would raise there: EIO from a read,
MemoryError from an allocation, KeyboardInterrupt between any two lines of edgerun's code.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np

import edgerun
from edgerun.errors import Cancelled, EdgerunError
from edgerun.events import Event
from edgerun.text import ChatTemplate
from tests.faults.questions import Given
from tests.faults.subjects import REFUSED
from tests.interrupts import interrupts

_HOME = str(Path(edgerun.__file__).parent)


class Planted(Exception):
    """What a caller's own function raises: it must come out as it is."""


@dataclass
class Shot:
    """One fault: it happens at the `at`-th passing. `passed`: how often the seam was passed, `fired`: how often it
    failed."""

    at: int
    passed: int = 0
    fired: int = 0
    given: Given = field(default_factory=Given)

    def passes(self) -> bool:
        """Count; whether this is the one."""
        self.passed += 1
        if self.passed == self.at:
            self.fired += 1
        return self.passed == self.at


class Listener:
    """The event sink of a subject. `hook` is called with each event while a seam has set it."""

    def __init__(self) -> None:
        self.hook: Callable[[Event], None] | None = None

    def __call__(self, event: Event) -> None:
        if self.hook is not None:
            self.hook(event)


@dataclass(frozen=True)
class Seam:
    """A name, how a fault is armed, and what a caller may see of it."""

    name: str
    arm: Callable[[Shot, Listener], AbstractContextManager[None]]
    allowed: tuple[type[BaseException], ...]
    while_loading: bool = False  # it is passed while a model is loaded, too
    ends_early: bool = False  # an answer may be the beginning of the right one


def _from_edgerun(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_HOME)


def _wrapped(owner: Any, name: str, shot: Shot, fail: Callable[[], BaseException]) -> AbstractContextManager[Any]:
    """`owner.name` fails at the shot, when edgerun calls it."""
    original = getattr(owner, name)

    def wrapper(*args: Any, **more: Any) -> Any:
        if _from_edgerun(sys._getframe(1)) and shot.passes():
            raise fail()
        return original(*args, **more)

    return mock.patch.object(owner, name, wrapper)


def _several(owner: Any, names: tuple[str, ...], fail: Callable[[], BaseException]) -> Any:
    @contextmanager
    def arm(shot: Shot, listener: Listener) -> Iterator[None]:
        patches = [_wrapped(owner, name, shot, fail) for name in names if hasattr(owner, name)]
        for patch in patches:
            patch.__enter__()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.__exit__(None, None, None)

    return arm


@contextmanager
def _short_reads(shot: Shot, listener: Listener) -> Iterator[None]:
    """The file ends early: at the shot a read gives nothing."""
    whole = os.preadv

    def preadv(*args: Any) -> int:
        return 0 if shot.passes() else whole(*args)

    with mock.patch.object(os, "preadv", preadv):
        yield


@contextmanager
def _interrupted(shot: Shot, listener: Listener) -> Iterator[None]:
    """KeyboardInterrupt before the n-th line of edgerun's code that this thread runs."""

    with interrupts(lambda file: file.startswith(_HOME), shot.passes):
        yield


@contextmanager
def _signalled(shot: Shot, listener: Listener) -> Iterator[None]:
    """A real SIGINT some microseconds after the beginning, as from a terminal."""
    arrived = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        shot.passed += 1
        shot.fired += 1
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(shot.at * 37e-6, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    try:
        timer.start()
        yield
    finally:
        while not arrived:  # one that comes late belongs to nobody: it is waited for here
            try:
                timer.join()
                if not arrived:
                    signal.sigtimedwait([], 0.001)
            except KeyboardInterrupt:
                shot.fired = 0
        signal.signal(signal.SIGINT, before)


@contextmanager
def _cancelled(shot: Shot, listener: Listener) -> Iterator[None]:
    """The caller's signal is set from the n-th time on that it is asked."""

    class Signal:
        def is_set(self) -> bool:
            shot.passes()
            return shot.passed >= shot.at

    shot.given = Given(cancel=Signal())
    yield


@contextmanager
def _cancel_fails(shot: Shot, listener: Listener) -> Iterator[None]:
    class Signal:
        def is_set(self) -> bool:
            if shot.passes():
                raise Planted("the caller's signal")
            return False

    shot.given = Given(cancel=Signal())
    yield


@contextmanager
def _processor_fails(shot: Shot, listener: Listener) -> Iterator[None]:
    def processor(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if shot.passes():
            raise Planted("the caller's processor")
        return logits

    shot.given = Given(processors=(processor,))
    yield


@contextmanager
def _sink_fails(shot: Shot, listener: Listener) -> Iterator[None]:
    def hook(event: Event) -> None:
        if shot.passes():
            raise Planted("the caller's sink")

    listener.hook = hook
    try:
        yield
    finally:
        listener.hook = None


@contextmanager
def _template_refuses(shot: Shot, listener: Listener) -> Iterator[None]:
    """At the shot a chat has a message more, which the model's template refuses (`raise_exception`)."""
    render = ChatTemplate.render

    def rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        refused = [{"role": "user", "content": REFUSED}] if shot.passes() else []
        return render(template, [*messages, *refused], **more)

    with mock.patch.object(ChatTemplate, "render", rendered):
        yield


def _eio() -> OSError:
    return OSError(errno.EIO, "Input/output error")


def _full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def _no_memory() -> MemoryError:
    return MemoryError("Unable to allocate")


def _no_thread() -> RuntimeError:
    return RuntimeError("can't start new thread")


_ARRAYS = ("empty", "zeros", "empty_like", "concatenate", "stack")
_INTERRUPT = (KeyboardInterrupt,)
SEAMS = {
    seam.name: seam
    for seam in (
        Seam("disk: EIO", _several(os, ("preadv", "pread"), _eio), (EdgerunError,), while_loading=True),
        Seam("disk: cut off", _short_reads, (EdgerunError,), while_loading=True),
        Seam("allocation", _several(np, _ARRAYS, _no_memory), (EdgerunError,), while_loading=True),
        Seam("thread", _several(threading.Thread, ("start",), _no_thread), (EdgerunError,), while_loading=True),
        Seam(
            "cache file",
            _several(os, ("fsync", "replace", "open", "mkdir"), _full),
            (EdgerunError,),
            while_loading=True,
        ),
        Seam("callback: sink", _sink_fails, (Planted,), while_loading=True),
        Seam("callback: processor", _processor_fails, (Planted,)),
        Seam("callback: cancel", _cancel_fails, (Planted,)),
        Seam("template", _template_refuses, (EdgerunError,)),
        Seam("interrupt: line", _interrupted, _INTERRUPT, while_loading=True),
        Seam("interrupt: signal", _signalled, _INTERRUPT, while_loading=True),
        Seam("cancel", _cancelled, (Cancelled,), ends_early=True),
    )
}
