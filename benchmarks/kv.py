"""What keeping keys and values in fewer bits costs: perplexity, memory, and the rate of decoding far into a text.

    python benchmarks/kv.py MODEL.gguf TEXT.txt [--kv f16 q8_0 q4_0] [--windows 20] [--after 4000] [--turns 20]
        [--results FILE.jsonl]

Perplexity is of windows of 512 tokens, the second half scored, the same for all; ratios to the first with the standard
error of the paired differences. --results keeps what every window's tokens cost, and goes on from there, so that many
windows can be computed bit by bit. Then all read the same text and decode in turns of 16 tokens; the ratio is the
median of those of each turn. No turns: nothing is decoded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from paired import F64, nats, told
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


Found = dict[tuple[str, int], list[float]]  # format and window -> -log p of each token that is scored


def perplexities(llms: Mapping[str, LLM], windows: Sequence[list[int]], n: int, results: Path | None) -> dict[str, F64]:
    """What the tokens of `n` windows cost with each, (windows, tokens). results: what is known, line by line."""
    order = sorted(range(len(windows)), key=lambda i: i * GOLDEN % 1)[:n]
    found: Found = {}
    if results is not None and results.exists():
        found = {(kv, window): costs for kv, window, costs in map(json.loads, results.read_text().splitlines())}
    for window in order:
        for kv, llm in llms.items():
            if (kv, window) not in found:
                costs = found[kv, window] = nats(llm, windows[window], READ).tolist()
                if results is not None:
                    with results.open("a") as file:
                        file.write(json.dumps([kv, window, costs]) + "\n")
    return {kv: np.array([found[kv, window] for window in order]) for kv in llms} if order else {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--kv", nargs="+", default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--after", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--results", type=Path, help="of one model and text")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    windows = windows_of(a.model, a.text)
    room = a.after + (a.turns + 1) * TURN
    with ExitStack() as stack:
        llms = {kv: stack.enter_context(LLM(a.model, threads=a.threads, context=room, kv=kv)) for kv in a.kv}
        found = perplexities(llms, windows, a.windows, a.results)
        first = a.kv[0]
        for kv in found:
            print(f"{kv:10s} {told(found[kv], found[first])}", flush=True)
        if not a.turns:
            return
        ids = [token for window in windows[: -(-a.after // len(windows[0]))] for token in window][: a.after]
        sequences = {kv: llm.engine.decoder.new_cache(room) for kv, llm in llms.items()}
        for kv, llm in llms.items():
            llm.engine.decoder.forward(ids, sequences[kv], logits="none")
            turn_s(llm, sequences[kv], ids[0])  # launches are recorded
        seconds = [{kv: turn_s(llm, sequences[kv], ids[0]) for kv, llm in llms.items()} for _ in range(a.turns)]
        for kv, sequence in sequences.items():
            print(f"{kv:10s} memory {sequence.n_bytes / sequences[first].n_bytes:.4f}, ", end="")
            rate = TURN / median(each[kv] for each in seconds)
            ratio = median(each[first] / each[kv] for each in seconds)
            print(f"after {a.after} tokens {rate:.1f} tok/s, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
