"""Greedy texts of edgerun and llama.cpp: where they part, and how near to each other the two tokens were there.

python benchmarks/greedy.py MODEL.gguf --llamacpp-python VENV/bin/python [-n 64] [--exact F32.gguf]

A parting is explained when both tokens were nearly as good. Printed of each prompt: how many tokens the texts have in
common, the two that follow, by how many logits each engine preferred its own, and how far their logits are apart: the
most of any of the ten likeliest. With --exact (`edgerun quantize MODEL F32.gguf --type F32`) also by how many logits
edgerun prefers its own there with the same weights and no activation rounded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engines import Engine

from edgerun.text import load_tokenizer

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a little fox who",
    "def fibonacci(n):\n    ",
    "Müller fährt 1234 km nach Zürich; 東京 is far away.",
    "The three states of matter are",
    "Q: What is 17 + 25?\nA:",
    "In 1969, the first human being",
    "To bake bread you need",
    "Dear Sir or Madam,\n",
    "The old lighthouse keeper climbed the stairs and",
)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llamacpp-python", required=True, help="interpreter with llama-cpp-python")
    parser.add_argument("--exact", type=Path, help="the same weights as F32")
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    a = parser.parse_args()
    tokenizer = load_tokenizer(a.model)
    ours = Engine("edgerun", a.model, threads=a.threads)
    theirs = Engine("llama.cpp", a.model, python=a.llamacpp_python, threads=a.threads)
    exact = Engine("edgerun", a.exact, threads=a.threads) if a.exact else None
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        mine, peer = ours.greedy(ids, a.tokens), theirs.greedy(ids, a.tokens)
        both = [(next(iter(one)), next(iter(other))) for one, other in zip(mine, peer, strict=True)]
        at = next((i for i, (one, other) in enumerate(both) if one != other), None)
        if at is None:
            print(f"{prompt!r}: the same {a.tokens} tokens")
            continue
        one, other = both[at]
        words = " or ".join(repr(tokenizer.decode([token])) for token in (one, other))
        line = f"{prompt!r}: {at} in common, then {words}: {gap(mine[at], one, other)} ours, "
        line += f"{gap(peer[at], other, one)} theirs; apart {apart(mine[at], peer[at]):.2f}"
        if exact is not None:
            (said,) = exact.greedy([*ids, *(token for token, _ in both[:at])], 1)
            line += f"; exact: {gap(said, one, other)}"
        print(line, flush=True)


def gap(logits: dict[int, float], better: int, worse: int) -> str:
    """By how much, where both are among the likeliest."""
    return f"{logits[better] - logits[worse]:+.3f}" if {better, worse} <= logits.keys() else "much"


def apart(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest difference of a token's logit."""
    return max(abs(one[token] - other[token]) for token in one.keys() & other.keys())


if __name__ == "__main__":
    main()
