"""os.fork with a loaded model: both sides go on, whatever other threads were doing at that moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing, suppress

import numpy as np
import pytest

from edgerun.engine.cancel import FairLock
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from tests.models.instances import INSTANCES, tokens_of, write
from tests.weights.faulty_disk import slow_reads

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
STORES = {
    "resident": ("olmoe", ResidentStore, {}),
    "experts": ("olmoe", StreamedExpertStore, {"slots": 6, "wave_tokens": 256}),
    "layers": ("llama", StreamedLayerStore, {"pinned": [], "wave_tokens": 256}),
    "neurons": ("relu-Q8_0", StreamedLayerStore, {"pinned": [1], "wave_tokens": 256, "neuron_slots": 20}),
}


def run(decoder, name):
    tokens = tokens_of(INSTANCES[name])
    cache = decoder.new_cache(64)
    rows = [decoder.forward(tokens[:12], cache, logits="all")]
    rows += [decoder.forward([token], cache) for token in tokens[12:16]]
    return np.concatenate(rows)


def in_child(work, limit_s=20.0) -> int:
    """The exit status of `work` in a child: 0 when it returned true, -9 when it had to be killed."""
    child = os.fork()
    if child == 0:
        status = 3
        with suppress(BaseException):
            status = 0 if work() else 2
        os._exit(status)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -9


@pytest.mark.parametrize("store_name", STORES)
@pytest.mark.parametrize("busy", [False, True], ids=["between calls", "within another thread's call"])
def test_both_sides_answer(tmp_path, kernels, monkeypatch, store_name, busy):
    name, kind, options = STORES[store_name]
    with open_gguf(write(INSTANCES[name], tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        expected = run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), name)
        slow_reads(monkeypatch, 1, most_s=0.003)
        with closing(kind(gguf, spec, kernels, **options)) as store:
            decoder, lock, stop = Decoder(spec, store, kernels), FairLock(), threading.Event()

            def answer():
                with lock.held():
                    return np.array_equal(run(decoder, name), expected)

            assert answer()
            other = threading.Thread(target=lambda: [answer() for _ in iter(stop.is_set, True)])
            if busy:
                other.start()
            statuses = [in_child(answer) for _ in range(6 if busy else 2)]
            stop.set()
            if busy:
                other.join()
            assert statuses == [0] * len(statuses)
            assert answer()


def test_a_lock_held_elsewhere_at_the_fork(kernels):
    """Each lock of the kernels and of the turns is taken by a thread that the child does not have."""
    lock, inside, go = FairLock(), threading.Event(), threading.Event()

    def hold():
        with lock.held(), kernels._launcher.lock:
            inside.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(5)

    def work():
        x, out = np.ones((3, 64), np.float32), np.empty((3, 64), np.float32)
        with lock.held():
            kernels.rms_norm(x, np.ones(64, np.float32), 1e-5, out)
        return bool(np.isfinite(out).all())

    status = in_child(work)
    go.set()
    thread.join()
    assert status == 0
