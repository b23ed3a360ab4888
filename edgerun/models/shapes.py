"""Which tensors a model has, and of what shape: all are checked on the header, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufFile, TensorInfo
from edgerun.kernels.interface import check_neurons
from edgerun.models.families import unused_tensors
from edgerun.models.plan import plan_of
from edgerun.models.reading import read_spec
from edgerun.models.spec import ModelSpec
from edgerun.weights.catalog import (
    EMBEDDING,
    HEAD,
    LAYER_EMBEDDING,
    LAYER_PROJECTION,
    STREAMS_CLOSING,
    STREAMS_OPENING,
    tensor_name,
)

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.")
_OLD_EXPERT = re.compile(r"blk\.[0-9]+\.ffn_(gate|up|down)\.[0-9]+\.weight")
_NEURON_ROWS = (".ffn_up.weight", ".ffn_down_t.weight")
_NO_WEIGHTS = {GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64}


def known_tensors(spec: ModelSpec) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Every tensor that the decoder uses by its one name in the file -> its numpy shape, and whether it must be there.

    The others are biases and scales of products, a head of its own, and factors of the rotation.
    """
    d, vocab = spec.d_model, spec.vocab_size
    known: dict[str, tuple[tuple[int, ...], bool]] = {
        f"{spec.family.output_norm}.weight": ((d,), True),
        f"{spec.family.output_norm}.bias": ((d,), False),
        "output.scale": ((1,), False),
    }
    if spec.family.head_bias:
        known["output.bias"] = ((vocab if spec.shard is None else spec.shard.vocabulary,), False)
    if spec.shard is None:
        known |= {EMBEDDING: ((vocab, d), True), HEAD: ((vocab, d), False)}
    else:
        known |= {EMBEDDING: ((vocab, d), True)} if spec.shard.text else {}
        known[HEAD] = (spec.shard.vocabulary, d), True
    if spec.rope_dim:
        known |= {name: ((spec.rope_dim // 2,), False) for name in ROPE_FACTORS}
    if spec.per_layer_width:
        cols = spec.n_layers * spec.per_layer_width
        known |= {LAYER_EMBEDDING: ((vocab, cols), True), LAYER_PROJECTION: ((cols, d), True)}
        known["per_layer_proj_norm.weight"] = (spec.per_layer_width,), True
    if spec.streams > 1:
        known |= {name: ((spec.streams - 1, d, d), True) for name in (STREAMS_OPENING, STREAMS_CLOSING)}
    for layer, plan in enumerate(plan_of(spec)):
        known |= {tensor_name(layer, part): (each.shape, each.needed) for part, each in plan.tensors.items()}
    if not spec.family.norm_biases:
        known = {name: each for name, each in known.items() if not name.endswith("_norm.bias")}
    return known


def load_spec(gguf: GgufFile) -> ModelSpec:
    """The model's numbers with the tensors that it uses, each checked against them; all others are refused, or said to
    be unused (`ModelSpec.unused`). Raises FormatError, UnsupportedError."""
    spec = read_spec(gguf)
    tensors, unused = check_tensors(gguf, spec)
    return replace(spec, tensors=tensors, unused=unused)


def check_tensors(gguf: GgufFile, spec: ModelSpec) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The tensors that the model uses, and what the user should know of those that it does not.

    Raises FormatError naming the tensor, what was expected and what there is; UnsupportedError for tensors that the
    family does not have: without them the model would be another one.
    """
    known = known_tensors(spec)
    unused = _unused(gguf, spec, known)
    tensors = {name: info for name, info in gguf.tensors.items() if name in known}
    for name, (shape, needed) in known.items():
        info = tensors.get(name)
        if info is None:
            if needed:
                raise FormatError(f"{gguf.path}: the tensor {name} {shape} is missing; a {spec.architecture} needs it")
            continue
        if _rows_of(info.shape) != _rows_of(shape):
            raise FormatError(f"{gguf.path}: {name} is {tuple(info.shape)}; the metadata says {shape}")
        tensors[name] = replace(info, shape=shape)
        if info.type in _NO_WEIGHTS:
            raise UnsupportedError(f"{gguf.path}: {name} holds {info.type.name}, not weights")
        if spec.sparse and name.endswith(_NEURON_ROWS):
            check_neurons(f"{gguf.path}: {name}", info.type, shape[1])
    factors = tuple(name for name in ROPE_FACTORS if name in tensors)
    if factors not in ((), ROPE_FACTORS[:1], ROPE_FACTORS[1:]):
        raise FormatError(
            f"{gguf.path}: of the factors of the rotation a file has none, {ROPE_FACTORS[0]}, or both others; "
            f"this one has {', '.join(factors)}"
        )
    return tensors, unused


def _rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without dimensions of one before the others: some converters write a vector as a matrix of one row, which for
    llama.cpp is the same."""
    ones = next((at for at, each in enumerate(shape[:-1]) if each != 1), len(shape) - 1)
    return tuple(shape[ones:])


def _unused(gguf: GgufFile, spec: ModelSpec, known: Mapping[str, object]) -> tuple[str, ...]:
    """A sentence on each kind of tensor that the family declares to be of no use."""
    kinds = [(re.compile(pattern), what) for pattern, what in unused_tensors(spec.family).items()]
    found: dict[str, list[str]] = {}
    strange = []
    for name in gguf.tensors:
        if name in known:
            continue
        what = next((what for pattern, what in kinds if pattern.fullmatch(name)), None)
        if what is None and _is_further(gguf, spec, name):
            what = "layers that guess further tokens"
        if what is None and name in ROPE_FACTORS:  # else it would be known
            what = "factors of a rotation that no layer does"
        if what is None:
            strange.append(name)
        else:
            found.setdefault(what, []).append(name)
    if any(_OLD_EXPERT.fullmatch(name) for name in strange):
        raise UnsupportedError(
            f"{gguf.path}: every expert is a tensor of its own ({_listed(strange)}), as converters wrote them until "
            "April 2024; fetch a file that was made later"
        )
    if strange and all(name.endswith(".scale") for name in strange):
        raise UnsupportedError(
            f"{gguf.path}: the file has factors for whole tensors ({_listed(strange)}) that edgerun applies to "
            "the matrices of layers and to the head only, not to embeddings: without them the model would give other "
            "answers"
        )
    if strange:
        raise UnsupportedError(
            f"{gguf.path}: the file has tensors that a {spec.architecture} does not have ({_listed(strange)}); without "
            "them the model would give other answers: it is of another family, or malformed"
        )
    return tuple(f"not used: {what} ({_listed(names)})" for what, names in found.items())


def _is_further(gguf: GgufFile, spec: ModelSpec, name: str) -> bool:
    """Whether the tensor is of a layer beyond the model's that the file declares as one of multi-token prediction."""
    match = _LAYER.match(name)
    blocks = gguf.metadata.get(f"{spec.architecture}.block_count")
    return match is not None and isinstance(blocks, int) and spec.n_layers <= int(match[1]) < blocks


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name)[1:-1] for name in names[:3])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > 3 else "")
