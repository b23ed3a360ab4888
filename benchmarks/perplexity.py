"""Perplexity of a text with edgerun and with llama.cpp, on the same tokens in the same windows.

python benchmarks/perplexity.py MODEL.gguf TEXT.txt [--llamacpp-python VENV/bin/python] [--exact F32.gguf]
    [--windows 100] [--results FILE.jsonl]

Windows are llama-perplexity's: 512 tokens that follow each other, the first replaced by the begin-of-text token if the
model wants one, and the second half scored. They are taken in an order in which any number of them is spread over the
whole text. --exact adds what edgerun says with the same weights as F32 (`edgerun quantize MODEL F32.gguf --type F32`),
where no activation is rounded, how far the others' probabilities are from its, and, where two others think different
tokens the likeliest, how often it sides with each. --results keeps what was computed,
and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from engines import Engine, Scores

from edgerun.text import load_tokenizer

WINDOW, READ = 512, 256
SCORED = WINDOW - READ - 1
EXACT = "exact"
MEMORY = Path("/dev/shm")  # a window's probabilities are hundreds of megabytes: not to the disk
GOLDEN = (5**0.5 - 1) / 2


def windows_of(model: Path, text: Path) -> list[list[int]]:
    """Whole ones only."""
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    windows = [ids[low : low + WINDOW] for low in range(0, len(ids) - WINDOW + 1, WINDOW)]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows = [[tokenizer.bos_id, *window[1:]] for window in windows]
    return windows


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llamacpp-python", help="interpreter with llama-cpp-python")
    parser.add_argument("--exact", type=Path, help="the same weights as F32")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--windows", type=int)
    parser.add_argument("--results", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=2)
    a = parser.parse_args()
    windows = windows_of(a.model, a.text)
    order = sorted(range(len(windows)), key=lambda i: i * GOLDEN % 1)[: a.windows]
    engines = {}
    if a.exact:
        engines[EXACT] = Engine("edgerun", a.exact, kernels=a.kernels, threads=a.threads)
    engines["edgerun"] = Engine("edgerun", a.model, kernels=a.kernels, threads=a.threads)
    if a.llamacpp_python:
        engines["llama.cpp"] = Engine("llama.cpp", a.model, python=a.llamacpp_python, threads=a.threads)
    found = kept(a.results, a.model.name)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        saved = Path(folder) / "exact"
        for window in order:
            if all((name, window) in found for name in engines):
                continue
            for name, engine in engines.items():
                files = {"save": saved} if name == EXACT else {"against": saved} if a.exact else {}
                found[name, window] = scores = engine.score(windows[window], READ, **files)
                keep(a.results, [a.model.name, name, window, *astuple(scores)])
    print(f"{a.model.name}: {len(order)} of {len(windows)} windows, {len(order) * SCORED} tokens scored")
    scores_of = {name: [found[name, window] for window in order] for name in engines}
    for name, each in scores_of.items():
        nats, divergence = np.mean([[scores.nats, scores.divergence] for scores in each], axis=0) / SCORED
        line = f"{name:10s} {np.exp(nats):10.4f}"
        print(line if name == EXACT or not a.exact else f"{line}  divergence from {EXACT} {divergence:.5f}")
    for one, other in combinations(engines, 2):
        both = zip(scores_of[one], scores_of[other], strict=True)
        apart = np.array([mine.nats - theirs.nats for mine, theirs in both]) / SCORED  # what is hard is so for both
        error = apart.std(ddof=1) / len(order) ** 0.5 if len(order) > 1 else float("nan")
        line = f"{one} against {other}: {100 * np.expm1(apart.mean()):+.3f} % (standard error {100 * error:.3f})"
        if EXACT in engines and EXACT not in (one, other):
            line += f"; {sides(scores_of, one, other)}"
        print(line)


def sides(scores_of: dict[str, list[Scores]], one: str, other: str) -> str:
    """With whom the exact model sides where two think different tokens the likeliest."""
    likeliest = [np.concatenate([scores.likeliest for scores in scores_of[name]]) for name in (one, other, EXACT)]
    mine, theirs, exact = likeliest
    differ = mine != theirs
    with_one, with_other = int((differ & (mine == exact)).sum()), int((differ & (theirs == exact)).sum())
    return f"other tokens at {differ.sum()} of {len(differ)}: {EXACT} with {one} {with_one}, with {other} {with_other}"


def kept(results: Path | None, model: str) -> dict[tuple[str, int], Scores]:
    """What earlier runs have found: (engine, window) -> scores."""
    if results is None or not results.exists():
        return {}
    lines = map(json.loads, results.read_text().splitlines())
    return {(name, window): Scores(*scores) for file, name, window, *scores in lines if file == model}


def keep(results: Path | None, found: list[Any]) -> None:
    """Append a line, at once: what was computed stays."""
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
