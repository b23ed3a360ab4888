"""Write a GGUF of a real model's shape with random weights, for speed and memory measurements.

python benchmarks/random_model.py qwen3.5-4b OUT.gguf [--type Q4_K] [--layers 8]
python benchmarks/random_model.py --list

What it generates means nothing, but shapes, types and the file's layout are the real model's. Tensors follow from the
metadata: whatever edgerun needs of a family is written. The head is Q6_K; what is small stays F32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.tensors import stays_f32
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import quantize
from edgerun.models.reading import WholeModel, read_spec
from edgerun.models.shapes import known_tensors

_POOL = 1 << 20  # random weights of a type, of whose blocks tensors are made
_PIECE = 1 << 24  # weights of a tensor made at a time
_QWEN35 = {
    "context_length": 262144,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": 64,
    "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
    "rope.freq_base": 1e7,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 16,
    "ssm.time_step_rank": 32,
    "ssm.inner_size": 4096,
    "full_attention_interval": 4,
    "attention.head_count": 16,
}
# name -> (architecture, vocabulary, whether the head is the embedding, metadata under the architecture's name)
SHAPES: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
    "qwen3.5-4b": (
        "qwen35",
        248320,
        True,
        _QWEN35
        | {"block_count": 32, "embedding_length": 2560, "feed_forward_length": 9216, "attention.head_count_kv": 4},
    ),
    "qwen3.6-35b-a3b": (
        "qwen35moe",
        248320,
        False,
        _QWEN35
        | {
            "block_count": 40,
            "embedding_length": 2048,
            "attention.head_count_kv": 2,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
        },
    ),
    "glm-4.7-flash": (
        "deepseek2",
        154880,
        False,
        {
            "block_count": 47,
            "context_length": 202752,
            "embedding_length": 2048,
            "feed_forward_length": 10240,
            "attention.head_count": 20,
            "attention.head_count_kv": 1,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.q_lora_rank": 768,
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "rope.dimension_count": 64,
            "rope.freq_base": 1e6,
            "leading_dense_block_count": 1,
            "expert_count": 64,
            "expert_used_count": 4,
            "expert_feed_forward_length": 1536,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.8,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        },
    ),
    "gpt-oss-20b": (
        "gpt-oss",
        201088,
        False,
        {
            "block_count": 24,
            "context_length": 131072,
            "embedding_length": 2880,
            "feed_forward_length": 2880,
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 128,
            "rope.dimension_count": 64,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 2880,
        },
    ),
    "lfm2-8b-a1b": (
        "lfm2moe",
        65536,
        True,
        {
            "block_count": 24,
            "context_length": 128000,
            "embedding_length": 2048,
            "feed_forward_length": 7168,
            "attention.head_count": 32,
            "attention.head_count_kv": np.array(
                [0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 8, 0, 0], np.int32
            ),
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 1e6,
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 2,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 1792,
            "expert_gating_func": 2,
        },
    ),
}
_EXPERTS = {"gpt-oss-20b": GgmlType.MXFP4}  # files of it have these, whatever the rest is


def shapes_of(architecture: str, vocabulary: int, metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a model with this metadata must have, by their names in the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.gguf"
        with GgufWriter(path, architecture) as writer:
            for key, value in metadata.items():
                writer.add(f"{architecture}.{key}", value)
        with open_gguf(path) as numbers:
            spec = read_spec(numbers, WholeModel(vocabulary, sparse=False))
    biased = metadata.get("expert_gating_func") == 2  # such routers have one in every file
    return {
        name: shape
        for name, (shape, needed) in known_tensors(spec).items()
        if needed or (biased and name.endswith("exp_probs_b.bias"))
    }


class Blocks:
    """Random blocks of any type, with weights of about the standard deviation that keeps a product's size."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pools: dict[tuple[GgmlType, int], NDArray[np.uint8]] = {}

    def of(self, type: GgmlType, shape: tuple[int, ...], spread: float | None = None) -> Iterator[NDArray[np.uint8]]:
        """A tensor's rows (n, row_bytes) u8, piece by piece."""
        rows, cols = prod(shape[:-1]), shape[-1]
        pool = self._pools.get((type, cols))
        if pool is None:
            weights = self._rng.standard_normal(_POOL).astype(np.float32) * (spread or cols**-0.5)
            raw = quantize(weights[: _POOL // type.block_size * type.block_size].reshape(1, -1), type)
            pool = self._pools[type, cols] = raw.view(np.uint8).reshape(-1, type.row_bytes(type.block_size))
        step = max(1, _PIECE // cols)
        for low in range(0, rows, step):
            some = min(step, rows - low)
            chosen = self._rng.integers(0, len(pool), some * cols // type.block_size)
            yield pool[chosen].reshape(some, -1)


def write(path: Path, name: str, type: GgmlType, layers: int = 0) -> None:
    """Write the model `name` of SHAPES, `layers` of it (0: all)."""
    architecture, vocabulary, tied, metadata = SHAPES[name]
    metadata = metadata | ({"block_count": layers} if layers else {})
    rng = np.random.default_rng(0)
    blocks = Blocks(rng)
    shapes = shapes_of(architecture, vocabulary, metadata)
    if not tied:
        shapes["output.weight"] = shapes["token_embd.weight"]
    with GgufWriter(path, architecture) as writer:
        writer.add("general.name", f"synthetic {name}")
        writer.add("tokenizer.ggml.model", "none")
        for key, value in (metadata | {"vocab_size": vocabulary}).items():
            writer.add(f"{architecture}.{key}", value)
        for tensor, shape in shapes.items():
            if len(shape) == 1:  # norms near 1; decays -1 to 0
                mean = -0.5 if tensor.endswith("ssm_a") else 0.0 if tensor.endswith(".bias") else 1.0
                writer.add_tensor(tensor, (mean + 0.1 * rng.standard_normal(shape)).astype(np.float32), GgmlType.F32)
                continue
            head = tensor == "output.weight" or (tied and tensor == "token_embd.weight")
            small = shape[-2] < 256 and len(shape) == 2
            kind = GgmlType.F32 if stays_f32(tensor, shape) else GgmlType.Q6_K if head else type
            kind = _EXPERTS.get(name, kind) if "_exps." in tensor else kind
            kind = GgmlType.Q8_0 if kind != GgmlType.F32 and (small or shape[-1] % kind.block_size) else kind
            writer.add_tensor(tensor, lambda k=kind, s=shape: blocks.of(k, s), kind, shape)


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=list(SHAPES))
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--type", default="Q4_K", choices=[each.name for each in GgmlType])
    parser.add_argument("--layers", type=int, default=0, help="only so many")
    parser.add_argument("--list", action="store_true")
    a = parser.parse_args()
    if a.list:
        print("\n".join(SHAPES))
    elif a.shape is None or a.out is None:
        parser.error("say a shape and a file, or --list")
    else:
        write(a.out, a.shape, GgmlType[a.type], a.layers)


if __name__ == "__main__":
    main()
