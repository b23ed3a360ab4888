"""Perplexity of a text with edgerun and with llama.cpp, on the same tokens in the same windows.

python benchmarks/perplexity.py MODEL.gguf TEXT.txt [--llamacpp-python VENV/bin/python] [--exact F32.gguf]
    [--windows 100] [--results FILE.jsonl]

Windows are llama-perplexity's: 512 tokens that follow each other, the first replaced by the begin-of-text token if the
model wants one, and the second half scored. They are taken in an order in which any number of them is spread over the
whole text. --exact adds what edgerun says with the same weights as F32 (`edgerun quantize MODEL F32.gguf --type F32`),
where no activation is rounded, and how far the others' probabilities are from its. --results keeps what was computed,
and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from engines import Engine

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
                scores = found[name, window] = engine.score(windows[window], READ, **files)
                keep(a.results, [a.model.name, name, window, *scores])
    print(f"{a.model.name}: {len(order)} of {len(windows)} windows, {len(order) * SCORED} tokens scored")
    mean = {name: np.array([found[name, window] for window in order]) / SCORED for name in engines}  # a token
    for name, each in mean.items():
        nats, divergence = each.mean(axis=0)
        line = f"{name:10s} {np.exp(nats):10.4f}"
        print(line if name == EXACT or not a.exact else f"{line}  divergence from {EXACT} {divergence:.5f}")
    for one, other in combinations(mean, 2):
        apart = mean[one][:, 0] - mean[other][:, 0]  # window by window: what is hard for one is hard for the other
        error = apart.std(ddof=1) / len(order) ** 0.5 if len(order) > 1 else float("nan")
        print(f"{one} against {other}: {100 * np.expm1(apart.mean()):+.3f} % (standard error {100 * error:.3f})")


def kept(results: Path | None, model: str) -> dict[tuple[str, int], tuple[float, float]]:
    """What earlier runs have found: (engine, window) -> scores."""
    if results is None or not results.exists():
        return {}
    lines = map(json.loads, results.read_text().splitlines())
    return {(name, window): (nats, divergence) for file, name, window, nats, divergence in lines if file == model}


def keep(results: Path | None, found: list[str | int | float]) -> None:
    """Append a line, at once: what was computed stays."""
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
