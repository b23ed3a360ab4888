"""What a model file holds and where: its tensors sorted by layer and use. Read from the header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType, TensorInfo

NEURON_PARTS = ("ffn_up", "ffn_down_t")  # of a layer whose down is stored transposed: used neuron by neuron
EXPERT_PARTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")
CONVOLUTIONS = ("ssm_conv1d", "shortconv.conv")  # what recurrent layers have
HEAD_PARTS = ("attn_k_b", "attn_v_b")  # (heads, rows, cols): matrices whose rows belong to one head after another
VECTOR_PARTS = (  # small, whatever their shape: kept as f32, flat
    *(*CONVOLUTIONS, "ssm_norm", "ssm_a.", "ssm_d."),
    *("ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"),
    *("altup_predict_coef", "altup_correct_coef"),
)
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z0-9_]+(?:\.[a-z0-9_]+)?(?:\.bias|\.scale)?)")
_WEIGHT, _ADDED = ".weight", (".bias", ".scale")
_OUTSIDE = re.compile(r"([a-z0-9_]+)\.weight|([a-z0-9_]+\.(?:bias|scale))")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LAYER_EMBEDDING, LAYER_PROJECTION = "per_layer_token_embd.weight", "per_layer_model_proj.weight"
STREAMS_OPENING, STREAMS_CLOSING = "altup_proj.weight", "altup_unembd_proj.weight"  # (streams - 1, d, d)
_PAIRS = (LAYER_EMBEDDING, LAYER_PROJECTION), (STREAMS_OPENING, STREAMS_CLOSING)  # of which a file has both or neither


def tensor_name(layer: int, part: str) -> str:
    """The one name in a file of a layer's part as `LayerWeights` calls it: "attn_q", "attn_q.bias"; "ssm_a." for what
    has nothing behind its name in the file."""
    if part.endswith("."):
        return f"blk.{layer}.{part[:-1]}"
    return f"blk.{layer}.{part}" + ("" if part.endswith(_ADDED) else _WEIGHT)


def _part_of(name: str) -> tuple[int, str] | None:
    """(layer, part) of a name that `tensor_name` makes."""
    match = _LAYER.fullmatch(name.removesuffix(_WEIGHT))
    if match is None:
        return None
    part = match[2] if name.endswith((_WEIGHT, *_ADDED)) else match[2] + "."
    return (int(match[1]), part) if tensor_name(int(match[1]), part) == name else None


@dataclass(frozen=True)
class TensorRows:
    """Rows first .. first + rows - 1 of a matrix, or of each expert's matrix."""

    info: TensorInfo
    first: int
    rows: int


@dataclass(frozen=True)
class LayerTensors:
    """One layer's tensors by their names without `blk.N.` and `.weight`, as they are in `LayerWeights`."""

    vectors: dict[str, TensorInfo] = field(default_factory=dict)  # of one dimension, and VECTOR_PARTS
    matrices: dict[str, TensorInfo] = field(default_factory=dict)  # (rows, cols)
    experts: dict[str, TensorInfo] = field(default_factory=dict)  # (experts, rows, cols), keys of EXPERT_PARTS
    neurons: dict[str, TensorInfo] = field(default_factory=dict)  # (ff, d), keys NEURON_PARTS or none

    @property
    def expert_rows(self) -> tuple[TensorRows, ...]:
        """Of an expert: gate (if it has one), up and down; none where there are no experts. Gate and up may lie in one
        tensor, gate first."""
        found = []
        for part in EXPERT_PARTS:
            info = self.experts.get(part)
            if info is None:
                continue
            rows, halves = info.shape[1], 2 if part == "ffn_gate_up_exps" else 1
            found += [TensorRows(info, half * rows // halves, rows // halves) for half in range(halves)]
        return tuple(found)

    @property
    def neuron_bytes(self) -> int:
        """Of one neuron, both rows."""
        return sum(info.row_bytes for info in self.neurons.values())


@dataclass(frozen=True)
class Catalog:
    """All tensors of a model. `head` is the embedding itself where the model ties them. A shard that is never asked for
    a token's embedding has none: there `embedding` is its head."""

    embedding: TensorInfo
    head: TensorInfo
    outside: dict[str, TensorInfo]  # vectors outside the layers: "output_norm", "rope_freqs"
    further: dict[str, TensorInfo]  # matrices outside the layers by their whole names: LAYER_EMBEDDING and others
    layers: tuple[LayerTensors, ...]

    @property
    def n_experts(self) -> int:
        """Experts of a layer that has some; 0: a dense model."""
        return next((each.experts["ffn_down_exps"].shape[0] for each in self.layers if each.experts), 0)

    @property
    def n_all_experts(self) -> int:
        """Of all layers."""
        return sum(each.experts["ffn_down_exps"].shape[0] for each in self.layers if each.experts)

    @property
    def recurrent(self) -> bool:
        """Whether some layers are."""
        return any(part in layer.vectors for layer in self.layers for part in CONVOLUTIONS)

    @property
    def n_neurons(self) -> int:
        """Neurons of a layer that has some; 0: its feed-forward is matrices."""
        return next((each.neurons[NEURON_PARTS[0]].shape[0] for each in self.layers if each.neurons), 0)

    def neuron_types(self) -> list[GgmlType]:
        """Of the rows of neurons, each once."""
        return list(dict.fromkeys(info.type for layer in self.layers for info in layer.neurons.values()))

    @property
    def outer_matrices(self) -> list[TensorInfo]:
        """Those outside the layers that activations are multiplied with."""
        return [self.head, *self.multiplied_outside.values()]

    @property
    def multiplied_outside(self) -> dict[str, TensorInfo]:
        """Of `further` all but LAYER_EMBEDDING, which is only looked up."""
        return {name: info for name, info in self.further.items() if name != LAYER_EMBEDDING}

    @property
    def streams(self) -> bool:
        """Whether the residual is several streams."""
        return STREAMS_OPENING in self.further

    @property
    def n_bytes(self) -> int:
        """Of all that is multiplied or added: an embedding that is not the head too is only looked up."""
        infos = [*self.outer_matrices, *self.outside.values()]
        for layer in self.layers:
            infos += [*layer.vectors.values(), *_matrices(layer), *layer.neurons.values()]
        return sum(info.n_bytes for info in infos)

    def types(self) -> list[GgmlType]:
        """The types of all matrices that are multiplied with, each once."""
        infos = [*self.outer_matrices, *(info for layer in self.layers for info in _matrices(layer))]
        return list(dict.fromkeys(info.type for info in infos))

    def multiplied(self) -> Iterator[TensorInfo]:
        """All that activations are multiplied with: matrices, experts and neurons."""
        yield from self.outer_matrices
        for layer in self.layers:
            yield from _matrices(layer)
            yield from layer.neurons.values()


def _matrices(layer: LayerTensors) -> Iterator[TensorInfo]:
    yield from layer.matrices.values()
    yield from layer.experts.values()


def make_catalog(tensors: Mapping[str, TensorInfo], n_layers: int) -> Catalog:
    """Sort a model's tensors, those of `ModelSpec.tensors`. Every one must be called by its one name (`tensor_name`),
    so that no two can mean the same. FormatError for any other name, and for a layer or shape that no model has."""
    layers = tuple(LayerTensors() for _ in range(n_layers))
    outside: dict[str, TensorInfo] = {}
    further: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if name in (EMBEDDING, HEAD, LAYER_EMBEDDING, LAYER_PROJECTION, STREAMS_OPENING, STREAMS_CLOSING):
            if len(info.shape) != (3 if name in (STREAMS_OPENING, STREAMS_CLOSING) else 2):
                raise FormatError(f"{name}: unexpected shape {info.shape}")
            if name not in (EMBEDDING, HEAD):
                further[name] = replace(info, shape=(prod(info.shape[:-1]), info.shape[-1]))
            continue
        match = _OUTSIDE.fullmatch(name)
        if match is not None and len(info.shape) == 1:
            outside[match[1] or match[2]] = info
            continue
        found = _part_of(name)
        if found is None:
            raise FormatError(f"{name}: not the name of a model's tensor")
        number, part = found
        if number >= n_layers:
            raise FormatError(f"{name}: the model has only {n_layers} layers")
        layer = layers[number]
        if len(info.shape) == 1 or (len(info.shape) == 2 and part in VECTOR_PARTS):
            layer.vectors[part] = info
        elif len(info.shape) == 2 and not part.endswith((*_ADDED, ".")):
            layer.matrices[part] = info
        elif len(info.shape) == 3 and part in HEAD_PARTS:
            heads, rows, cols = info.shape
            layer.matrices[part] = replace(info, shape=(heads * rows, cols))
        elif len(info.shape) == 3 and part in EXPERT_PARTS:
            layer.experts[part] = info
        else:
            raise FormatError(f"{name}: unexpected shape {info.shape}")
    for number, layer in enumerate(layers):
        if "ffn_down_t" in layer.matrices:
            if "ffn_up" not in layer.matrices or layer.matrices["ffn_up"].shape != layer.matrices["ffn_down_t"].shape:
                raise FormatError(f"blk.{number}: ffn_down_t needs an ffn_up of its own shape")
            layer.neurons.update((part, layer.matrices.pop(part)) for part in NEURON_PARTS)
        _check_experts(number, layer.experts)
    embedding = tensors.get(EMBEDDING, tensors.get(HEAD))
    if embedding is None:
        raise FormatError(f"{EMBEDDING} is missing: nothing says what a token looks like")
    for pair in _PAIRS:
        if sum(name in further for name in pair) == 1:
            raise FormatError(f"{pair[0]} and {pair[1]}: one of them is missing")
    return Catalog(embedding, tensors.get(HEAD, embedding), outside, further, layers)


_EXPERTS = (  # which tensors make experts: gated, in one tensor or in two, or not gated
    {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"},
    {"ffn_gate_up_exps", "ffn_down_exps"},
    {"ffn_up_exps", "ffn_down_exps"},
)


def _check_experts(number: int, experts: Mapping[str, TensorInfo]) -> None:
    """FormatError unless there are all tensors that experts are made of, of as many experts, or none."""
    counts = {info.shape[0] for info in experts.values()}
    halves = experts.get("ffn_gate_up_exps")
    if experts and (set(experts) not in _EXPERTS or len(counts) != 1 or (halves and halves.shape[1] % 2)):
        raise FormatError(f"blk.{number}: a tensor of experts is missing or has fewer experts than the others")
