"""Prompts on our kernels and on ONNX Runtime backends, in turn.

python benchmarks/prefill.py MODEL.gguf [--backend ort-cpu:w7a8 ...] [--tokens 256 1024] [-t THREADS] [-r 3] [--json]

Prints tokens/s (the best of -r turns), the change of the last logits, the memory that the backend took beyond the
kernels' (anonymous, resident), and how long both sides were idle, with and without overlapping them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.device import process_memory
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_kernels
from edgerun.models import Decoder, load_spec
from edgerun.prefill.choice import parse_choice
from edgerun.prefill.opening import calibration_ids, open_backend
from edgerun.prefill.schedule import Timeline
from edgerun.weights import ResidentStore


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", nargs="*", default=["ort-cpu:w7a8", "ort-cpu:w8a8"])
    parser.add_argument("--tokens", nargs="*", type=int, default=[256, 1024])
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where graphs are kept (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    kernels = load_kernels("auto", threads=a.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, open_gguf(a.model) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        ids = np.random.default_rng(0).integers(0, spec.vocab_size, max(a.tokens)).tolist()
        want = {}
        for tokens in a.tokens:
            seconds, want[tokens] = timed(decoder, ids[:tokens], a.repetitions)
            rows.append({"backend": "kernels", "tokens": tokens, "tok_s": tokens / seconds})
        for text in a.backend:
            for overlap in (True, False):
                before = process_memory().private_bytes
                backend = open_backend(
                    gguf,
                    decoder,
                    parse_choice(text),
                    calibration_ids(spec.vocab_size, None),
                    a.cache or Path(folder),
                    threads=kernels.threads,
                    overlap=overlap,
                )
                decoder.prompt_backend = backend
                for tokens in a.tokens:
                    timed(decoder, ids[:tokens], 1)
                    backend.timeline = Timeline(cost=backend.timeline.cost)
                    seconds, got = timed(decoder, ids[:tokens], a.repetitions)
                    line = backend.timeline
                    rows.append(
                        {
                            "backend": text,
                            "overlap": overlap,
                            "tokens": tokens,
                            "tok_s": tokens / seconds,
                            "error": float(np.linalg.norm(got - want[tokens]) / np.linalg.norm(want[tokens])),
                            "memory_mib": (process_memory().private_bytes - before) / 2**20,
                            "backend_idle": line.idle_s["backend"] / line.wall_s,
                            "cpu_idle": line.idle_s["cpu"] / line.wall_s,
                        }
                    )
                decoder.prompt_backend = None
                backend.close()
    kernels.close()
    if a.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items())
        )


def timed(decoder: Decoder, ids: list[int], turns: int) -> tuple[float, Any]:
    """(best seconds, last logits)."""
    best = float("inf")
    for _ in range(turns):
        cache = decoder.new_cache(len(ids))
        began = time.perf_counter()
        logits = decoder.forward(ids, cache)
        best = min(best, time.perf_counter() - began)
    return best, logits


if __name__ == "__main__":
    main()
