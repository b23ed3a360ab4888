"""Write a GGUF of a real model's shape with random weights, for speed and memory measurements.

python benchmarks/random_model.py qwen3.5-4b OUT.gguf [--type Q4_K] [--layers 8] [--routing TRACE.json]
python benchmarks/random_model.py --list

What it generates means nothing, but shapes, types and the file's layout are the real model's. Tensors follow from the
metadata: whatever edgerun needs of a family is written, of the types that `edgerun quantize` would choose.

Random routers send tokens to all experts alike, which real ones do not, so that nothing can be cached. With --routing
a trace of a real mixture decides (`edgerun run --record-routing`), folded onto the shape; then feed tokens 0, 1, 2,
...: 512 have known experts. Since the layers hardly change the residual stream of such a file, guessing the next
layers' experts is almost always right with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from model_shapes import SHAPES, Shape
from numpy.typing import NDArray

from edgerun.convert.tensors import choose_type
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import quantize
from edgerun.models.reading import read_spec
from edgerun.models.shapes import known_tensors

_BANK = 1 << 23  # random weights of a type and row length, of whose rows tensors are made
_POOL = 1 << 20  # of these, those that are quantised; the others repeat their blocks
_FAINT = 0.01  # of what a matrix is otherwise: where nothing may change the residual stream
_MARGIN, _STEP = 8.0, 0.25  # logits of the experts that a trace names: of the last, and between two
_TRACED = 512  # tokens whose experts a trace decides


def shapes_of(shape: Shape, metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a file of this shape has, by their names: with `metadata`, which may have fewer layers."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.gguf"
        with GgufWriter(path, shape.architecture) as writer:
            for key, value in metadata.items():
                writer.add(f"{shape.architecture}.{key}", value)
            # Tensors of one column, from whose rows some of the numbers follow: an up of twice its down's columns has
            # the gate as well.
            telling = {"token_embd.weight": shape.vocabulary}
            for part in shape.fused:
                telling[f"blk.0.{part}.weight"] = 2
                telling |= {} if part.endswith("_exps") else {f"blk.0.{part.replace('up', 'down')}.weight": 1}
            for name, rows in telling.items():
                writer.add_tensor(name, np.zeros((rows, 1), np.float32), GgmlType.F32)
        with open_gguf(path) as numbers:
            spec = read_spec(numbers)
    return {
        name: wanted
        for name, (wanted, needed) in known_tensors(spec).items()
        if (needed or name.endswith(shape.more)) and name not in shape.without
    }


class Blocks:
    """Random blocks of any type, with weights of about the standard deviation that keeps a product's size."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._banks: dict[tuple[GgmlType, int, float], NDArray[np.uint8]] = {}

    def of(self, type: GgmlType, shape: tuple[int, ...], gain: float = 1.0) -> Iterator[NDArray[np.uint8]]:
        """A tensor's rows (n, row_bytes) u8, piece by piece: each some neighbours of the bank."""
        rows, cols = prod(shape[:-1]), shape[-1]
        bank = self._banks.get((type, cols, gain))
        if bank is None:
            bank = self._banks[type, cols, gain] = self._bank(type, cols, gain * cols**-0.5)
        step = len(bank) // 2
        for low in range(0, rows, step):
            first = int(self._rng.integers(0, len(bank) - step + 1))
            yield bank[first : first + min(step, rows - low)]

    def _bank(self, type: GgmlType, cols: int, spread: float) -> NDArray[np.uint8]:
        """(rows, row_bytes) u8, each of blocks that were drawn anew."""
        weights = self._rng.standard_normal(_POOL).astype(np.float32) * spread
        raw = quantize(weights[: _POOL // type.block_size * type.block_size].reshape(1, -1), type)
        pool = raw.view(np.uint8).reshape(-1, type.row_bytes(type.block_size))
        rows = max(2, _BANK // cols)
        return pool[self._rng.integers(0, len(pool), rows * cols // type.block_size)].reshape(rows, -1)


class Trace:
    """Which experts tokens are sent to, as a real mixture was seen to do it: a list over steps of lists over layers of
    ids, in any order. Token t of the file does what step t did, and so again from the trace's beginning.

    A trace is folded onto another shape. Layers are spread over those of the trace. Where the shape has g times as many
    experts, each g-th part of them follows another layer of the trace; where it has fewer, neighbours in the trace are
    one. Of more than the shape uses some are taken by chance."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], rng: np.random.Generator) -> None:
        self._steps: list[list[list[int]]] = json.loads(path.read_text())
        self._layers, d = metadata["block_count"], metadata["embedding_length"]
        self._experts, self._used = metadata["expert_count"], metadata["expert_used_count"]
        highest = max(each for step in self._steps for layer in step for each in layer)
        self._of = 1 << highest.bit_length()  # experts that the mixture had: some may never have been chosen
        self._tokens = min(_TRACED, d)
        basis, _ = np.linalg.qr(rng.standard_normal((d, self._tokens)))
        self.embedding = np.ascontiguousarray(
            basis.T * np.sqrt(d), np.float32
        )  # (tokens, d): at right angles, of rms 1

    def router(self, layer: int, gain: float) -> NDArray[np.float32]:
        """(experts, d): which makes a layer choose so. gain: by which the router's input is smaller than rms 1."""
        rng = np.random.default_rng(layer)
        chosen = [self._chosen(step, layer, rng) for step in self._steps]
        found = np.zeros((self._experts, self.embedding.shape[1]), np.float32)
        for token, row in enumerate(self.embedding):
            for rank, expert in enumerate(chosen[token % len(chosen)]):
                found[expert] += row * gain / len(row) * (_MARGIN + _STEP * rank)
        return found

    def _chosen(self, step: list[list[int]], layer: int, rng: np.random.Generator) -> list[int]:
        """The experts of a step."""
        first, parts = layer * len(step) // self._layers, max(1, self._experts // self._of)
        found: list[int] = []
        shuffled = [
            rng.permutation(step[(first + part * len(step) // parts) % len(step)]).tolist() for part in range(parts)
        ]
        for seen in zip(*shuffled, strict=True):
            for part, each in enumerate(seen):
                expert = part * self._of + each * min(self._experts, self._of) // self._of
                if expert not in found:
                    found.append(expert)
        if len(found) < self._used:
            raise SystemExit(f"the trace names {len(found)} experts where {self._used} are used")
        return found[: self._used]


def write(path: Path, name: str, type: GgmlType, layers: int = 0, routing: Path | None = None) -> None:
    """Write the model `name` of SHAPES, `layers` of it (0: all). routing: a trace whose experts are chosen."""
    shape = SHAPES[name]
    metadata = shape.of_layers(layers)
    rng = np.random.default_rng(0)
    blocks = Blocks(rng)
    shapes = shapes_of(shape, metadata)
    if not shape.is_tied:
        shapes["output.weight"] = shapes["token_embd.weight"]
    trace = None if routing is None else Trace(routing, metadata, rng)
    with GgufWriter(path, shape.architecture) as writer:
        writer.add("general.name", f"synthetic {name}")
        writer.add("tokenizer.ggml.model", "none")
        for key, value in (metadata | {"vocab_size": shape.vocabulary}).items():
            writer.add(f"{shape.architecture}.{key}", value)
        for tensor, wanted in shapes.items():
            if trace is not None and tensor.endswith("ffn_gate_inp.weight"):
                layer, gain = int(tensor.split(".")[1]), wanted[-1] ** 0.5 if name.startswith("gemma4") else 1.0
                writer.add_tensor(tensor, trace.router(layer, gain), GgmlType.F32)
            elif len(wanted) == 1 or tensor.endswith((".bias", ".scale")):
                writer.add_tensor(tensor, _vector(tensor, wanted, rng, trace is not None), GgmlType.F32)
            else:
                is_head = tensor == "output.weight" or (shape.is_tied and tensor == "token_embd.weight")
                kind = choose_type(tensor, wanted, type, is_head=is_head)
                kind = shape.experts if shape.experts is not None and "_exps." in tensor else kind
                faint = trace is not None and any(part in tensor for part in _ADDED)
                rows = partial(blocks.of, kind, wanted, _FAINT if faint else 1.0)
                if trace is not None and tensor == "token_embd.weight":
                    rows = partial(_known_rows, trace.embedding, kind, rows)
                writer.add_tensor(tensor, rows, kind, wanted)


_ADDED = ("attn_output.", "ssm_out.", "shortconv.out_proj.", "ffn_down")  # what gives what is added to the stream


def _vector(tensor: str, shape: tuple[int, ...], rng: np.random.Generator, is_traced: bool) -> NDArray[np.float32]:
    """Norms and factors near 1, biases near 0, decays -1 to 0. is_traced: nothing that is added to the stream, or that
    the routers read, is changed."""
    if tensor == "rope_freqs.weight":  # Gemma 4: a quarter is rotated
        return np.where(np.arange(shape[0]) < shape[0] // 4, 1.0, 1e30).astype(np.float32)
    mean = -0.5 if tensor.endswith("ssm_a") else 0.0 if tensor.endswith(".bias") else 1.0
    spread = 0.0 if is_traced and not tensor.endswith("ssm_a") else 0.1
    return (mean + spread * rng.standard_normal(shape)).astype(np.float32)


def _known_rows(
    first: NDArray[np.float32], type: GgmlType, others: Callable[[], Iterator[NDArray[np.uint8]]]
) -> Iterator[NDArray[np.uint8]]:
    """The rows of a matrix, the first of which are these."""
    known = quantize(first, type).view(np.uint8).reshape(len(first), -1)
    for piece in others():
        if len(known):
            piece = piece.copy()
            n = min(len(known), len(piece))
            piece[:n], known = known[:n], known[n:]
        yield piece


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=list(SHAPES))
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--type", default="Q4_K", choices=[each.name for each in GgmlType])
    parser.add_argument("--layers", type=int, default=0, help="only so many")
    parser.add_argument("--routing", type=Path, help="JSON of `edgerun run --record-routing`: tokens go to its experts")
    parser.add_argument("--list", action="store_true")
    a = parser.parse_args()
    if a.list:
        print("\n".join(SHAPES))
    elif a.shape is None or a.out is None:
        parser.error("say a shape and a file, or --list")
    elif a.routing is not None and "expert_count" not in SHAPES[a.shape].metadata:
        parser.error(f"{a.shape} has no experts")
    else:
        write(a.out, a.shape, GgmlType[a.type], a.layers, a.routing)


if __name__ == "__main__":
    main()
