"""A tiny random instance of every family: the same bytes from the same name, wherever it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, open_gguf
from edgerun.formats.quants import quantize
from edgerun.models import load_spec
from edgerun.models.families import FAMILIES
from edgerun.models.plan import plan_of
from edgerun.models.spec import LayerNumbers, ModelSpec, Recurrence, Rotation
from edgerun.weights.catalog import tensor_name

VOCAB, LAYERS, TOKENS = 96, 3, 40


@dataclass(frozen=True)
class Instance:
    """What `write` makes: a family, some metadata, a weight type."""

    name: str
    arch: str
    type: GgmlType = GgmlType.F32
    d: int = 64
    ff: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = LAYERS
    experts: int = 0
    used: int = 0
    ff_shared: int = 0
    window: int = 0
    tied: bool = False
    biases: tuple[str, ...] = ()
    rope_factors: bool = False
    long_short: bool = False  # Phi-3's two sets of factors
    sparse: bool = False  # ReLU, down transposed
    taps: int = 0  # of the convolutions that layers without kv_heads are
    recurrence: Recurrence | None = None  # of the layers that are `recurrent`
    recurrent: tuple[bool, ...] = ()
    further: bool = False  # one more layer, that guesses a token more
    by_layer: dict[str, tuple[int, ...]] = field(default_factory=dict)  # ff, heads, kv_heads: where layers differ
    metadata: dict[str, Any] = field(default_factory=dict)


def _gemma(name: str, arch: str, **more: Any) -> Instance:
    return Instance(name, arch, layers=7, window=12, tied=True, **more)


def _lfm2(name: str, kv_heads: tuple[int, ...], **more: Any) -> Instance:
    given = {"taps": 3, "tied": True, "layers": len(kv_heads), "by_layer": {"kv_heads": kv_heads}} | more
    return Instance(name, "lfm2", **given)


def _recurrent(name: str, arch: str, recurrent: tuple[int, ...], heads: Recurrence, **more: Any) -> Instance:
    """A model of recurrences, and of attention alone where `recurrent` is 0."""
    kinds = tuple(map(bool, recurrent))
    metadata = {
        "ssm.conv_kernel": heads.taps,
        "ssm.state_size": heads.key_dim,
        "ssm.group_count": heads.key_heads,
        "ssm.time_step_rank": heads.heads,
        "ssm.inner_size": heads.inner,
        "rope.dimension_count": 8 if arch.startswith("qwen") else 16,
    } | more.pop("metadata", {})
    return Instance(name, arch, layers=len(kinds), recurrence=heads, recurrent=kinds, metadata=metadata, **more)


_SECTIONS = {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)}  # of 8 rotated dimensions: plain for text
_SIGMOID = {"expert_gating_func": 2}
_QKV_BIAS = ("attn_q", "attn_k", "attn_v")
PLAIN = [
    Instance("llama", "llama"),
    Instance("llama-tied-mha", "llama", kv_heads=4, tied=True),
    Instance("llama3-rope", "llama", rope_factors=True, metadata={"rope.freq_base": 500000.0}),
    Instance("llama-linear", "llama", metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    Instance(
        "llama-yarn",
        "llama",
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    Instance("mixtral", "llama", experts=4, used=2),
    Instance("qwen2", "qwen2", biases=_QKV_BIAS, metadata={"rope.freq_base": 1000000.0}),
    Instance("qwen2moe", "qwen2moe", experts=6, used=3, ff_shared=160, biases=_QKV_BIAS),
    Instance("qwen3", "qwen3", head_dim=32),
    Instance("qwen3moe", "qwen3moe", head_dim=32, experts=8, used=3),
    Instance("olmoe", "olmoe", kv_heads=4, experts=8, used=4),
    Instance("phi3", "phi3"),
    Instance(
        "phi3-longrope",
        "phi3",
        long_short=True,
        metadata={"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19},
    ),
    _gemma("gemma2", "gemma2", metadata={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    _gemma(
        "gemma3",
        "gemma3",
        metadata={"rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    Instance("bitnet", "bitnet", tied=True),
    _lfm2("lfm2", (0, 2, 0)),
    _recurrent("falcon-h1", "falcon-h1", (1, 1, 1), Recurrence(4, 8, 2, 12, 10), biases=("ssm_conv1d",)),
    _recurrent("qwen35", "qwen35", (1, 1, 1, 0), Recurrence(4, 4, 2, 8, 8), metadata=_SECTIONS),
    _recurrent(
        "qwen35-many",
        "qwen35",
        (1, 0, 1, 1, 0),
        Recurrence(3, 6, 2, 24, 24),
        tied=True,
        further=True,
        metadata=_SECTIONS,
    ),
        "qwen35-many",
        "qwen35",
        (1, 0, 1, 1, 0),
        Recurrence(3, 6, 2, 24, 24),
        tied=True,
        further=True,
        metadata=_SECTIONS,
    ),
    _lfm2("lfm2-window", (2, 0, 0, 4, 0, 1), taps=4, window=12, tied=False),
    Instance(
        "smallthinker", "smallthinker", layers=6, experts=8, used=3, window=4096, metadata={"expert_gating_func": 2}
    ),
    Instance("smallthinker-softmax", "smallthinker", layers=4, experts=8, used=3, metadata={"expert_gating_func": 1}),
]
QUANTISED = [
    Instance(f"llama-{type.name}", "llama", type, d=256, ff=512, heads=4, head_dim=64)
    for type in (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.F16, GgmlType.BF16)
] + [
    Instance("qwen3moe-small-Q4_0", "qwen3moe", GgmlType.Q4_0, d=256, ff=256, heads=4, head_dim=64, experts=8, used=3),
    Instance("olmoe-Q8_0", "olmoe", GgmlType.Q8_0, ff=96, kv_heads=4, experts=8, used=4),
    Instance("qwen2-Q4_K", "qwen2", GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64, biases=_QKV_BIAS),
    Instance("phi3-Q6_K", "phi3", GgmlType.Q6_K, d=256, ff=512, heads=4, head_dim=64),
    _lfm2("lfm2-Q4_K", (0, 0, 2, 0), type=GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64),
    _lfm2("lfm2-Q8_0", (2, 0, 2), type=GgmlType.Q8_0, tied=False),
    _gemma("gemma3-Q8_0", "gemma3", type=GgmlType.Q8_0, d=256, ff=512, head_dim=64, metadata={"rope.freq_base": 1e6}),
]
SPARSE = [  # llama.cpp has no such models: these have no golden figures
    Instance("relu", "llama", ff=96, sparse=True, biases=("ffn_gate",)),
    Instance("relu2-Q4_0", "llama", GgmlType.Q4_0, ff=96, sparse=True, metadata={"hidden_activation": "relu2"}),
    Instance("relu-Q8_0", "qwen2", GgmlType.Q8_0, ff=96, sparse=True, biases=_QKV_BIAS),
    Instance("relu-F16", "llama", GgmlType.F16, ff=96, sparse=True),
    Instance("relu-Q4_K", "llama", GgmlType.Q4_K, d=256, ff=256, head_dim=64, sparse=True, biases=("ffn_gate",)),
    Instance("relu2-Q5_1", "qwen2", GgmlType.Q5_1, ff=96, sparse=True, metadata={"hidden_activation": "relu2"}),
]
BY_LAYER = [  # nor has it families of today's with these
    Instance("llama-by-layer", "llama", by_layer={"ff": (96, 160, 64), "heads": (4, 2, 6)}),
    Instance("qwen3-by-layer", "qwen3", by_layer={"heads": (4, 8, 6), "kv_heads": (2, 4, 1)}),
    _gemma(
        "gemma3-pattern", "gemma3", metadata={"attention.sliding_window_pattern": np.array([1, 0, 0, 1, 1, 0, 1], bool)}
    ),
]
INSTANCES = {instance.name: instance for instance in PLAIN + QUANTISED + SPARSE + BY_LAYER}


_BY_LAYER = {"feed_forward_length": "ff", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads"}


def _by_layer(i: Instance, name: str) -> tuple[int, ...]:
    return i.by_layer.get(name) or (getattr(i, name),) * i.layers


def spec_of(i: Instance) -> ModelSpec:
    """The numbers that the file will say, enough to know its shapes."""
    layers = tuple(
        LayerNumbers(
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim_k=i.head_dim,
            head_dim_v=i.head_dim,
            d_ff=ff,
            rotation=Rotation(i.head_dim, 10000.0),
            n_experts=i.experts,
            n_experts_used=i.used,
            d_ff_expert=ff,
            d_ff_shared=i.ff_shared,
            conv_taps=0 if kv_heads else i.taps,
            recurrence=i.recurrence if layer < len(i.recurrent) and i.recurrent[layer] else None,
        )
        for layer, (ff, heads, kv_heads) in enumerate(
            zip(*(_by_layer(i, name) for name in ("ff", "heads", "kv_heads")), strict=True)
        )
    )
    return ModelSpec(
        architecture=i.arch,
        family=FAMILIES[i.arch],
        layers=layers,
        d_model=i.d,
        vocab_size=VOCAB,
        context_length=128,
        norm_eps=1e-5,
        sparse=i.sparse,
    )


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
_FLOATS = ("ffn_gate_inp", "shortconv.conv", "ssm_conv1d", "ssm_norm")


def shapes_of(i: Instance, layer: int) -> dict[str, tuple[int, ...]]:
    """Names without layer and `.weight` -> numpy shape, of what a layer needs."""
    needed = {part: each.shape for part, each in plan_of(spec_of(i))[layer].tensors.items() if each.needed}
    return {part: needed[part] for part in sorted(needed, key=_ORDER.index)}


def _further(d: int) -> dict[str, tuple[int, ...]]:
    """What a layer that guesses a further token has beside an ordinary one's."""
    norms = {f"nextn.{name}": (d,) for name in ("enorm", "hnorm", "shared_head_norm")}
    return {"nextn.eh_proj": (d, 2 * d), **norms}


def tokens_of(i: Instance) -> list[int]:
    """What is fed: longer than any window."""
    return np.random.default_rng(7).integers(0, VOCAB, TOKENS).tolist()


def open_instance(name: str, directory: Path) -> tuple[GgufFile, ModelSpec]:
    """The instance's file in `directory`, written if nobody has, and its numbers."""
    path = directory / f"{name}.gguf"
    if not path.exists():
        write(INSTANCES[name], path)
    gguf = open_gguf(path)
    return gguf, load_spec(gguf)


def write(i: Instance, path: Path, vocabulary: Mapping[str, Any] | None = None) -> Path:
    """Write the instance's GGUF. `vocabulary`: metadata of a tokenizer, whose tokens are then its rows; without it
    there are VOCAB of them, and no text."""
    rng = np.random.default_rng(sum(map(ord, i.name)))
    a = i.arch
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"]) if vocabulary else VOCAB
    with GgufWriter(path, a) as w:
        w.add("general.name", i.name)
        w.add("general.file_type", 0)
        for key, value in {
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
            "vocab_size": n_vocab,
        }.items():
            if key not in i.metadata:
                each = i.by_layer.get(_BY_LAYER.get(key, ""))
                w.add(f"{a}.{key}", value if each is None else np.array(each, np.int32))
        if i.experts:
            w.add(f"{a}.expert_count", i.experts)
            w.add(f"{a}.expert_used_count", i.used)
            w.add(f"{a}.expert_feed_forward_length", i.ff)
        if i.ff_shared:
            w.add(f"{a}.expert_shared_feed_forward_length", i.ff_shared)
        if i.taps:
            w.add(f"{a}.shortconv.l_cache", i.taps)
        if i.recurrent and FAMILIES[a].recurrence == "delta":
            w.add(f"{a}.attention.recurrent_layers", np.array([*i.recurrent, *[False] * i.further], bool))
        if i.further:
            w.add(f"{a}.nextn_predict_layers", 1)
        if i.window:
            w.add(f"{a}.attention.sliding_window", i.window)
        for key, value in i.metadata.items():
            w.add(f"{a}.{key}", value)
        for key, value in (vocabulary or {"tokenizer.ggml.model": "none"}).items():
            w.add(key, value)

        def matrix(name: str, shape: tuple[int, ...], type: GgmlType, gain: float = 1.0) -> None:
            data = (rng.standard_normal(shape) * gain * shape[-1] ** -0.5).astype(np.float32)
            w.add_tensor(name, data if type == GgmlType.F32 else quantize(data, type), type)

        def vector(name: str, n: int | tuple[int, ...], mean: float) -> None:
            w.add_tensor(name, (mean + 0.1 * rng.standard_normal(n)).astype(np.float32), GgmlType.F32)

        matrix("token_embd.weight", (n_vocab, i.d), i.type, gain=1.0 if i.tied else i.d**0.5)
        vector(f"{FAMILIES[a].output_norm}.weight", i.d, 1.0)
        if not i.tied:
            matrix("output.weight", (n_vocab, i.d), i.type)
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
                if len(shape) == 1 or part in ("ssm_a.", "ssm_d."):
                    vector(name, shape, _MEANS.get(part, 1.0))
                else:
                    matrix(name, shape, GgmlType.F32 if part in _FLOATS else i.type)
            for part in i.biases:
                vector(f"blk.{layer}.{part}.bias", shapes[part][0], 0.0)
        if i.further:  # made like the last layer
            for part, shape in (shapes_of(i, i.layers - 1) | _further(i.d)).items():
                data = rng.standard_normal(shape).astype(np.float32)
                w.add_tensor(tensor_name(i.layers, part), data, GgmlType.F32)
    return path
