"""What keeping keys and values in fewer bits costs: perplexity, memory, and the rate of decoding far into a text.

    python benchmarks/kv.py MODEL.gguf TEXT.txt [--kv f16 q8_0 q4_0] [--windows 20] [--after 4000]

Perplexity is of windows of 512 tokens, the second half scored, the same for all; ratios to the first with the standard
error of the paired differences. Then all read the same text and decode in turns of 16 tokens; the ratio is the median
of those of each turn.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from paired import nats, told
from perplexity import GOLDEN, READ, windows_of

from edgerun import LLM
from edgerun.kv import KvSequence

TURN = 16  # tokens


def turn_s(llm: LLM, sequence: KvSequence, token: int) -> float:
    """Seconds of a turn."""
    begun = perf_counter()
    for _ in range(TURN):
        llm.engine.decoder.forward([token], sequence)
    return perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--kv", nargs="+", default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--after", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    windows = windows_of(a.model, a.text)
    some = [windows[i] for i in sorted(range(len(windows)), key=lambda i: i * GOLDEN % 1)[: a.windows]]
    room = a.after + (a.turns + 1) * TURN
    with ExitStack() as stack:
        llms = {kv: stack.enter_context(LLM(a.model, threads=a.threads, context=room, kv=kv)) for kv in a.kv}
        found = {kv: np.array([nats(llm, ids, READ) for ids in some]) for kv, llm in llms.items()} if some else {}
        ids = [token for window in windows[: -(-a.after // len(windows[0]))] for token in window][: a.after]
        sequences = {kv: llm.engine.decoder.new_cache(room) for kv, llm in llms.items()}
        for kv, llm in llms.items():
            llm.engine.decoder.forward(ids, sequences[kv], logits="none")
            turn_s(llm, sequences[kv], ids[0])  # launches are recorded
        seconds = [{kv: turn_s(llm, sequences[kv], ids[0]) for kv, llm in llms.items()} for _ in range(a.turns)]
        first = a.kv[0]
        for kv, sequence in sequences.items():
            print(f"{kv:10s} memory {sequence.n_bytes / sequences[first].n_bytes:.4f}, ", end="")
            rate = TURN / median(each[kv] for each in seconds)
            ratio = median(each[first] / each[kv] for each in seconds)
            print(f"after {a.after} tokens {rate:.1f} tok/s, ratio {ratio:.3f}", end="")
            if kv in found:
                print(f"; {told(found[kv], found[first])}", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
