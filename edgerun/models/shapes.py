"""Which tensors a model must have, and of what shape: checked on the header, before any weight is read."""

from __future__ import annotations

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufFile
from edgerun.kernels.interface import check_neurons
from edgerun.models.spec import ModelSpec, read_spec

_NEURON_ROWS = (".ffn_up.weight", ".ffn_down_t.weight")
_NO_WEIGHTS = {GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64}


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names without layer and `.weight` -> numpy shape, of what every layer needs."""
    f, d = spec.family, spec.d_model
    q, k, v = spec.n_heads * spec.head_dim_k, spec.n_kv_heads * spec.head_dim_k, spec.n_kv_heads * spec.head_dim_v
    o = spec.n_heads * spec.head_dim_v
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (d,), "attn_output": (d, o), "ffn_norm": (d,)}
    if f.fused_qkv:
        shapes["attn_qkv"] = (q + k + v, d)
    else:
        shapes |= {"attn_q": (q, d), "attn_k": (k, d), "attn_v": (v, d)}
    if f.qk_norm == "head":
        shapes |= {"attn_q_norm": (spec.head_dim_k,), "attn_k_norm": (spec.head_dim_k,)}
    elif f.qk_norm == "full":
        shapes |= {"attn_q_norm": (q,), "attn_k_norm": (k,)}
    if f.post_norms:
        shapes |= {"post_attention_norm": (d,), "post_ffw_norm": (d,)}
    if f.sub_norms:
        shapes |= {"attn_sub_norm": (o,), "ffn_sub_norm": (spec.d_ff,)}
    if spec.n_experts:
        e, ff = spec.n_experts, spec.d_ff_expert
        shapes["ffn_gate_inp"] = (e, d)
        shapes |= {"ffn_gate_exps": (e, ff, d), "ffn_up_exps": (e, ff, d), "ffn_down_exps": (e, d, ff)}
        if spec.d_ff_shared:
            ff = spec.d_ff_shared
            shapes |= {"ffn_gate_shexp": (ff, d), "ffn_up_shexp": (ff, d), "ffn_down_shexp": (d, ff)}
            shapes["ffn_gate_inp_shexp"] = (d,)
    else:
        ff = spec.d_ff
        down = {"ffn_down_t": (ff, d)} if spec.sparse else {"ffn_down": (d, ff)}
        shapes |= {"ffn_up": (2 * ff if f.fused_gate_up else ff, d), **down}
        if not f.fused_gate_up:
            shapes["ffn_gate"] = (ff, d)
    return shapes


def load_spec(gguf: GgufFile) -> ModelSpec:
    """The model's numbers, with every tensor's shape checked against them. Raises FormatError, UnsupportedError."""
    spec = read_spec(gguf)
    check_tensors(gguf, spec)
    return spec


def check_tensors(gguf: GgufFile, spec: ModelSpec) -> None:
    """Raises FormatError naming the tensor, what was expected and what there is."""
    wanted = {"token_embd.weight": (spec.vocab_size, spec.d_model), "output_norm.weight": (spec.d_model,)}
    if "output.weight" in gguf.tensors:
        wanted["output.weight"] = (spec.vocab_size, spec.d_model)
    for part, shape in expected_shapes(spec).items():
        for layer in range(spec.n_layers):
            wanted[f"blk.{layer}.{part}.weight"] = shape
    for name, shape in wanted.items():
        info = gguf.tensors.get(name)
        if info is None:
            raise FormatError(f"{gguf.path}: the tensor {name} {shape} is missing; a {spec.architecture} needs it")
        if tuple(info.shape) != shape:
            raise FormatError(f"{gguf.path}: {name} is {tuple(info.shape)}; the metadata says {shape}")
        if info.type in _NO_WEIGHTS:
            raise UnsupportedError(f"{gguf.path}: {name} holds {info.type.name}, not weights")
        if spec.sparse and name.endswith(_NEURON_ROWS):
            check_neurons(f"{gguf.path}: {name}", info.type, shape[1])
