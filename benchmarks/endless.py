"""A text without an end in a window of fixed size: what memory it takes, and whether the model falls apart.

    python benchmarks/endless.py MODEL.gguf [--window 1024] [--sinks 4] [--tokens 20000] [--text FILE.txt]

Without --text the model writes on by itself (temperature 1, of the thousand likeliest tokens); with it a text is fed
and scored token by token, as StreamingLLM did (Xiao et al. 2024). A line for every thousand tokens: their perplexity,
pages of keys and values, memory of the process. A model that writes for long repeats itself, and finds that ever
likelier. Thousands of a text are not equally hard, so the last one is scored once more by the model without a window,
which begins a window before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from edgerun import LLM
from edgerun.device.memory import process_memory

THOUSAND = 1000
AT_ONCE = 50  # rows of logits: a vocabulary can be wide
MIB = 1 << 20


def written(llm: LLM, tokens: int, seed: int) -> Iterator[float]:
    """The log-probability of each token that the model writes."""
    spread = {"temperature": 1.0, "top_k": 1000, "top_p": 1.0, "min_p": 0.0}
    for chunk in llm.stream("Once upon a time", max_tokens=tokens, ignore_eos=True, logprobs=0, seed=seed, **spread):
        yield from (each.logprob for each in chunk.logprobs or ())


def fed(llm: LLM, ids: list[int]) -> Iterator[float]:
    """The log-probability of each of `ids` but the first, after all before it that the model sees."""
    decoder = llm.engine.decoder
    sequence = decoder.new_cache(len(ids))
    for low in range(0, len(ids) - 1, AT_ONCE):
        some = ids[low : min(low + AT_ONCE, len(ids) - 1)]
        logits = decoder.forward(some, sequence, logits="all")
        assert logits is not None
        down = logits - logits.max(axis=1, keepdims=True)
        chosen = down[np.arange(len(some)), ids[low + 1 : low + 1 + len(some)]]
        yield from (chosen - np.log(np.exp(down).sum(axis=1, dtype=np.float64))).tolist()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    ids: list[int] = []
    found: list[float] = []
    perplexities: list[float] = []
    resident: list[int] = []
    with LLM(a.model, threads=a.threads, window=a.window, sinks=a.sinks, kv=a.kv) as llm:
        if a.text:
            ids = llm.tokenize(a.text.read_text("utf-8"))[: a.tokens + 1]
        begun = perf_counter()
        for logprob in fed(llm, ids) if a.text else written(llm, a.tokens, a.seed):
            found.append(logprob)
            if len(found) % THOUSAND == 0:
                perplexities.append(float(np.exp(-np.mean(found[-THOUSAND:]))))
                resident.append(process_memory().resident_bytes)
                pages = llm.engine.decoder.pages.ledger.held_bytes / MIB
                rate = THOUSAND / (perf_counter() - begun)
                begun = perf_counter()
                line = f"{len(found):6d} tokens  perplexity {perplexities[-1]:8.2f}  pages {pages:6.1f} MiB"
                print(f"{line}  resident {resident[-1] / MIB:7.1f} MiB  {rate:6.1f} tok/s", flush=True)
    settled = resident[min(len(resident) - 1, a.window // THOUSAND + 1) :]
    print(f"perplexity of the last thousand: {perplexities[-1] / perplexities[0]:.3f} of the first's")
    print(f"resident once the window was full: {min(settled) / MIB:.1f} to {max(settled) / MIB:.1f} MiB")
    if a.text:
        with LLM(a.model, threads=a.threads, context=a.window + THOUSAND + 1, kv=a.kv) as llm:
            plain = list(fed(llm, ids[-(a.window + THOUSAND + 1) :]))[-THOUSAND:]
        print(f"the last thousand without a window: {float(np.exp(-np.mean(plain))):.2f}")


if __name__ == "__main__":
    main()
