"""Hugging Face tensor names and layouts -> GGUF's: renamed, permuted, stacked, read lazily."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_config import HfConfig, rope_tensors
from edgerun.convert.hf_gpt_oss import gpt_oss_experts
from edgerun.convert.hf_hybrids import DELTA_FOLDS, delta_channels, layer_types, n_leading
from edgerun.convert.hf_numbers import count_of
from edgerun.convert.tensors import Source, from_array
from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType
from edgerun.formats.safetensors import FLOAT_DTYPES, SafetensorsFile

_IGNORED_ENDS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_OTHER_MODALITIES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
_DELTA_PARTS = tuple(DELTA_FOLDS)
_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "backbone.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class _Wanted:
    """A GGUF tensor: its shape and the checkpoint's name, without the prefix."""

    name: str
    shape: tuple[int, ...]
    theirs: str
    optional: bool = False


def plan_tensors(model: SafetensorsFile, config: HfConfig) -> list[Source]:
    """Every tensor of the GGUF in its order. FormatError when one is missing, has another shape than
    config.json says, or is left over; UnsupportedError for quantised or integer weights."""
    prefix = _prefix(model, config.family.embedding)
    used: set[str] = set()
    sources = []
    sources.append(_take(model, config, _embedding(config), prefix, used))
    for layer in range(config.n_layers):
        for wanted in _layer(config, layer):
            if not (wanted.optional and prefix + wanted.theirs not in model.tensors):
                sources.append(_take(model, config, wanted, prefix, used))
        sources += _experts(model, config, layer, prefix, used)
        numbers = config.family.numbers(config.raw)
        sources += [from_array(f"blk.{layer}.{name}", array) for name, array in numbers.items()]
    sources += _outside(model, config, prefix, used)
    theirs, ours = config.family.final_norm
    norm = _Wanted(f"{ours}.weight", (config.d_model,), f"{theirs}.weight")
    sources.append(_take(model, config, norm, prefix, used))
    sources += [from_array(name, array) for name, array in rope_tensors(config).items()]
    heads = [name for name in _HEADS if name in model.tensors]
    used.update(heads)
    if heads and not config.tied_head:
        head = _Wanted("output.weight", (config.vocab_size, config.d_model), heads[0])
        sources.append(_take(model, config, head, "", used))
    _check_leftovers(model, config, prefix, used)
    return sources


def _outside(model: SafetensorsFile, c: HfConfig, prefix: str, used: set[str]) -> Iterator[Source]:
    """What a family has outside its layers. An embedding may lack the last words, which images and sounds stand for."""
    for name, (theirs, shape) in c.family.outside(c.raw).items():
        if isinstance(theirs, tuple):
            names = [prefix + each for each in theirs]
            types = [_check(model, each, shape) for each in names]
            used.update(names)
            yield _stacked(model, name, names, shape, types[0])
            continue
        source = _take(model, c, _Wanted(name, shape, theirs), prefix, used)
        missing = c.vocab_size - shape[0] if name == "per_layer_token_embd.weight" else 0
        yield _padded(source, missing) if missing > 0 else source


def _padded(source: Source, more: int) -> Source:
    """With so many rows of zeros."""
    n_rows, cols = source.shape

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        there = (
            source.rows(min(start, n_rows), min(stop, n_rows)) if start < n_rows else np.empty((0, cols), np.float32)
        )
        return np.concatenate([there, np.zeros((stop - start - len(there), cols), np.float32)])

    return Source(source.name, (n_rows + more, cols), source.type, rows)


def _prefix(model: SafetensorsFile, embedding: str) -> str:
    for prefix in _PREFIXES:
        if f"{prefix}{embedding}.weight" in model.tensors:
            return prefix
    raise FormatError(f"the checkpoint has no model.{embedding}.weight: not a causal language model, or incomplete")


def _embedding(c: HfConfig) -> _Wanted:
    return _Wanted("token_embd.weight", (c.vocab_size, c.d_model), f"{c.family.embedding}.weight")


def _shape(c: HfConfig, name: str, layer: int) -> tuple[int, ...]:
    """The shape of a layer's weight in the checkpoint, by its GGUF name."""
    given = c.family.shapes(c.raw, layer).get(name)
    if given is not None:
        return given
    q_rows, kv_rows = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    full = c.family.architecture == "olmoe"  # its q and k norms span all heads
    d_ff = 2 * c.d_ff if "mlp.gate_up_proj" in c.family.layer else c.d_ff
    gated = "linear_attention" in c.family.mixers  # of each head, q and then its gate
    if gated and name in _DELTA_PARTS:
        return _delta_shape(c, name)
    return {
        "shortconv.in_proj": (3 * c.d_model, c.d_model),
        "shortconv.conv": (c.d_model, c.raw.get("conv_L_cache", 0)),
        "shortconv.out_proj": (c.d_model, c.d_model),
        "attn_q": (2 * q_rows if gated else q_rows, c.d_model),
        "attn_k": (kv_rows, c.d_model),
        "attn_v": (kv_rows, c.d_model),
        "attn_sinks.weight": (c.n_heads,),
        "attn_qkv": (q_rows + 2 * kv_rows, c.d_model),
        "attn_output": (c.d_model, q_rows),
        "attn_q_norm": (q_rows if full else c.head_dim,),
        "attn_k_norm": (kv_rows if full else c.head_dim,),
        "ffn_gate": (d_ff, c.d_model),
        "ffn_up": (d_ff, c.d_model),
        "ffn_down": (c.d_model, c.d_ff),
        "exp_probs_b.bias": (c.n_experts,),
        "ffn_gate_inp": (c.n_experts, c.d_model),
        "ffn_gate_inp_shexp": (1, c.d_model),
        "ffn_gate_shexp": (c.d_ff_shared, c.d_model),
        "ffn_up_shexp": (c.d_ff_shared, c.d_model),
        "ffn_down_shexp": (c.d_model, c.d_ff_shared),
    }.get(name, (c.d_model,))


def _is_leading(c: HfConfig, layer: int) -> bool:
    """Whether it is a layer without experts: one of the first, or of another kind."""
    if "moe" in c.family.mixers:
        return layer_types(c.raw)[layer] != "moe"
    return bool(c.family.leading[0]) and layer < n_leading(c.raw, c.family.leading[0])


def _delta_shape(c: HfConfig, name: str) -> tuple[int, ...]:
    channels, n_values = delta_channels(c.raw)
    heads = c.raw["linear_num_value_heads"]
    return {
        "attn_qkv": (channels, c.d_model),
        "attn_gate": (n_values, c.d_model),
        "ssm_conv1d": (channels, c.raw["linear_conv_kernel_dim"]),
        "ssm_norm": (n_values // heads,),
        "ssm_out": (c.d_model, n_values),
        "ssm_alpha": (heads, c.d_model),
        "ssm_beta": (heads, c.d_model),
    }.get(name, (heads,))


def _layer(c: HfConfig, layer: int) -> Iterator[_Wanted]:
    modules = dict(c.family.layer)
    if c.family.mixers:
        kind = layer_types(c.raw)[layer]
        if kind not in c.family.mixers:
            raise UnsupportedError(
                f"config.json: a layer of type {kind!r}; edgerun converts {', '.join(c.family.mixers)}"
            )
        modules |= c.family.mixers[kind]
    if c.family.fed and count_of(c.raw, "hidden_size_per_layer_input"):
        modules |= c.family.fed
    if c.family.mixture:
        modules |= c.family.leading[1] if _is_leading(c, layer) else c.family.mixture
    pairs = [*modules.items(), *((theirs, name) for name, theirs in c.family.also.items())]
    for theirs, name in pairs:
        if theirs in c.family.bare:
            yield _Wanted(f"blk.{layer}.{name}", _shape(c, name, layer), f"layers.{layer}.{theirs}")
            continue
        shape = _shape(c, name, layer)
        yield _Wanted(f"blk.{layer}.{name}.weight", shape, f"layers.{layer}.{theirs}.weight")
        if c.family.biases and len(shape) == 2:
            yield _Wanted(f"blk.{layer}.{name}.bias", shape[:1], f"layers.{layer}.{theirs}.bias", optional=True)


def _take(model: SafetensorsFile, c: HfConfig, wanted: _Wanted, prefix: str, used: set[str]) -> Source:
    theirs = prefix + wanted.theirs
    type_ = _check(model, theirs, wanted.shape)
    used.add(theirs)
    short = wanted.name.split(".")[-2]
    if c.family.permute_qk and short in ("attn_q", "attn_k"):
        heads = c.n_heads if short == "attn_q" else c.n_kv_heads
        return _permuted(model, theirs, wanted, type_, heads)
    fold = c.family.folds.get(wanted.name.split(".", 2)[-1].removesuffix(".weight"))
    if fold is not None:
        return from_array(wanted.name, fold(model.array(theirs), c.raw), type_)
    if c.family.norm_plus_one and len(wanted.shape) == 1:
        return from_array(wanted.name, model.array(theirs) + np.float32(1))
    shape = wanted.shape
    if c.sparse and short == "ffn_down":
        if wanted.name.endswith(".bias"):
            raise UnsupportedError(f"{theirs}: a sparse feed-forward with a bias on its result is not supported")
        return _transposed(model, theirs, wanted, type_)
    if c.sparse and wanted.name.endswith("ffn_up.bias"):
        raise UnsupportedError(f"{theirs}: a sparse feed-forward with a bias on up is not supported")
    if short == "ffn_gate_inp_shexp":
        shape = shape[1:]  # GGUF keeps the one row as a vector
    return Source(wanted.name, shape, type_, lambda start, stop: model.rows(theirs, start, stop))


def _check(model: SafetensorsFile, theirs: str, shape: tuple[int, ...]) -> GgmlType:
    tensor = model.tensors.get(theirs)
    if tensor is not None and len(tensor.shape) == 3 and tensor.shape[1] == 1 and len(shape) == 2:
        shape = (shape[0], 1, shape[1])  # a depthwise convolution
    if tensor is None:
        raise FormatError(f"the checkpoint has no {theirs}: a shard is missing, or it is of another family")
    if tensor.shape != shape:
        raise FormatError(f"{tensor.path}: {theirs} has the shape {tensor.shape}, by config.json it is {shape}")
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedError(
            f"{tensor.path}: {theirs} holds {tensor.dtype}; edgerun converts {', '.join(FLOAT_DTYPES)}"
        )
    return GgmlType[tensor.dtype]


def rotary_order(n_rows: int, n_heads: int) -> NDArray[np.int64]:
    """Rows of q or k from Hugging Face's order (halves of each head rotate together) to GGUF's llama order
    (neighbours do): element i is the row of the checkpoint that becomes row i."""
    pairs = np.arange(n_rows).reshape(n_heads, 2, n_rows // n_heads // 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def _permuted(model: SafetensorsFile, theirs: str, wanted: _Wanted, type_: GgmlType, n_heads: int) -> Source:
    order = rotary_order(wanted.shape[0], n_heads)
    if len(wanted.shape) == 1:
        return from_array(wanted.name, model.array(theirs)[order])
    head_rows = wanted.shape[0] // n_heads

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        first = start // head_rows * head_rows  # whole heads hold every row that is asked for
        last = min(-(-stop // head_rows) * head_rows, wanted.shape[0])
        return model.rows(theirs, first, last)[order[start:stop] - first]

    return Source(wanted.name, wanted.shape, type_, rows)


def _transposed(model: SafetensorsFile, theirs: str, wanted: _Wanted, type_: GgmlType) -> Source:
    """down, (d, ff), as (ff, d): a row is what one neuron adds. Held whole while it is written."""
    held: list[NDArray[np.float32]] = []
    rows, cols = wanted.shape

    def take(start: int, stop: int) -> NDArray[np.float32]:
        if not held:
            held.append(np.ascontiguousarray(model.rows(theirs, 0, rows).T))
        return held[0][start:stop]

    name = wanted.name.replace("ffn_down", "ffn_down_t")
    return Source(name, (cols, rows), type_, take, done=held.clear)


def _experts(model: SafetensorsFile, c: HfConfig, layer: int, prefix: str, used: set[str]) -> Iterator[Source]:
    if c.family.fused_experts:
        yield from gpt_oss_experts(model, prefix, layer, (c.n_experts, c.d_model, c.d_ff_expert), used)
        return
    if _is_leading(c, layer):
        return
    together = f"{prefix}layers.{layer}.{c.family.experts_at}."
    if f"{together}gate_up_proj" in model.tensors:
        yield from _experts_together(model, c, layer, together, used)
        return
    for theirs, name in c.family.experts.items():
        shape = (c.d_model, c.d_ff_expert) if name == "ffn_down_exps" else (c.d_ff_expert, c.d_model)
        names = []
        for expert in range(c.n_experts):
            names.append(f"{prefix}layers.{layer}.{c.family.experts_at}.{expert}.{theirs}.weight")
            type_ = _check(model, names[-1], shape)
        used.update(names)
        yield _stacked(model, f"blk.{layer}.{name}.weight", names, shape, type_)


def _experts_together(model: SafetensorsFile, c: HfConfig, layer: int, at: str, used: set[str]) -> Iterator[Source]:
    """Of tensors that hold all experts: in one, the gate of each and then its up; in the other, down. In Qwen3-VL's
    inputs come first."""
    both, down = f"{at}gate_up_proj", f"{at}down_proj"
    used |= {both, down}
    turned = (c.n_experts, c.d_model, 2 * c.d_ff_expert), (c.n_experts, c.d_ff_expert, c.d_model)
    given = model.tensors[both].shape, model.tensors[down].shape if down in model.tensors else ()
    if given == turned:
        for name, theirs, first, n_rows in (
            ("gate", both, 0, c.d_ff_expert),
            ("up", both, c.d_ff_expert, c.d_ff_expert),
            ("down", down, 0, c.d_model),
        ):
            type_ = _check(model, theirs, model.tensors[theirs].shape)
            yield _turned(model, f"blk.{layer}.ffn_{name}_exps.weight", theirs, first, n_rows, type_)
        return
    type_ = _check(model, both, (c.n_experts, 2 * c.d_ff_expert, c.d_model))
    for half, part in enumerate(("gate", "up")):
        parts = [(both, (2 * e + half) * c.d_ff_expert) for e in range(c.n_experts)]
        yield _joined(model, f"blk.{layer}.ffn_{part}_exps.weight", parts, (c.d_ff_expert, c.d_model), type_)
    type_ = _check(model, down, (c.n_experts, c.d_model, c.d_ff_expert))
    parts = [(down, e * c.d_model) for e in range(c.n_experts)]
    yield _joined(model, f"blk.{layer}.ffn_down_exps.weight", parts, (c.d_model, c.d_ff_expert), type_)


def _turned(model: SafetensorsFile, name: str, theirs: str, first: int, n_rows: int, type_: GgmlType) -> Source:
    """Of a tensor (experts, inputs, outputs): so many outputs of each expert from `first` on, (experts, n_rows,
    inputs). One expert is held at a time."""
    experts, inputs, _ = model.tensors[theirs].shape
    held: dict[int, NDArray[np.float32]] = {}

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        found = []
        while start < stop:
            expert, row = divmod(start, n_rows)
            last = min(n_rows, row + stop - start)
            if expert not in held:
                held.clear()
                held[expert] = model.rows(theirs, expert * inputs, (expert + 1) * inputs).T[first : first + n_rows]
            found.append(held[expert][row:last])
            start += last - row
        return np.ascontiguousarray(np.concatenate(found))

    return Source(name, (experts, n_rows, inputs), type_, rows, done=held.clear)


def _stacked(model: SafetensorsFile, name: str, experts: list[str], shape: tuple[int, ...], type_: GgmlType) -> Source:
    return _joined(model, name, [(expert, 0) for expert in experts], shape, type_)


def _joined(
    model: SafetensorsFile, name: str, parts: list[tuple[str, int]], shape: tuple[int, ...], type_: GgmlType
) -> Source:
    """One tensor of many of that shape, each of which begins at a row of a tensor of the checkpoint."""
    n_rows = shape[0]

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        found = []
        while start < stop:
            part, first = divmod(start, n_rows)
            last = min(n_rows, first + stop - start)
            theirs, begin = parts[part]
            found.append(model.rows(theirs, begin + first, begin + last))
            start += last - first
        return np.concatenate(found)

    return Source(name, (len(parts), *shape), type_, rows)


def _check_leftovers(model: SafetensorsFile, c: HfConfig, prefix: str, used: set[str]) -> None:
    used |= {prefix + name for name in c.family.spare(c.raw)}
    further = range(c.n_layers, c.n_layers + count_of(c.raw, "num_nextn_predict_layers"))
    guessing = (f"model.layers.{layer}." for layer in further)  # layers that guess further tokens
    unread = (*_OTHER_MODALITIES, *c.family.unread, *guessing)
    left = [
        name
        for name in model.tensors
        if name not in used and not name.endswith(_IGNORED_ENDS) and not name.startswith(unread)
    ]
    if left:
        raise UnsupportedError(
            f"the checkpoint has {len(left)} tensors that its family does not "
            f"({', '.join(sorted(left)[:3])}); "
            "the converted model would not be the same"
        )
