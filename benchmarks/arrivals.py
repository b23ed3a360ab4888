"""A long prompt arrives while others decode: how long they wait for their next tokens, and the prompt for its first.

    python benchmarks/arrivals.py MODEL.gguf [--prompt 2000] [--others 4] [--tpot 0.25] [--rounds 3]

Every prompt is other random tokens, so that nothing of it is there already. The rounds take turns: a prompt alone, then
one beside others, whose gaps count from when it was given until it has its first token.
"""

from __future__ import annotations

import argparse
import threading
from statistics import median
from time import perf_counter, sleep

import numpy as np

from edgerun import LLM

OWN_PROMPT, BEFORE = 16, 8  # tokens of each of the others: of its prompt, and decoded before the prompt arrives


class Others:
    """Answers that are read in threads of their own until the `with` block ends. times: of each, when a token came."""

    def __init__(self, llm: LLM, prompts: list[list[int]]) -> None:
        self.times: list[list[float]] = [[] for _ in prompts]
        self._ended = threading.Event()
        self._llm = llm
        self._threads = [threading.Thread(target=self._read, args=each) for each in enumerate(prompts)]

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        while min(len(times) for times in self.times) < BEFORE:
            sleep(0.001)
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _read(self, number: int, prompt: list[int]) -> None:
        for _ in self._llm.stream(prompt, ignore_eos=True, temperature=0):
            self.times[number].append(perf_counter())
            if self._ended.is_set():
                return


def first_token_s(llm: LLM, prompt: list[int]) -> tuple[float, float]:
    """When the prompt was given, and when its first token came."""
    begun = perf_counter()
    llm.complete(prompt, max_tokens=1, ignore_eos=True, temperature=0)
    return begun, perf_counter()


def gaps_of(times: list[float], low: float, high: float) -> list[float]:
    """Seconds between tokens, of gaps that touch low .. high."""
    return [after - before for before, after in zip(times, times[1:], strict=False) if after > low and before < high]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--others", type=int, default=4)
    parser.add_argument("--tpot", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    ratios: list[float] = []
    worst: list[float] = []
    with LLM(a.model, threads=a.threads, tpot_s=a.tpot, context=max(4096, a.prompt + 64)) as llm:
        random = np.random.default_rng(1)

        def some(n: int) -> list[int]:
            return [int(each) for each in random.integers(10, llm.vocab_size - 10, n)]

        first_token_s(llm, some(300))  # launches are recorded
        for number in range(a.rounds):
            begun, ended = first_token_s(llm, some(a.prompt))
            alone = ended - begun
            with Others(llm, [some(OWN_PROMPT) for _ in range(a.others)]) as others:
                calm = max(gap for times in others.times for gap in gaps_of(times[2:], 0.0, perf_counter()))
                begun, ended = first_token_s(llm, some(a.prompt))
                sleep(0.05)
            gaps = [gap for times in others.times for gap in gaps_of(times, begun, ended)]
            ratios.append((ended - begun) / alone)
            worst.append(max(gaps))
            print(
                f"round {number + 1}: prompt alone {alone:.2f} s, beside {a.others} {ended - begun:.2f} s "
                f"({ratios[-1]:.2f}); their gaps before at most {calm:.3f} s, beside it median {median(gaps):.3f}, "
                f"worst {worst[-1]:.3f} s",
                flush=True,
            )
    print(f"prompt: median {median(ratios):.2f} of alone; worst gap {max(worst):.3f} s, tpot_s {a.tpot}")


if __name__ == "__main__":
    main()
