"""Every type of weights on TinyLlama-1.1B's shape: edgerun and llama.cpp in turn, and the share of the memory's rate.

python benchmarks/all_types.py FOLDER [--llamacpp-python VENV/bin/python] [--layers 4] [--types Q4_0,IQ2_XS]
    [--kernels auto,portable] [-r 3] [--keep]

Writes a file a type into FOLDER, random weights with the embedding and the head in the same type, measures it and
removes it. The first of --kernels is compared with llama.cpp, the others with the first. With fewer layers than the
model's 22 the head counts for more, in both engines alike. The memory's share is the weights that a token reads, times
the tokens a second, over what a product of one row with F32 weights reads a second: nothing holds that one up but
memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from side_by_side import CommandFailed, in_turn, ours, theirs

from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import DEQUANTIZERS, QUANTIZERS, dequantize, quantize
from edgerun.kernels import load_kernels, load_sizes
from edgerun.planning.rates import measure_products

U8 = NDArray[np.uint8]
LAYERS, D, FF, HEADS, KV_HEADS, VOCAB = 22, 2048, 5632, 32, 4, 32000
DRAWN = 64  # rows of random weights, which repeat: no engine looks
LLAMA_CPP = "llama.cpp"


def random_rows(rng: np.random.Generator, type: GgmlType, rows: int, cols: int, spread: float) -> U8:
    """Weights of this standard deviation, (rows, row_bytes) u8; random codes where nothing here quantises."""
    if type in QUANTIZERS:
        drawn = quantize(spread * rng.standard_normal((DRAWN, cols), np.float32), type)
    else:
        drawn = rng.integers(0, 256, (DRAWN, type.row_bytes(cols)), dtype=np.uint8)
        blocks = drawn.reshape(-1, type.block_bytes)
        set_scales(blocks, type, 1.0)
        set_scales(blocks, type, spread / float(dequantize(blocks, type).std()))
    return np.resize(drawn, (rows, drawn.shape[1]))


def set_scales(blocks: U8, type: GgmlType, scale: float) -> None:
    """Of blocks (n, block_bytes) of a type that no quantiser here writes: one f16, first or, in IQ1_M, in the top
    nibbles of the last four words."""
    bits = int(np.float16(scale).view(np.uint16))
    if type == GgmlType.IQ1_M:
        for word in range(4):
            blocks[:, 49 + 2 * word] = blocks[:, 49 + 2 * word] & 15 | (bits >> 4 * word & 15) << 4
    else:
        blocks[:, 0], blocks[:, 1] = bits & 255, bits >> 8


def write_model(path: Path, type: GgmlType, layers: int, vocab: int = VOCAB) -> None:
    """All matrices of one type."""
    rng = np.random.default_rng(0)
    with GgufWriter(path, "llama") as w:
        w.add("general.name", f"synthetic llama-1b {type.name}")
        for key, value in {
            "block_count": layers,
            "context_length": 4096,
            "embedding_length": D,
            "feed_forward_length": FF,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": vocab,
        }.items():
            w.add(f"llama.{key}", value)
        w.add("tokenizer.ggml.model", "none")

        def matrix(name: str, rows: int, cols: int, spread: float) -> None:
            w.add_tensor(f"{name}.weight", random_rows(rng, type, rows, cols, spread), type)

        def norm(name: str) -> None:
            w.add_tensor(f"{name}.weight", np.ones(D, np.float32), GgmlType.F32)

        matrix("token_embd", vocab, D, 1.0)
        norm("output_norm")
        matrix("output", vocab, D, D**-0.5)
        for layer in range(layers):
            for name in ("attn_norm", "ffn_norm"):
                norm(f"blk.{layer}.{name}")
            kv = D // HEADS * KV_HEADS
            for name, rows, cols in (
                *(("attn_q", D, D), ("attn_k", kv, D), ("attn_v", kv, D), ("attn_output", D, D)),
                *(("ffn_gate", FF, D), ("ffn_up", FF, D), ("ffn_down", D, FF)),
            ):
                matrix(f"blk.{layer}.{name}", rows, cols, cols**-0.5)


def weight_bytes(path: Path) -> int:
    """What a token reads: all but the embedding."""
    with open_gguf(path) as gguf:
        return sum(info.n_bytes for name, info in gguf.tensors.items() if name != "token_embd.weight")


def memory_rate(kernels: str, threads: int) -> float:
    """Bytes/s, as `edgerun plan` measures products."""
    loaded = load_kernels(kernels, threads=threads)
    try:
        return measure_products(loaded, GgmlType.F32, D, load_sizes(kernels)).decode_bytes_per_s
    finally:
        loaded.close()


def main() -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llamacpp-python", help="interpreter with llama-cpp-python; without it edgerun runs alone")
    parser.add_argument("--types", default=",".join(type.name for type in DEQUANTIZERS))
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--decode", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="the files, some 20 GB of all types with all layers; the next run takes them",
    )
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    first, *others = a.kernels.split(",")
    sizes = (a.prompt, a.decode, a.threads)
    a.folder.mkdir(parents=True, exist_ok=True)
    results = {}
    if not a.json:
        print(f"{a.layers} of {LAYERS} layers, prompt {a.prompt}, decode {a.decode}, medians of {a.repetitions}")
    for type in map(GgmlType.__getitem__, a.types.split(",")):
        path = a.folder / f"llama-1b-{a.layers}-{type.name}.gguf"
        if not path.exists():
            write_model(path, type, a.layers)
        rate = memory_rate(first, a.threads)  # anew each time: a machine's speed changes
        commands = {kernels: ours(path, *sizes, kernels) for kernels in (first, *others)}
        found = {}
        if a.llamacpp_python:
            peer = {LLAMA_CPP: theirs(a.llamacpp_python, path, *sizes)}
            try:
                found = in_turn(peer | commands, a.repetitions)
            except CommandFailed as error:
                print(f"{type.name}: {error}", file=sys.stderr)
        found = found or in_turn(commands, a.repetitions)
        share = weight_bytes(path) * found[first]["decode_tok_s"] / rate
        results[type.name] = {"figures": found, "memory_bytes_per_s": rate, "memory_share": share}
        if not a.json:
            print(line(type, found, first, others, rate, share), flush=True)
        if not a.keep:
            path.unlink()
    if a.json:
        print(json.dumps(results, indent=2))


def line(
    type: GgmlType, found: dict[str, dict[str, float]], first: str, others: list[str], rate: float, share: float
) -> str:
    """Of the table."""
    said = f"{type.name:8s} {8 * type.block_bytes / type.block_size:5.2f} bits"
    for what in ("decode", "prompt"):
        mine = found[first][f"{what}_tok_s"]
        said += f"  {what} {mine:7.1f}"
        if LLAMA_CPP in found:
            peer = found[LLAMA_CPP][f"{what}_tok_s"]
            said += f" / {peer:7.1f} = {mine / peer:5.2f}"
        said += "".join(f", {name} {found[name][f'{what}_tok_s'] / mine:.2f}" for name in others)
    return f"{said}  memory {share:4.0%} of {rate / 1e9:.0f} GB/s"


if __name__ == "__main__":
    main()
