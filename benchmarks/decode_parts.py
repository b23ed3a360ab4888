"""Where the microseconds of one decoded token go: Python's share, and each kernel's.

python benchmarks/decode_parts.py MODEL.gguf [--position 128] [--threads 2] [--rounds 30] [--json]

A kernel's share is what the recorded token takes less without its launches, so that it is measured where it runs,
after weights have gone through the caches (alone in a loop it looks several times as cheap). The recordings take turns,
and of each the 30th percentile is taken. Close everything else first: differences of a hundredth are noise even then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from edgerun import LLM
from edgerun.kernels.program import Program

PERCENTILE = 30


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of one decoded token goes.")
    parser.add_argument("model")
    parser.add_argument("--position", type=int, default=128, help="tokens before the one that is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with LLM(options.model, threads=options.threads, context=options.position + 64) as llm:
        parts = measure(llm, options.position, options.rounds)
    if options.json:
        print(json.dumps(parts))
        return
    for name, us in parts.items():
        print(f"{name:24} {us:9.0f} us")


def measure(llm: LLM, position: int, rounds: int) -> dict[str, float]:
    """Microseconds by part; `token` is all of the decoder's call, `recording` its launches without a pause."""
    decoder = llm._engine.decoder
    cache = decoder.new_cache(position + 64)
    vocabulary = decoder.spec.vocab_size
    decoder.forward(np.arange(position) * 7919 % vocabulary, cache)
    for token in (1, 2, 3):  # recorded, then replayed
        decoder.forward([token], cache)
    recorded = decoder.passes._replays[1]._recorded
    if recorded is None:
        raise SystemExit("this model's tokens are not replayed (streamed, or a type without kernels of its own)")
    program: Program = recorded.program
    pool = decoder.kernels._launcher._pool
    names = np.array(program._names)
    recordings = {"recording": program.rows}
    recordings |= {name: np.ascontiguousarray(program.rows[names != name]) for name in dict.fromkeys(names.tolist())}
    recordings["all but products"] = np.ascontiguousarray(program.rows[np.char.startswith(names, "matmul")])
    length = cache.length

    def token() -> None:
        cache.truncate(length)
        decoder.forward([3], cache)

    runs: dict[str, Callable[[], None]] = {"token": token}
    for name, rows in recordings.items():
        runs[name] = lambda rows=rows: pool.run_program(rows.ctypes.data, len(rows))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(3):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    us = {name: float(np.percentile(each, PERCENTILE)) * 1e6 for name, each in seconds.items()}
    whole = us["recording"]
    parts = {"token": us["token"], "recording": whole, "python": us["token"] - whole}
    parts |= {name: whole - us[name] for name in recordings if name != "recording"}
    return {name: round(value, 1) for name, value in parts.items()}


if __name__ == "__main__":
    main()
