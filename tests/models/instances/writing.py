"""Writing an instance: the same bytes from the same name, wherever it is made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import dequantize, quantize
from edgerun.models.families import FAMILIES
from edgerun.models.plan import plan_of
from edgerun.models.reading import read_spec
from edgerun.models.spec import ModelSpec
from edgerun.weights.catalog import tensor_name
from tests.models.instances.instance import TOKENS, VOCAB, Instance

_BY_LAYER = {"feed_forward_length": "ff", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads"}


def metadata_of(i: Instance) -> dict[str, Any]:
    """What the file says of its numbers, by keys without the architecture."""
    found: dict[str, Any] = {
        "block_count": i.layers + i.further,
        "context_length": 128,
        "embedding_length": i.d,
        "feed_forward_length": i.ff,
        "attention.head_count": i.heads,
        "attention.head_count_kv": i.kv_heads,
        "attention.key_length": i.head_dim,
        "attention.value_length": i.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": i.head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }
    for key, name in _BY_LAYER.items():
        if name in i.by_layer:
            found[key] = np.array(i.by_layer[name], np.int32)
    if i.experts:
        found |= {"expert_count": i.experts, "expert_used_count": i.used}
        found["expert_feed_forward_length"] = i.ff_expert or i.ff
    if i.ff_shared:
        found["expert_shared_feed_forward_length"] = i.ff_shared
    if i.taps:
        found["shortconv.l_cache"] = i.taps
    if i.recurrent and FAMILIES[i.arch].recurrence == "delta":
        found["attention.recurrent_layers"] = np.array([*i.recurrent, *[False] * i.further], bool)
    if i.further:
        found["nextn_predict_layers"] = 1
    if i.window:
        found["attention.sliding_window"] = i.window
    return found | i.metadata


@cache
def spec_of(i: Instance) -> ModelSpec:
    """The numbers that the file will say, enough to know its shapes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "numbers.gguf"
        with GgufWriter(path, i.arch) as w:
            for key, value in metadata_of(i).items():
                w.add(f"{i.arch}.{key}", value)
            for layer in range(i.layers):
                for part, rows in i.telling.items():
                    if (layer, part) in i.without:
                        continue
                    w.add_tensor(tensor_name(layer, part), np.zeros((rows, 1), np.float32), GgmlType.F32)
            for name, rows in _telling(i).items():
                w.add_tensor(name, np.zeros((rows, 1), np.float32), GgmlType.F32)
        with open_gguf(path) as gguf:
            return read_spec(gguf)


def _telling(i: Instance) -> dict[str, int]:
    """Tensors from whose rows, of one column, follows what else the file is."""
    found = {"token_embd.weight": VOCAB} | ({"blk.0.ffn_down_t.weight": 1} if i.sparse else {})
    for part in i.fused:
        down = {} if part == "ffn_gate_up_exps" else {tensor_name(0, part.replace("up", "down")): 1}
        found |= {tensor_name(0, part): 2} | down
    return found


_ORDER = (  # in which a layer's tensors are made up: files from before must not change
    *("attn_norm", "attn_output", "ffn_norm", "attn_qkv", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm"),
    *("post_attention_norm", "post_ffw_norm", "attn_sub_norm", "ffn_sub_norm", "ffn_gate_inp", "ffn_gate_exps"),
    *("ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"),
    *("ffn_up", "ffn_down_t", "ffn_down", "ffn_gate", "shortconv.in_proj", "shortconv.conv", "shortconv.out_proj"),
    *("attn_gate", "ssm_in", "ssm_ba", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_dt.bias", "ssm_a.", "ssm_norm"),
    *("ssm_d.", "ssm_out", "ffn_norm."),
)
_MEANS = {
    "ffn_gate_inp_shexp": 0.0,
    "ssm_dt.bias": 0.0,
    "ssm_a.": -0.7,
}  # of vectors; others are near 1
_FLOATS = (
    *("ffn_gate_inp", "shortconv.conv", "ssm_conv1d", "ssm_norm", "altup_router", "altup_predict_coef"),
    *("altup_correct_coef", "laurel_l", "laurel_r"),
)
_GAINS = {"altup_predict_coef": 0.1}  # of matrices: with more the streams make much of how numbers were rounded


def shapes_of(i: Instance, layer: int) -> dict[str, tuple[int, ...]]:
    """Names without layer and `.weight` -> numpy shape, of what a layer needs."""
    tensors = plan_of(spec_of(i))[layer].tensors
    needed = {part: each.shape for part, each in tensors.items() if each.needed or part in i.more}
    return {part: needed[part] for part in sorted(needed, key=_place)}


def _any_of(i: Instance, name: str, shape: tuple[int, ...]) -> GgmlType:
    """One of the instance's types whose blocks divide the columns, the same whenever the name is."""
    fit = [type for type in i.mixed if shape[-1] % type.block_size == 0]
    return fit[sum(map(ord, i.name + name)) % len(fit)] if fit else GgmlType.F32


def _place(part: str) -> tuple[int, str]:
    """Where in the order a part comes: new ones at the end, by name."""
    return (_ORDER.index(part), "") if part in _ORDER else (len(_ORDER), part)


def _further(d: int) -> dict[str, tuple[int, ...]]:
    """What a layer that guesses a further token has beside an ordinary one's."""
    norms = {f"nextn.{name}": (d,) for name in ("enorm", "hnorm", "shared_head_norm")}
    return {"nextn.eh_proj": (d, 2 * d), **norms}


def tokens_of(i: Instance) -> list[int]:
    """What is fed: longer than any window."""
    return np.random.default_rng(7).integers(0, VOCAB, TOKENS).tolist()


def write(i: Instance, path: Path, vocabulary: Mapping[str, Any] | None = None) -> Path:
    """Write the instance's GGUF. `vocabulary`: metadata of a tokenizer, whose tokens are then its rows; without it
    there are VOCAB of them, and no text."""
    rng = np.random.default_rng(sum(map(ord, i.name)))
    a = i.arch
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"]) if vocabulary else VOCAB
    with GgufWriter(path, a) as w:
        w.add("general.name", i.name)
        w.add("general.file_type", 0)
        for key, value in (metadata_of(i) | i.lies).items():
            if key in i.unsaid:
                continue
            w.add(f"{a}.{key}", n_vocab if key == "vocab_size" else value)
        for key, value in (vocabulary or {"tokenizer.ggml.model": "none"}).items():
            w.add(key, value)

        def matrix(name: str, shape: tuple[int, ...], type: GgmlType, gain: float = 1.0) -> None:
            data = (rng.standard_normal(shape) * gain * shape[-1] ** -0.5).astype(np.float32)
            type = _any_of(i, name, shape) if i.mixed and type == i.type else type
            if type == GgmlType.F32:
                w.add_tensor(name, data, type)
            elif i.exact:
                w.add_tensor(name, dequantize(quantize(data, type), type), GgmlType.F32)
            else:
                w.add_tensor(name, quantize(data, type), type)

        def vector(name: str, n: int | tuple[int, ...], mean: float) -> None:
            w.add_tensor(name, (mean + 0.1 * rng.standard_normal(n)).astype(np.float32), GgmlType.F32)

        matrix("token_embd.weight", (n_vocab, i.d), i.type, gain=1.0 if i.tied else i.d**0.5)
        vector(f"{FAMILIES[a].output_norm}.weight", i.d, 1.0)
        if not i.tied:
            matrix("output.weight", (n_vocab, i.d), i.type)
        for name in ("output_norm.bias", "output.bias"):
            if name in i.more:
                vector(name, n_vocab if name == "output.bias" else i.d, 0.0)
        fed = spec_of(i).per_layer_width
        if fed:
            matrix("per_layer_token_embd.weight", (n_vocab, i.layers * fed), i.type)
            matrix("per_layer_model_proj.weight", (i.layers * fed, i.d), GgmlType.BF16)
            vector("per_layer_proj_norm.weight", fed, 1.0)
        if spec_of(i).streams > 1:
            for name in ("altup_proj.weight", "altup_unembd_proj.weight"):
                matrix(name, (spec_of(i).streams - 1, i.d, i.d), GgmlType.F16)
        if i.rope_factors:
            factors = np.linspace(1.0, 8.0, i.head_dim // 2).astype(np.float32)
            w.add_tensor("rope_freqs.weight", factors, GgmlType.F32)
        if i.long_short:
            for kind, top in (("long", 8.0), ("short", 1.5)):
                factors = np.linspace(1.0, top, i.head_dim // 2).astype(np.float32)
                w.add_tensor(f"rope_factors_{kind}.weight", factors, GgmlType.F32)
        for layer in range(i.layers):
            shapes = shapes_of(i, layer)
            for part, shape in shapes.items():
                name = tensor_name(layer, part)
                if part.endswith(".bias") and len(shape) == 2:  # of experts: so large that some are cut off
                    w.add_tensor(name, (3 * rng.standard_normal(shape)).astype(np.float32), GgmlType.F32)
                elif len(shape) == 1 or part in ("ssm_a.", "ssm_d."):
                    usual = 0.0 if part.endswith(".bias") and part not in _MEANS else _MEANS.get(part, 1.0)
                    vector(name, shape, i.means.get(part, usual))
                else:
                    matrix(name, shape, GgmlType.F32 if part in _FLOATS else i.type, _GAINS.get(part, 1.0))
            if i.spare_kv and spec_of(i).layers[layer].kv_source is not None:
                for part in ("attn_k", "attn_v"):
                    matrix(f"blk.{layer}.{part}.weight", (i.kv_heads * i.head_dim, i.d), i.type)
                vector(f"blk.{layer}.attn_k_norm.weight", i.head_dim, 1.0)
            for part in i.biases:
                vector(f"blk.{layer}.{part}.bias", shapes[part][0], 0.0)
        if i.further:  # made like the last layer
            for part, shape in (shapes_of(i, i.layers - 1) | _further(i.d)).items():
                data = rng.standard_normal(shape).astype(np.float32)
                w.add_tensor(tensor_name(i.layers, part), data, GgmlType.F32)
    return path
