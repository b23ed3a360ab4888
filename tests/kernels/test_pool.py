"""The thread pool under load, and the choice of an instruction set."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.events import ignore
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import KERNEL_NAMES, abi, load_kernels
from edgerun.kernels.choice import choose
from edgerun.kernels.isa import ISAS, Isa
from edgerun.kernels.pool import _RUNNING, _work
from tests.kernels.blocks import random_blocks


def test_threads_share_one_pool(simd):
    rng = np.random.default_rng(0)
    w = simd.pack(random_blocks(rng, 200, 256, GgmlType.Q4_0), GgmlType.Q4_0, 256)
    inputs = [rng.standard_normal((3, 256)).astype(np.float32) for _ in range(8)]
    wanted = []
    for x in inputs:
        wanted.append(np.empty((3, 200), np.float32))
        simd.matmul(w, simd.activations(x), wanted[-1])
    wrong: list[int] = []

    def work(index: int) -> None:
        out = np.empty((3, 200), np.float32)
        for _ in range(50):
            simd.matmul(w, simd.activations(inputs[index]), out)
            if not np.array_equal(out, wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_workers_sleep_and_wake(simd):
    rng = np.random.default_rng(0)
    w = simd.pack(random_blocks(rng, 512, 256, GgmlType.Q4_0), GgmlType.Q4_0, 256)
    x = simd.activations(rng.standard_normal((1, 256)).astype(np.float32))
    first, again = np.empty((2, 1, 512), np.float32)
    simd.matmul(w, x, first)
    pool, end = simd._launcher._pool, time.monotonic() + 10  # which other work may hold up
    while not all(pool._sleeping) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(pool._sleeping), "idle threads must not burn the battery"
    simd.matmul(w, x, again)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_done_once(threads):
    """Whatever the numbers of items, grain and threads are, also while helpers come late or not at all."""
    kernels = load_kernels("auto", threads=threads)
    try:
        add = kernels._cache.address("add")
        rng = np.random.default_rng(threads)
        for round in range(400):
            items = int(rng.integers(1, 3000 if round % 10 == 0 else 100))
            grain = int(rng.integers(1, 20))
            done, one = np.zeros((items + 1, 3), np.float32), np.ones(3, np.float32)
            arguments = np.frombuffer(abi.packed(abi.Add(done.ctypes.data, one.ctypes.data, 3, 0, 12)), np.int64)
            for _ in range(3):
                kernels._launcher._pool.run(add, arguments.ctypes.data, items, grain)
            assert (done[:items] == 3).all() and (done[items:] == 0).all(), (items, grain)
            if round % 50 == 49:
                time.sleep(0.02)  # until helpers sleep
    finally:
        kernels.close()


def test_closing_stops_the_threads():
    before = threading.active_count()
    kernels = load_kernels("auto", threads=3)
    assert threading.active_count() == before + 2
    kernels.close()
    assert threading.active_count() == before


def test_choice():
    assert choose("auto").name in ISAS
    with pytest.raises(UsageError, match="kernels must be one of"):
        load_kernels("sse9")
    with pytest.raises(UsageError, match="threads"):
        load_kernels("reference", threads=0)
    assert set(ISAS) < set(KERNEL_NAMES)


def test_a_processor_without_the_instructions_is_refused(monkeypatch):
    monkeypatch.setitem(ISAS, "avx2", Isa("avx2", 8, "avx2", ("avx2", "teleport")))
    with pytest.raises(UsageError, match="lacks (avx2, )?teleport"):
        load_kernels("avx2", events=ignore)


def test_a_program_that_forgets_to_close_ends_well():
    code = "from edgerun.kernels import load_kernels; kernels = load_kernels('portable', threads=3)"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_helper_that_was_about_to_sleep_still_helps():
    """What a caller does in Python before a launch may outlast a helper's patience, and it holds the GIL that
    the helper needs to say that it sleeps: nobody has woken it then, and it must look again before it sleeps through a
    token."""
    slots, lock, sleeping, calls = np.zeros(64, np.int64), threading.Lock(), [False], []

    def work(control: int, index: int, spins: int) -> int:
        calls.append(index)
        slots[_RUNNING] = len(calls) == 1  # the first time a launch begins just when patience is at its end
        return 0 if len(calls) < 3 else -1

    helper = threading.Thread(target=_work, args=(work, 0, 0, slots, lock, sleeping))
    helper.start()
    until = time.monotonic() + 5
    while len(calls) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    assert len(calls) == 2, "it sleeps although a launch is being computed"
    helper.join(0.1)
    assert helper.is_alive() and sleeping == [True] and len(calls) == 2, "nothing is computed: it must sleep"
    lock.release()
    helper.join(5)
    assert not helper.is_alive() and len(calls) == 3
