"""What packing costs while weights stream from the disk, for every type of weights.

python benchmarks/packing.py FOLDER [--types Q4_0,F16] [--turns 4] [--seconds 0.4] [-t 2] [--products] [--json]

Writes a file a type into FOLDER, four layers of llama-1b's shape, and keeps it for the next run. Layers pass through
two buffers as in `edgerun run --memory`: three threads read past the page cache, and each packs what it has read. In
turn with that, in the same process, they only read: `kept` is the rate with packing over the rate without, so 1 - kept
is what packing costs a miss in wall time where reading never pauses. `of readers` is packing's share of the seconds
that readers are busy. `alone` is an expert of three matrices of 1024 x 2048 that is read while nothing else is under
way: small ones are read by one thread, which then packs them, and all of that is waited for. --products: each layer is
multiplied with one row while the next ones are read, as in decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from all_types import write_model

from edgerun.events import Span
from edgerun.formats.gguf import GgmlType, GgufFile, open_gguf
from edgerun.formats.quants import DEQUANTIZERS
from edgerun.kernels import load_kernels
from edgerun.kernels.memory import LINE
from edgerun.models import load_spec
from edgerun.weights.arena import Arena
from edgerun.weights.flash import DEMAND, FlashReader, Reading
from edgerun.weights.streamed_layers import StreamedLayerStore
from edgerun.weights.tensor_reader import TensorReader, joined

LAYERS, VOCAB = 4, 512
EXPERT = (("ffn_gate", 1024), ("ffn_up", 1024), ("attn_q", 1024))  # so many rows of 2,048 weights of each
EXPERTS = 40
SLOTS_BYTES = 256 << 20  # of memory for experts: what is written now was not touched for long


class PackingWatched:
    """The kernels, which note how long each piece took to be packed, or do not pack at all."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.packs = True
        self.pieces: list[tuple[float, int]] = []  # seconds and bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def pack_rows(self, raw: Any, w: Any, first_row: int) -> None:
        """On a reader's thread."""
        if self.packs:
            began = time.perf_counter()
            self._kernels.pack_rows(raw, w, first_row)
            self.pieces.append((time.perf_counter() - began, raw.nbytes))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", default=",".join(type.name for type in DEQUANTIZERS))
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--turns", type=int, default=4, help="with packing and without it")
    parser.add_argument("--seconds", type=float, default=0.4, help="of a turn")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    kernels = PackingWatched(load_kernels(a.kernels, threads=a.threads))
    results = {}
    with closing(kernels):
        for type in map(GgmlType.__getitem__, a.types.split(",")):
            path = a.folder / f"layers-{type.name}.gguf"
            if not path.exists():
                write_model(path, type, LAYERS, VOCAB)
            with open_gguf(path) as gguf:
                found = streamed(gguf, kernels, a.turns, a.seconds, a.products) | alone(gguf, kernels)
            results[type.name] = found
            if not a.json:
                print(line(type, found), flush=True)
    if a.json:
        print(json.dumps(results, indent=2))


def streamed(gguf: GgufFile, kernels: PackingWatched, turns: int, seconds: float, products: bool) -> dict[str, float]:
    """Layer after layer, in turn with packing and without it. Rates are bytes/s."""
    spec = load_spec(gguf)
    store = StreamedLayerStore(gguf, spec, kernels, pinned=(), wave_tokens=1)  # type: ignore[arg-type]
    rates: dict[bool, list[float]] = {True: [], False: []}
    kept, reads = [], []

    def note(span: Span) -> None:
        if span.lane.startswith("reader") and kernels.packs:
            reads.append(span.end_s - span.begin_s)

    with closing(store):
        layers = cycle(range(spec.n_layers))
        for turn in range(turns):
            for packs in (True, False) if turn % 2 else (False, True):
                kernels.packs = packs
                for _ in range(2):  # what was under way
                    pass_layer(store, kernels, next(layers), products)
                if not turn:
                    kernels.pieces.clear()
                store.watch(note if packs else None)
                rates[packs].append(pass_layers(store, kernels, layers, seconds, products))
            kept.append(rates[True][-1] / rates[False][-1])
    pack_s, n_bytes = (sum(each) for each in zip(*kernels.pieces, strict=True))
    return {
        "disk_bytes_per_s": statistics.median(rates[False]),
        "packing_bytes_per_s": statistics.median(rates[True]),
        "kept": statistics.median(kept),
        "of_readers": pack_s / (pack_s + sum(reads)),
        "pack_bytes_per_s": n_bytes / pack_s,
    }


def pass_layers(
    store: StreamedLayerStore, kernels: PackingWatched, layers: Iterator[int], seconds: float, products: bool
) -> float:
    """Bytes/s."""
    began, first = time.perf_counter(), store.flash.stats.n_bytes
    while time.perf_counter() - began < seconds:
        pass_layer(store, kernels, next(layers), products)
    return (store.flash.stats.n_bytes - first) / (time.perf_counter() - began)


def pass_layer(store: StreamedLayerStore, kernels: PackingWatched, layer: int, products: bool) -> None:
    """Wait until it is there and give it back."""
    store.begin()
    with store.layer(layer) as weights:
        for w in weights.matrices.values() if products else ():
            x = kernels.activations(np.ones((1, w.cols), np.float32))
            kernels.matmul(w, x, np.empty((1, w.rows), np.float32))


def alone(gguf: GgufFile, kernels: PackingWatched) -> dict[str, float]:
    """An expert at a time, nothing else under way: seconds until it has landed, and packing's share of them."""
    infos = [[gguf.tensors[f"blk.{layer}.{part}.weight"] for part, _ in EXPERT] for layer in range(LAYERS)]
    sizes = [
        kernels.packed_bytes(info.type, rows, info.shape[-1]) for info, (_, rows) in zip(infos[0], EXPERT, strict=True)
    ]
    slots, slot_bytes = Arena(SLOTS_BYTES).bytes, sum(-(-size // LINE) * LINE for size in sizes)
    slots[:] = 0
    flash = FlashReader(gguf.paths, threads=3)
    reader = TensorReader(gguf, kernels, flash)  # type: ignore[arg-type]
    kernels.packs = True
    taken, packing = [], []
    with closing(flash):
        for number in range(EXPERTS):
            kernels.pieces.clear()
            reading, pieces = Reading(flash), []
            at = number % (SLOTS_BYTES // slot_bytes) * slot_bytes
            for info, size, (_, rows) in zip(infos[number % LAYERS], sizes, EXPERT, strict=True):
                target = kernels.matrix_in(slots[at : at + size], info.type, rows, info.shape[-1])
                at += -(-size // LINE) * LINE
                first = rows * (number // LAYERS % (info.shape[0] // rows))
                pieces += reader.pieces(info, first, target, reading.landed)
            began = time.perf_counter()
            reading.begin(joined(pieces), DEMAND)
            reading.wait()
            taken.append(time.perf_counter() - began)
            packing.append(sum(spent for spent, _ in kernels.pieces) / taken[-1])
    return {"alone_s": statistics.median(taken), "alone_share": statistics.median(packing)}


def line(type: GgmlType, found: dict[str, float]) -> str:
    """Of the table."""
    disk, packing, thread = (found[f"{key}_bytes_per_s"] / 1e9 for key in ("disk", "packing", "pack"))
    return (
        f"{type.name:8s} disk {disk:5.2f} GB/s, packing {packing:5.2f}  kept {found['kept']:5.2f}"
        f"  of readers {found['of_readers']:5.1%}  a thread packs {thread:5.1f} GB/s"
        f"  alone {1e3 * found['alone_s']:6.2f} ms, {found['alone_share']:5.1%}"
    )


if __name__ == "__main__":
    main()
