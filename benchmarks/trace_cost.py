"""What a trace costs: tokens decoded in turns with and without one, in one process.

python benchmarks/trace_cost.py MODEL.gguf [-n 30] [-r 40] [-t 2]

Prints the median of a token's milliseconds without and with a trace, and the quartiles of the turns' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

from edgerun import LLM
from edgerun.profiling.trace import Trace

_BEFORE = 16  # tokens that are there already


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", "--decode", type=int, default=30, help="tokens of a turn")
    parser.add_argument("-r", "--turns", type=int, default=40)
    parser.add_argument("-t", "--threads", type=int, default=2)
    a = parser.parse_args()
    with LLM(a.model, threads=a.threads, context=512) as llm:
        decoder = llm.engine.decoder
        cache = decoder.new_cache(_BEFORE + a.decode)
        decoder.forward(list(range(_BEFORE)), cache)

        def turn(traced: bool) -> float:
            """The median of a token's seconds; each turn from the same position."""
            took = []
            with Trace().watch(decoder) if traced else nullcontext():
                for token in range(a.decode):
                    began = time.perf_counter()
                    decoder.forward([token], cache)
                    took.append(time.perf_counter() - began)
            cache.truncate(_BEFORE)
            return statistics.median(took)

        turn(True)
        pairs = []
        for number in range(a.turns):  # who goes first alternates
            found = {traced: turn(traced) for traced in ((False, True) if number % 2 else (True, False))}
            pairs.append((found[False], found[True]))
    ratios = [traced / plain for plain, traced in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain, traced = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"{plain:.3f} ms a token, {traced:.3f} with a trace: {100 * (middle - 1):+.1f} %", end=" ")
    print(f"({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %)")


if __name__ == "__main__":
    main()
