"""Write a GGUF of LLaMA-7B's shape with a sparse ReLU feed-forward, for speed and memory measurements.

python benchmarks/sparse_model.py OUT.gguf [--layers 32] [--firing 0.1]

Random weights in Q4_0. A bias on each gate lets its neuron fire with a probability drawn from a beta distribution, so
that some are hot and most are cold, as in trained ReLU models: with --firing 0.1 the hotter half does 90 % of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import NormalDist

import numpy as np

from edgerun.formats.gguf import GgmlType, GgufWriter

D, FF, HEADS, VOCAB = 4096, 11008, 32, 32000
BALANCED = np.array([(b & 15 or 8) | (b >> 4 or 8) << 4 for b in range(256)], np.uint8)  # no -8: the mean is 0
STEEPNESS = 6.0  # of the beta distribution: the sum of its parameters


def blocks(rng: np.random.Generator, rows: int, cols: int, spread: float) -> np.ndarray:
    """Random Q4_0 rows of about this standard deviation, (rows, row_bytes) u8."""
    raw = BALANCED[rng.integers(0, 256, (rows * cols // 32, 18), dtype=np.uint8)]
    raw[:, :2] = np.frombuffer(np.float16(spread / 4.6).tobytes(), np.uint8)
    return raw.reshape(rows, -1)


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--firing", type=float, default=0.1, help="share of neurons that fire for a token")
    a = parser.parse_args()
    rng, normal = np.random.default_rng(0), NormalDist()
    with GgufWriter(a.out, "llama") as w:
        w.add("general.name", "synthetic sparse llama-7b")
        for key, value in {
            "block_count": a.layers,
            "context_length": 4096,
            "embedding_length": D,
            "feed_forward_length": FF,
            "attention.head_count": HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": VOCAB,
            "hidden_activation": "relu",
        }.items():
            w.add(f"llama.{key}", value)
        w.add("tokenizer.ggml.model", "none")

        def matrix(name: str, rows: int, cols: int, spread: float) -> None:
            w.add_tensor(name, blocks(rng, rows, cols, spread), GgmlType.Q4_0)

        def vector(name: str, values: np.ndarray) -> None:
            w.add_tensor(name, values.astype(np.float32), GgmlType.F32)

        matrix("token_embd.weight", VOCAB, D, 1.0)
        vector("output_norm.weight", np.ones(D))
        matrix("output.weight", VOCAB, D, D**-0.5)
        for layer in range(a.layers):
            at = f"blk.{layer}."
            for part in ("attn_norm", "ffn_norm"):
                vector(f"{at}{part}.weight", np.ones(D))
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                matrix(f"{at}{part}.weight", D, D, D**-0.5)
            matrix(f"{at}ffn_gate.weight", FF, D, D**-0.5)
            odds = np.clip(rng.beta(STEEPNESS * a.firing, STEEPNESS * (1 - a.firing), FF), 1e-6, 1 - 1e-6)
            vector(f"{at}ffn_gate.bias", np.array([normal.inv_cdf(p) for p in odds.tolist()]))
            matrix(f"{at}ffn_up.weight", FF, D, D**-0.5)
            matrix(f"{at}ffn_down_t.weight", FF, D, FF**-0.5)


if __name__ == "__main__":
    main()
