"""What narrow activations cost when a few channels are far larger than the rest, and what undoes it.

python benchmarks/outliers.py MODEL.gguf TEXT.txt [--factor 50] [--channels 3] [--tokens 4000] [--scheme w8a8]

Plants outliers in a dense model without changing what it computes: channels of norms are made `factor` times larger and
the matrices that read them as much smaller, as are rows of ffn_up and attn_v with the columns of ffn_down and
attn_output. Prints the perplexity of the text on the kernels, with fp16 graphs, and with the scheme: as it is, with
shadow execution, rotated, and both.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, open_gguf
from edgerun.formats.quants import dequantize
from edgerun.kernels import load_kernels
from edgerun.models import Decoder, load_spec
from edgerun.models.spec import ModelSpec
from edgerun.prefill.choice import parse_choice
from edgerun.prefill.opening import open_backend
from edgerun.text import load_tokenizer
from edgerun.weights import ResidentStore

WINDOW = 256


def main() -> None:
    """Plant, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--factor", type=float, default=50.0)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--device", default="ort-cpu")
    a = parser.parse_args()
    kernels = load_kernels("auto")
    ids = load_tokenizer(a.model).encode(a.text.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "planted.gguf"
        with open_gguf(a.model) as gguf:
            plant(gguf, load_spec(gguf), planted, a.factor, a.channels)
        with open_gguf(planted) as gguf:
            spec = load_spec(gguf)
            decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
            scored, ranges_on = ids[: a.tokens], ids[-WINDOW * 2 :]  # ranges are found on another part of the text
            best = perplexity(decoder, scored)
            print(f"{len(scored)} tokens, {a.channels} channels times {a.factor:g}")
            print(f"{'kernels (F32 weights)':28s} {best:9.4f}")
            base = 0.0
            for text in (
                "fp16",
                f"{a.scheme}:no-shadow",
                a.scheme,
                f"{a.scheme}:rotate:no-shadow",
                f"{a.scheme}:rotate",
            ):
                choice = parse_choice(f"{a.device}:{text}")
                backend = open_backend(gguf, decoder, choice, ranges_on, Path(folder), threads=kernels.threads)
                decoder.prompt_backend = backend
                found = perplexity(decoder, scored)
                decoder.prompt_backend = None
                backend.close()
                base = base or found
                cut = [each.ranges.shadowed for each in backend.built.layers]
                shadows = sum(map(len, cut))
                print(f"{text:28s} {found:9.4f}  {100 * (found / base - 1):+8.2f} %  {shadows} products shadowed")
    kernels.close()


def perplexity(decoder: Decoder, ids: list[int]) -> float:
    """Of all but the first token of every window."""
    total, count = 0.0, 0
    for low in range(0, len(ids) - 1, WINDOW):
        window = ids[low : low + WINDOW]
        if len(window) < 2:
            break
        logits = decoder.forward(window, decoder.new_cache(len(window)), logits="all")
        assert logits is not None
        some = logits[:-1].astype(np.float64)
        some -= some.max(axis=1, keepdims=True)
        chosen = some[np.arange(len(window) - 1), window[1:]]
        total += float((np.log(np.exp(some).sum(axis=1)) - chosen).sum())
        count += len(window) - 1
    return float(np.exp(total / count))


def plant(gguf: GgufFile, spec: ModelSpec, out: Path, factor: float, channels: int) -> None:
    """The same function with outliers, as F32."""
    rng = np.random.default_rng(0)
    tensors = {name: np.array(dequantize(gguf.raw(name), info.type), np.float32) for name, info in gguf.tensors.items()}

    def grow(layer: int, larger: str, axis: int, smaller: tuple[str, ...], pick: np.ndarray) -> None:
        at = tensors[f"blk.{layer}.{larger}.weight"]
        at[pick] *= factor  # a norm's channels, or a matrix' rows
        for name in smaller:
            tensors[f"blk.{layer}.{name}.weight"][:, pick] /= factor

    for layer, numbers in enumerate(spec.layers):
        group = numbers.n_heads // numbers.n_kv_heads
        grow(layer, "attn_norm", 0, ("attn_q", "attn_k", "attn_v"), rng.choice(spec.d_model, channels, replace=False))
        grow(layer, "ffn_norm", 0, ("ffn_gate", "ffn_up"), rng.choice(spec.d_model, channels, replace=False))
        grow(layer, "ffn_up", 0, ("ffn_down",), rng.choice(numbers.d_ff, channels, replace=False))
        values = numbers.n_kv_heads * numbers.head_dim_v  # of which one is read by its group of heads
        value = int(rng.integers(0, values))
        tensors[f"blk.{layer}.attn_v.weight"][value] *= factor
        head, at = divmod(value, numbers.head_dim_v)
        for each in range(head * group, (head + 1) * group):
            tensors[f"blk.{layer}.attn_output.weight"][:, each * numbers.head_dim_v + at] /= factor
    with GgufWriter(out, gguf.architecture) as writer:
        for key, value in gguf.metadata.items():
            if key not in ("general.architecture", "general.alignment"):
                writer.add(key, value)
        for name, array in tensors.items():
            writer.add_tensor(name, array, GgmlType.F32)


if __name__ == "__main__":
    main()
