"""A disk that is slow, or fails, or loses the end of a file: put under `flash.WeightFile`."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from edgerun.weights import flash

_preadv = os.preadv


def slow_reads(monkeypatch: pytest.MonkeyPatch, seed: int, most_s: float = 0.002) -> None:
    """Every read takes a random time, so that pieces land in any order."""
    rng = random.Random(seed)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if rng.random() < 0.3:
            time.sleep(rng.random() * most_s)
        return _preadv(fd, buffers, offset)

    monkeypatch.setattr(flash.os, "preadv", preadv)


def failing_reads(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
    """Reads at offsets for which `fails` holds raise EIO."""

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fails(offset):
            raise OSError(5, "Input/output error")
        return _preadv(fd, buffers, offset)

    monkeypatch.setattr(flash.os, "preadv", preadv)


def stuck_reads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Reads that do not end before the event is set, or a minute has passed."""
    go = threading.Event()

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        go.wait(60)
        return _preadv(fd, buffers, offset)

    monkeypatch.setattr(flash.os, "preadv", preadv)
    return go


def healthy_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is well again."""
    monkeypatch.setattr(flash.os, "preadv", _preadv)
