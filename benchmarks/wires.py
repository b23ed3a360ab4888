"""What coarser numbers on the wire cost: the perplexity of a text on a group of devices by wire format.

    python -m benchmarks.wires MODEL.gguf TEXT.txt [--ranks 2,4] [--windows 12] [--way star]

Ranks are threads of this process, joined by sockets. Windows of 512 tokens spread over the text, the second half of
each scored, all formats on the same windows, beside f32 on as many ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.text import load_tokenizer
from tests.cluster.groups import linked_group
from tests.cluster.in_threads import one_thread, resident, together

WINDOW, READ = 512, 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--way", default="star")
    given = parser.parse_args()
    windows = _windows(given.model, given.text, given.windows)
    print(f"{given.model.name}, {len(windows)} windows\n\n| ranks | wire | perplexity | against f32 | ± |")
    print("|---|---|---|---|---|")
    gguf = open_gguf(given.model)
    spec = load_spec(gguf)
    with gguf, tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, given.ranks.split(",")):
            exact = np.empty(0)
            for wire in ("f32", "f16", "q8"):
                group = linked_group(ranks, given.way, wire, 3600)
                with together(gguf, spec, [1] * ranks, Path(folder), resident(one_thread), group) as made:
                    nats = np.array([_nats(made.decoder, window) for window in windows])
                exact = nats if wire == "f32" else exact
                apart = nats - exact  # window by window: what is hard for one is hard for the other
                error = apart.std(ddof=1) / len(windows) ** 0.5
                print(
                    f"| {ranks} | {wire} | {np.exp(nats.mean()):.4f} | {100 * np.expm1(apart.mean()):+.3f} % "
                    f"| {100 * error:.3f} |",
                    flush=True,
                )


def _windows(model: Path, text: Path, count: int) -> list[list[int]]:
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    starts = np.linspace(0, len(ids) - WINDOW, count).astype(int)
    windows = [ids[start : start + WINDOW] for start in starts]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows = [[tokenizer.bos_id, *window[1:]] for window in windows]
    return windows


def _nats(decoder: Decoder, window: list[int]) -> float:
    """Of a token of the second half, on average."""
    cache = decoder.new_cache(WINDOW)
    decoder.forward(window[:READ], cache)
    logits = decoder.forward(window[READ:-1], cache, logits="all").astype(np.float64)
    cache.release()
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float(np.mean(total - logits[np.arange(len(logits)), window[READ + 1 :]]))


if __name__ == "__main__":
    main()
