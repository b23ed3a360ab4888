"""What reading ahead brings a mixture whose experts do not all fit: the same tokens with prediction off, on, and made
wrong, and with everything in memory.

python benchmarks/prefetch.py MODEL.gguf --slots 400 [--right 0.8] [--tokens 180]

All take turns of a few tokens within one process, so that a disk or a processor that slows down slows all of them: what
differs is the prediction's. Needs memory for the whole model and three caches. (On a synthetic file prediction is
always right, since nothing changes its residual stream: --right makes some of the guesses random.)
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_kernels
from edgerun.kernels.interface import I32
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore

TURN = 6  # tokens


class Misled(StreamedExpertStore):
    """Of what is expected, a share stays; the others become any experts of the layer."""

    def __init__(self, *arguments: Any, right: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._right = right
        self._rng = random.Random(1)

    def expect(self, layer: int, ids: I32, distance: int = 1) -> None:
        chance, experts = self._rng.random, self._catalog.n_experts
        told = [i if chance() < self._right else int(chance() * experts) for i in ids.tolist()]
        super().expect(layer, np.array(list(dict.fromkeys(told)), np.int32), distance)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--right", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=180)
    parser.add_argument("-t", "--threads", type=int, default=2)
    a = parser.parse_args()
    kernels = load_kernels("auto", threads=a.threads)
    with ExitStack() as stack:
        gguf = stack.enter_context(open_gguf(a.model))
        spec = load_spec(gguf)
        stores: dict[str, ResidentStore | StreamedExpertStore] = {"in memory": ResidentStore(gguf, spec, kernels)}
        kinds: dict[str, Callable[..., StreamedExpertStore]] = {
            "off": partial(StreamedExpertStore, predict=False),
            "on": StreamedExpertStore,
            f"{a.right:.0%} right": partial(Misled, right=a.right),
        }
        for name, kind in kinds.items():
            stores[name] = streamed = kind(gguf, spec, kernels, slots=a.slots, wave_tokens=256)
            stack.callback(streamed.close)
        runs = {name: (Decoder(spec, store, kernels), store) for name, store in stores.items()}
        caches = {name: decoder.new_cache(a.tokens) for name, (decoder, _) in runs.items()}
        steps: dict[str, list[float]] = {name: [] for name in runs}
        before: dict[str, dict[str, float]] = {}
        cold = a.tokens // 3 // TURN * TURN
        for low in range(0, a.tokens, TURN):
            for name, (decoder, store) in runs.items():
                if low == cold:
                    before[name] = store.statistics()
                for token in range(low, min(a.tokens, low + TURN)):
                    began = time.perf_counter()
                    decoder.forward([token % spec.vocab_size], caches[name])
                    steps[name].append(time.perf_counter() - began)
        print(f"{a.model.name}, {a.slots} of {spec.n_layers * spec.n_experts} experts cached, last {a.tokens - cold}")
        for name, (_, store) in runs.items():
            warm = steps[name][cold:]
            line = f"{name:10s} {1 / statistics.fmean(warm):6.2f} tok/s, p50 {1e3 * statistics.median(warm):6.1f} ms"
            counts = {key: value - before[name][key] for key, value in store.statistics().items()}
            if counts:
                uses = counts["hits"] + counts["late"] + counts["misses"]
                line += f", {counts['read_n_bytes'] / len(warm) / 1e6:6.1f} MB a token, "
                line += f"stalls {1e3 * counts['stall_s'] / len(warm):5.1f} ms, there {counts['hits'] / uses:.1%}, "
                line += f"on the way {counts['late'] / uses:.1%}"
            if counts.get("predicted"):
                line += f", of use {counts['predicted_used'] / counts['predicted']:.0%} of {counts['predicted']:.0f}"
            print(line)
    kernels.close()


if __name__ == "__main__":
    main()
